"""From measured pictures to the accuracy curve that the optimiser uses, with its uncertainty."""

from dataclasses import replace

import numpy as np
import pandas as pd

from splitpoint.checks import instance_of, whole_number
from splitpoint.diffusion.accuracy import SCHEDULES, Calibration
from splitpoint.offloading import (
    AccuracyCurve,
    AccuracyModel,
    Fit,
    SystemParameters,
    evaluate,
    fit_accuracy,
    sample_instance,
    solve,
)
from splitpoint.tables import read_table

RELEASED_STEPS = 200
SCHEDULE_LABELS = {"trailing": "trailing", "karras": "Karras", "exponential": "exponential", "20_steps": "20 steps"}


def on_released_scale(samples: pd.DataFrame) -> pd.DataFrame:
    """Samples of ``measure_pai`` with a column ``n``: the split point in steps of a run of 200.

    A step of a run of 50 spans the noise levels of four of 200; the share of the run on the device is the same.
    """
    _has_columns("samples", samples, "split_point", "num_steps")
    return samples.assign(n=samples["split_point"] * RELEASED_STEPS / samples["num_steps"])


def _has_columns(name: str, table: pd.DataFrame, *columns: str) -> None:
    instance_of(name, table, pd.DataFrame)
    if missing := set(columns) - set(table):
        raise ValueError(f"{name} lacks {', '.join(sorted(missing))}; valid is a table with {', '.join(columns)}")


def accuracy_fit(
    samples: pd.DataFrame, resamples: int = 300, seed: int = 0, free_ceiling: bool = False
) -> tuple[Fit, pd.DataFrame]:
    """Logistic fit to the mean index at each split point, with intervals from resampling whole prompts.

    Args:
        samples: with columns ``prompt, n, pai``.
        resamples: bootstrap samples of the prompts.
        seed: of the resampling.
        free_ceiling: fit where the curve levels off, too; else it must end at 1.

    Returns:
        The fit, and a table with rows ``steepness`` (per step), ``midpoint`` (steps) and with a free one ``ceiling``,
        columns ``fitted, low, high`` (95 %). Samples of one prompt share its difficulty, so whole prompts are drawn.

    Raises:
        ValueError: if ``resamples`` is below 1, or the index does not follow a logistic curve.
    """
    _has_columns("samples", samples, "prompt", "n", "pai")
    whole_number("resamples", resamples, 1)
    whole_number("seed", seed, 0)
    instance_of("free_ceiling", free_ceiling, bool)
    by_prompt = samples.groupby(["prompt", "n"])["pai"].mean().unstack()
    points = by_prompt.columns.to_numpy(float)
    names = ["steepness", "midpoint", "ceiling"][: 2 + free_ceiling]
    fit = fit_accuracy(points, by_prompt.mean().to_numpy(), free_ceiling)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        prompts = by_prompt.iloc[rng.integers(len(by_prompt), size=len(by_prompt))]
        model = fit_accuracy(points, prompts.mean().to_numpy(), free_ceiling).model
        drawn.append([getattr(model, name) for name in names])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    fitted = [getattr(fit.model, name) for name in names]
    table = pd.DataFrame({"fitted": fitted, "low": low, "high": high}, index=names)
    return fit, table


def loss_of_the_wrong_curve(
    believed: AccuracyModel,
    truth: AccuracyModel,
    num_users: int = 12,
    num_edge_gpus: int = 8,
    num_seeds: int = 100,
    parameters: SystemParameters = SystemParameters(),
) -> pd.DataFrame:
    """Utility lost by planning with one accuracy curve and living with another, window by window.

    Returns:
        One row a window: ``seed``, ``lost_s`` (seconds per user), ``granted`` and ``granted_best``.

    Raises:
        ValueError: for a number outside its range, or what is no accuracy curve.
    """
    for name, curve in (("believed", believed), ("truth", truth)):
        instance_of(name, curve, AccuracyCurve)
    whole_number("num_users", num_users, 1)
    whole_number("num_edge_gpus", num_edge_gpus, 1)
    whole_number("num_seeds", num_seeds, 1)
    instance_of("parameters", parameters, SystemParameters)
    rows = []
    for seed in range(num_seeds):
        instance = sample_instance(
            num_users, num_edge_gpus, np.random.default_rng([seed, num_users]), replace(parameters, accuracy=truth)
        )
        plan = solve(replace(instance, parameters=replace(parameters, accuracy=believed)))
        best = solve(instance)
        lost = evaluate(instance, best).utility - evaluate(instance, plan).utility
        rows.append(
            dict(
                seed=seed,
                lost_s=lost / num_users,
                granted=int(plan.granted.sum()),
                granted_best=int(best.granted.sum()),
            )
        )
    return pd.DataFrame(rows)


def recalibrated(samples: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """The same samples with the index that another calibration would have given them.

    Args:
        samples: as from ``measure_pai``.
        calibration: the other constants.

    Returns:
        A copy with a new column ``pai``; as in the measurement, the distance in it is the mean over the users.
    """
    _has_columns("samples", samples, "prompt", "seed", "split_point", "distance", "text_score")
    instance_of("calibration", calibration, Calibration)
    apart = samples.groupby(["prompt", "seed", "split_point"])["distance"].transform("mean")
    return samples.assign(pai=calibration.pai(samples["text_score"], apart))


def schedule_samples(main: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Samples measured under each way of spacing the steps, one seed, all on the scale of 200 steps.

    Args:
        main: the full measurement; its first seed stands for the model's own schedule.
    """
    found = {"its own (DDIM, 50 steps)": main[main["seed"] == main["seed"].min()]}
    for name in SCHEDULES:
        found[SCHEDULE_LABELS[name]] = read_table("quality", "schedules", f"{name}.csv")
    return {label: on_released_scale(samples) for label, samples in found.items()}


def schedule_fits(
    samples: dict[str, pd.DataFrame], resamples: int = 200, seed: int = 0, free_ceiling: bool = False
) -> pd.DataFrame:
    """Steepness and midpoint under each schedule, and the noise level at which half of the final index is reached.

    Args:
        samples: as from ``schedule_samples``.
        resamples, seed, free_ceiling: see ``accuracy_fit``.

    Returns:
        One row a schedule: ``steepness`` (per step of 200) and ``midpoint`` (steps of 200) with 95 % ``low`` and
        ``high`` of the midpoint, ``r_squared``, ``half_sigma``: the noise per unit of signal where the mean index
        crosses one half of its final value.
    """
    rows = {}
    for label, table in samples.items():
        fit, intervals = accuracy_fit(table, resamples, seed, free_ceiling)
        means = table.groupby("split_point")[["pai", "sigma"]].mean()
        half_sigma = np.exp(np.interp(means["pai"].iloc[-1] / 2, means["pai"], np.log(means["sigma"].clip(lower=1e-3))))
        rows[label] = {
            "steepness": fit.model.steepness,
            "midpoint": fit.model.midpoint,
            "midpoint low": intervals.loc["midpoint", "low"],
            "midpoint high": intervals.loc["midpoint", "high"],
            "ceiling": fit.model.ceiling,
            "r_squared": fit.r_squared,
            "half_sigma": half_sigma,
        }
    return pd.DataFrame(rows).T

"""Measured latency profiles as tables, and what planning with the wrong latency model costs."""

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from splitpoint.checks import finite_number, instance_of, whole_number
from splitpoint.files import data_path, project_root, read_meta, results_path
from splitpoint.offloading import LatencyModel, SystemParameters, evaluate, sample_instance, solve
from splitpoint.offloading.fits import fit_two_piece, line_error
from splitpoint.offloading.hardware import (
    KEY,
    LARGEST_BATCH,
    RATE,
    Curve,
    latency_fits,
    measured_profiles,
    read_profile,
)
from splitpoint.tables import provenance_line


def profile_files() -> list:
    """Measured profiles: those that ship, then this machine's own in ``results/`` (``make profile``)."""
    found = sorted(data_path("latency_profiles").glob("*.csv"))
    shipped = [path for path in found if path.name not in ("published.csv", "named.csv")]
    mine = results_path("my_machine.csv")
    if not mine.exists():
        return shipped
    try:
        read_meta(mine)
    except ValueError as error:  # cut off while it was written, or changed by hand
        print(f"results/{mine.name} is left out: {error}")
        return shipped
    return [*shipped, mine]


def measured_curves() -> dict[tuple, Curve]:
    """All measured curves, checked; printed is when and on what each file was measured."""
    curves = {}
    for path in profile_files():
        print(f"{path.relative_to(project_root())}: {provenance_line(read_meta(path))}")
        for key, curve in read_profile(path).items():
            curves.pop(key, None)  # the same setting measured again counts as the later one, your machine's as the last
            curves[key] = curve
    return curves


def curve_name(key: tuple[str, ...]) -> str:
    """Machine, number type and mode of a curve, short enough for a legend."""
    machine = re.sub(r"\((R|TM)\)|Processor|CPU|@.*|,.*", "", key[0]).split()
    return f"{' '.join(machine)}, {key[2]}, {key[3]}"


def share_of_matrix_rate() -> pd.DataFrame:
    """Operations a second of every measured step over those of a large matrix product on the same machine.

    Returns:
        A row a curve, indexed by ``curve, architecture, guidance``; a column a batch size. The product is in the
        curve's number type, timed right after it; a file without its rate is left out, and one that timed it once
        for all curves of a number type: hours apart, a shared machine is another machine.
    """
    found = []
    for path in profile_files():
        rows = pd.read_csv(path)
        if RATE not in rows or _timed_once(rows):
            continue
        rows = rows[rows["status"] == "ok"]
        rows = rows.assign(curve=[curve_name(key) for key in rows[list(KEY)].itertuples(index=False)])
        medians = rows.groupby(["curve", "architecture", "guidance", "batch_size"])[
            ["step_s", "model_flop", RATE]
        ].median()
        found.append((medians["model_flop"] / medians["step_s"] / medians[RATE]).unstack())
    return pd.concat(found)


def _timed_once(rows: pd.DataFrame) -> bool:
    """Whether several curves of one number type share one matrix rate."""
    curves = rows.groupby("dtype")[list(KEY)].apply(lambda group: len(group.drop_duplicates()))
    rates = rows.groupby("dtype")[RATE].nunique()
    return bool(((curves > 1) & (rates == 1)).any())


def line_table() -> pd.DataFrame:
    """``k`` and ``h`` in milliseconds with 95 % intervals for every measured curve, fitted up to batch 18.

    Columns beside them: ``R²`` and the line's largest relative error at measured batches inside 1 … 18 and beyond.
    """
    rows = []
    for path in profile_files():
        curves = read_profile(path)
        for key, fit in latency_fits(path, LARGEST_BATCH).items():
            sizes, medians = curves[key].medians()
            error = np.abs(line_error(fit.model, sizes, medians))
            inside = sizes <= LARGEST_BATCH
            ms = {name: tuple(1e3 * np.array(ends)) for name, ends in fit.intervals.items()}
            rows.append(
                {
                    "curve": curve_name(key),
                    "architecture": key[1],
                    "guidance": key[4],
                    "k (ms)": 1e3 * fit.model.slope_s,
                    "k interval": _from_to(ms["slope_s"]),
                    "h (ms)": 1e3 * fit.model.intercept_s,
                    "h interval": _from_to(ms["intercept_s"]),
                    "R²": fit.r_squared,
                    "error, 1–18": error[inside].max(),
                    "error, beyond": error[~inside].max() if (~inside).any() else np.nan,
                }
            )
    return pd.DataFrame(rows)


def _from_to(ends: tuple[float, float]) -> str:
    digits = 0 if max(np.abs(ends)) >= 100 else 2
    return " … ".join(f"{end:,.{digits}f}" for end in ends)


def measured_window(edge_gpu: LatencyModel, packet_bits: float) -> dict:
    """``profiles`` and ``parameters`` for ``sample_instance`` and ``reward_sweep`` on a measured edge.

    Args:
        edge_gpu: line fitted to a measured machine.
        packet_bits: measured size of the hand-over packet, in bits.

    Returns:
        Users' devices slower by the published ratios; the measured packet; everything else as released.

    Raises:
        ValueError: for what is no line, or a size that is not positive.
    """
    instance_of("edge_gpu", edge_gpu, LatencyModel)
    finite_number("packet_bits", packet_bits, 0.0)
    return {"profiles": measured_profiles(edge_gpu), "parameters": SystemParameters(intermediate_bits=packet_bits)}


def loss_of_the_line(
    curve: Curve,
    seeds: Iterable[int] = range(200),
    packet_bits: float = 4.4e6,
    num_users: int = 12,
    num_edge_gpus: int = 4,
) -> pd.DataFrame:
    """Utility lost by planning with a straight line where the measured curve bends.

    The same windows are solved under the line and under the line with a bend, and both plans are evaluated under the
    latter.

    Args:
        curve: measured step latencies, at least four batch sizes.
        seeds: one window each.
        packet_bits: hand-over per granted user.
        num_users, num_edge_gpus: of the windows.

    Returns:
        One row a window: ``seed``, ``lost_s`` (utility, seconds per user), ``share_lost`` (of the gain over all-local),
        ``granted_line``, ``granted_bent``.

    Raises:
        ValueError: for a number outside its range.
    """
    instance_of("curve", curve, Curve)
    if not isinstance(seeds, Iterable) or isinstance(seeds, (str, bytes)):
        raise ValueError(f"seeds={seeds!r} are no whole numbers; valid is for instance range(200)")
    seeds = list(seeds)
    for seed in seeds:
        whole_number("seeds", seed, 0)
    whole_number("num_users", num_users, 1)
    whole_number("num_edge_gpus", num_edge_gpus, 1)
    sizes, medians = curve.medians()
    line = fit_line(curve)
    bent, rows = fit_two_piece(sizes, medians).shared_by(num_edge_gpus), []
    for seed in seeds:
        drawn = sample_instance(
            num_users, num_edge_gpus, np.random.default_rng([seed, num_users]), **measured_window(line, packet_bits)
        )
        truth = replace(drawn, edge=bent)
        plans = {"line": solve(drawn), "bent": solve(truth), "local": solve(truth, "all_local")}
        utility = {name: evaluate(truth, plan).utility for name, plan in plans.items()}
        lost, gain = utility["bent"] - utility["line"], utility["bent"] - utility["local"]
        rows.append(
            dict(
                seed=seed,
                lost_s=lost / num_users,
                share_lost=lost / gain if gain > 0 else 0.0,
                granted_line=int(plans["line"].granted.sum()),
                granted_bent=int(plans["bent"].granted.sum()),
            )
        )
    return pd.DataFrame(rows)


def fit_gap(curve: Curve) -> float:
    """Largest relative error of a curve's line at its measured batches, inside the fitted range and beyond."""
    instance_of("curve", curve, Curve)
    return float(np.abs(line_error(fit_line(curve), *curve.medians())).max())


def fit_line(curve: Curve) -> LatencyModel:
    """The line through a curve's medians up to batch 18, its intercept held at zero if it would be negative."""
    instance_of("curve", curve, Curve)
    return curve.fit(nonnegative=True).model

"""Named machines as tables: their lines, what the released lines resemble, and what the wrong machine costs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from splitpoint.checks import finite_number, whole_number
from splitpoint.offloading import LatencyModel, evaluate, hardware, published_latency, published_profiles, solve
from splitpoint.offloading.curves import TableLatency, TwoPieceLatency
from splitpoint.offloading.fits import line_error
from splitpoint.offloading.hardware import POPULATIONS, RELEASED_DEVICES, Machine, Scenario
from splitpoint.tables import code_digest, load_or_run

#: edges of notebook 08, name and software
EDGES = (
    ("A100", "compiled"),
    ("H100 PCIe", "vanilla"),
    ("RTX 4090", "eager"),
    ("H100 PCIe MIG 4g.40gb", "vanilla"),
    ("H100 PCIe MIG 2g.20gb", "vanilla"),
    ("T4", "eager"),
)
#: edges of notebook 04's table of pairs: one card with four kinds of software (one source), then others
PAIRS = (
    ("A100 40GB", "compiled"),
    ("A100 40GB", "eager"),
    ("A100 40GB", "xformers"),
    ("A100 40GB", "vanilla"),
    ("H100 PCIe", "vanilla"),
    ("RTX 4090", "eager"),
    ("V100", "eager"),
    ("A10", "xformers"),
    ("H100 PCIe MIG 2g.20gb", "vanilla"),
    ("T4", "eager"),
)
FORMS = ("line", "floor", "table")
#: k within a tenth, and h within a tenth of one step at batch 1
RESEMBLES = 0.1


def edge_machines(dtype: str = "fp16") -> list[Machine]:
    """Every machine and software with three batch sizes or more, Stable Diffusion 1.x at 512 × 512."""
    family = hardware.FAMILIES["sd"]
    return [
        m
        for m in hardware.machines()
        if len(m.batch) >= 3 and m.rows[0]["architecture"] in family and m.rows[0]["dtype"] == dtype
    ]


def label(machine: Machine) -> str:
    """Name and software, for legends and tables."""
    return f"{machine.name}, {machine.software}"


def line_table(found: Iterable[Machine]) -> pd.DataFrame:
    """Lines of named machines in milliseconds with 95 % intervals, and how far each model is off at worst.

    Args:
        found: machines with three batch sizes or more.

    Returns:
        A row a machine: ``machine, software, scope, batches, k (ms), k interval, h (ms), h interval``, the line's R²,
        the worst relative error of line and floor, and the floor itself (NaN where the machine has none).
    """
    rows = []
    for machine in found:
        fit, floor = machine.fit(), machine.floor()
        rows.append(
            {
                "machine": machine.name,
                "software": machine.software,
                "scope": machine.scope,
                "batches": ",".join(f"{b:g}" for b in machine.batch),
                "k (ms)": 1e3 * fit.model.slope_s,
                "k interval": _from_to(fit.intervals["slope_s"]),
                "h (ms)": 1e3 * fit.model.intercept_s,
                "h interval": _from_to(fit.intervals["intercept_s"]),
                "R²": fit.r_squared,
                "worst, line": _worst(fit.model, machine),
                "worst, floor": _worst(floor, machine),
                "floor (ms)": 1e3 * floor.at_bend_s if isinstance(floor, TwoPieceLatency) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _worst(model, machine: Machine) -> float:
    return float(np.abs(line_error(model, machine.batch, machine.seconds)).max())


def _from_to(ends: tuple[float, float]) -> str:
    return " … ".join(f"{1e3 * end:.1f}" for end in ends)


def point_table(found: Iterable[Machine]) -> pd.DataFrame:
    """The published numbers behind machines, a row a number, with its unit, source and version."""
    columns = ("software_detail", "scope", "batch_size", "num_steps", "published_value", "published_unit", "step_s")
    where = ("source", "source_version", "licence")
    rows = [{"machine": m.name} | {name: row[name] for name in (*columns, *where)} for m in found for row in m.rows]
    return pd.DataFrame(rows).astype({"batch_size": int, "step_s": float})


def device_table(users: str) -> pd.DataFrame:
    """Devices of a named population: step at batch 1, the digits' uncertainty, what the step holds, its source."""
    rows = []
    for name, weight in POPULATIONS[users].items():
        machine = hardware.device(name)
        low, high = machine.rounding_s
        rows.append(
            {
                "device": machine.name,
                "weight": weight,
                "step (s)": machine.step_s,
                "rounding": f"± {100 * (high - low) / 2 / machine.step_s:.1f} %",
                "network": machine.rows[0]["architecture"],
                "scope": machine.scope,
                "source": machine.rows[0]["source"].split()[0],
            }
        )
    return pd.DataFrame(rows).sort_values("step (s)", ignore_index=True)


def resemblance(dtype: str = "fp16") -> pd.DataFrame:
    """Which named machine each of the eleven released lines is nearest to.

    The distance is the larger of two: how far the slopes are apart, as a share of the released one, and how far the
    intercepts are apart, as a share of the released step at batch 1.

    Args:
        dtype: number type of the named machines; the released run used fp16.

    Returns:
        A row a released line: ``k (ms), h (ms)``, the nearest machine and software with its own, the ``distance``, and
        ``resembles``: every machine within ``RESEMBLES``, or ``none``.
    """
    lines = [(m, m.line()) for m in edge_machines(dtype)]
    rows = []
    for index, released in enumerate(published_latency()):
        near = sorted((_distance(line, released), i) for i, (_, line) in enumerate(lines))
        (distance, first), alike = near[0], [lines[i][0].name for far, i in near if far <= RESEMBLES]
        machine, line = lines[first]
        rows.append(
            {
                "device_index": index,
                "k (ms)": 1e3 * released.slope_s,
                "h (ms)": 1e3 * released.intercept_s,
                "nearest": label(machine),
                "its k (ms)": 1e3 * line.slope_s,
                "its h (ms)": 1e3 * line.intercept_s,
                "distance": distance,
                "resembles": ", ".join(dict.fromkeys(alike)) or "none",
            }
        )
    return pd.DataFrame(rows).set_index("device_index")


def _distance(line, released) -> float:
    slopes = abs(line.slope_s / released.slope_s - 1)
    return max(slopes, abs(line.intercept_s - released.intercept_s) / float(released.step_latency_s(1)))


def released_against_named(num_edge_gpus: int = 16) -> pd.DataFrame:
    """What the released parameters assume, beside the range of the named machines.

    Args:
        num_edge_gpus: GPUs that the released edge counts as one machine.

    Returns:
        A row a quantity: the released value; smallest, median and largest of the named machines (of the named
        populations for devices); the share of them below the released value.
    """
    finite_number("num_edge_gpus", num_edge_gpus, 1)
    found, released = edge_machines(), published_profiles()
    one, shared = released.edge_gpu, released.edge_gpu.shared_by(num_edge_gpus)
    alone = [m.seconds[0] for m in found if m.batch[0] == 1]
    full = [m.seconds[-1] for m in found if m.batch[-1] == 16]
    saving = [m.seconds[-1] / 16 / m.seconds[0] for m in found if m.batch[0] == 1 and m.batch[-1] == 16]
    ratios = [m.line().intercept_s / m.line().slope_s for m in found]
    devices = np.concatenate([[float(d.step_latency_s(1)) for d in hardware.population(p)[0]] for p in POPULATIONS])
    rows = {
        "edge, one step at batch 1 (ms)": (1e3 * shared.step_latency_s(1), 1e3 * np.array(alone)),
        "edge, one step at batch 16 (ms)": (1e3 * shared.step_latency_s(16), 1e3 * np.array(full)),
        "one GPU, h / k": (one.intercept_s / one.slope_s, ratios),
        "one GPU, an image in a batch of 16 over one alone": (
            one.step_latency_s(16) / 16 / one.step_latency_s(1),
            saving,
        ),
        "devices, fastest (s)": (released.device_steps_s.min(), devices),
        "devices, slowest (s)": (released.device_steps_s.max(), devices),
    }
    table = {
        name: {
            "released": float(value),
            "named, least": np.min(named),
            "median": np.median(named),
            "most": np.max(named),
            "named below": np.mean(np.asarray(named) < value),
        }
        for name, (value, named) in rows.items()
    }
    return pd.DataFrame(table).T


def pair_losses(
    name: str,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    *,
    users: str = "phones of 2021–2025",
    num_users: int = 12,
    seeds: int = 40,
) -> pd.DataFrame:
    """Utility lost by planning with one named machine's table where another's is true.

    The windows are drawn on the true machine, and its batch limit holds for every plan.

    Args:
        name: of the stored table, see ``tables.load_or_run``.
        pairs: names and software; every one is believed on every one.
        users: population, see ``hardware.population``.
        num_users: of each window.
        seeds: windows for each true machine, seeds from 0.

    Returns:
        A row per true machine, belief and window: ``truth, believed, form, num_users, seed, lost_s`` (per user),
        ``gain_s`` (per user, of the best plan over serving nobody), ``granted, granted_best``.
    """
    beliefs = [[*pair, "table"] for pair in pairs]
    common = {"beliefs": beliefs, "users": users, "num_users": num_users, "seeds": seeds}
    return _losses(name, [{"truth": list(pair)} | common for pair in pairs])


def form_losses(
    name: str,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    *,
    users: str = "phones of 2021–2025",
    num_users: Sequence[int] = (2, 12),
    seeds: int = 40,
) -> pd.DataFrame:
    """Utility lost by planning with a machine's line or its floor where its own table is true; as ``pair_losses``."""
    common = {"users": users, "seeds": seeds}
    return _losses(
        name,
        [
            {"truth": list(pair), "beliefs": [[*pair, form] for form in FORMS], "num_users": number} | common
            for pair in pairs
            for number in num_users
        ],
    )


def _losses(name: str, tasks: list[dict]) -> pd.DataFrame:
    for task in tasks:
        whole_number("num_users", task["num_users"], 1)
        whole_number("seeds", task["seeds"], 1)
    settings = {"tasks": tasks, "code": code_digest("offloading"), "here": code_digest("study")}
    return load_or_run(name, _losses_on, tasks, settings=settings, command=f"splitpoint.study.hardware, {name!r}")


def _losses_on(truth, beliefs, users, num_users, seeds) -> list[dict]:
    machine = hardware.edge(*truth)
    scenario = Scenario(machine.table(), machine.largest_batch, users)
    rows = []
    for seed in range(seeds):
        window = scenario.sample(num_users, np.random.default_rng([seed, num_users]))
        best, local = solve(window), evaluate(window, solve(window, "all_local")).utility
        most = evaluate(window, best).utility
        for belief in beliefs:
            believed = hardware.edge(*belief[:2])
            plan = solve(replace(window, edge=_form(believed, belief[2])))
            rows.append(
                {
                    "truth": label(machine),
                    "believed": label(believed),
                    "form": belief[2],
                    "num_users": num_users,
                    "seed": seed,
                    "lost_s": (most - evaluate(window, plan).utility) / num_users,
                    "gain_s": (most - local) / num_users,
                    "granted": int(plan.granted.sum()),
                    "granted_best": int(best.granted.sum()),
                }
            )
    return rows


def _form(machine: Machine, form: str):
    return {"line": machine.line, "floor": machine.floor, "table": machine.table}[form]()


def loss_matrix(losses: pd.DataFrame, column: str = "believed") -> pd.DataFrame:
    """Mean loss as a share of the mean gain, a row a true machine, a column a belief, in the order of the table.

    One means that all is lost that the edge could have gained; more, that it had better served nobody.

    Args:
        losses: from ``pair_losses`` or ``form_losses``.
        column: what the columns are, ``believed``, ``form`` or ``num_users``.
    """
    means = losses.groupby(["truth", column], sort=False)[["lost_s", "gain_s"]].mean()
    share = (means["lost_s"] / means["gain_s"]).unstack()
    return share.loc[losses["truth"].unique(), losses[column].unique()]


def scenario_settings(scenario: Scenario) -> dict:
    """``profiles`` and ``parameters`` of a scenario of 200 steps, for ``sweeps.reward_sweep``.

    Raises:
        ValueError: for another number of steps, whose preferences ``Scenario.sample`` scales and the sweep does not.
    """
    if scenario.num_steps != hardware.RELEASED_STEPS:
        raise ValueError(f"num_steps={scenario.num_steps} is not {hardware.RELEASED_STEPS}; use Scenario.sample")
    return {"profiles": scenario.profiles, "parameters": scenario.parameters}


def gain_over_local(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds per user that the exact optimum gains over serving nobody, a row a window, from ``reward_sweep``."""
    keys = ["num_users", "num_edge_gpus", "seed"]
    best, local = (table[table["method"] == m].set_index(keys) for m in ("exact", "all_local"))
    gain = (best["reward"] - local["reward"]) / 0.1  # the reward is a tenth of the utility per user
    return best.assign(gain_s=gain).reset_index()


def who_is_served(
    edge: tuple[str, str] = EDGES[0], users: str = "phones of 2021–2025", *, num_users: int = 12, seeds: int = 100
) -> pd.DataFrame:
    """Whose requests a named edge grants, device by device, under the exact optimum.

    Args:
        edge: name and software.
        users: a named population.
        num_users: of each window.
        seeds: windows, seeds from 0.

    Returns:
        A row a device, fastest first: its step, how often it asked, the share of its requests that were granted, and
        how many steps of a granted image it keeps.
    """
    scenario = hardware.scenario(*edge, users)
    names = {hardware.device(name).step_s: name for name in POPULATIONS[users]}
    found = []
    for seed in range(seeds):
        window = scenario.sample(num_users, np.random.default_rng([seed, num_users]))
        plan = solve(window)
        kept = np.where(plan.granted, plan.split_points, np.nan)
        found += zip(window.device_step_s, plan.granted, kept)
    table = pd.DataFrame(found, columns=["step_s", "granted", "steps_kept"])
    means = table.groupby("step_s").agg(
        asked=("granted", "size"), granted=("granted", "mean"), kept=("steps_kept", "mean")
    )
    return means.reset_index().assign(device=lambda rows: rows["step_s"].map(names)).set_index("device")


def steps_table(
    edge: tuple[str, str] = EDGES[0],
    users: str = "phones of 2021–2025",
    *,
    num_users: int = 12,
    steps: Sequence[int] = (200, 50, 20),
    seeds: int = 60,
) -> pd.DataFrame:
    """The same run in fewer, larger steps, with the small packet and with the released one.

    Returns:
        A row per packet and number of steps: users granted, share of the steps at home of those, seconds gained per
        user over serving nobody.
    """
    machine, rows = hardware.edge(*edge), []
    for packet, bits in (("latent", hardware.LATENT_BITS), ("released", 4.4e6)):
        for num_steps in steps:
            scenario = Scenario(machine.table(), machine.largest_batch, users, num_steps, bits)
            found = []
            for seed in range(seeds):
                window = scenario.sample(num_users, np.random.default_rng([seed, num_users]))
                plan, local = solve(window), solve(window, "all_local")
                gain = evaluate(window, plan).utility - evaluate(window, local).utility
                at_home = plan.split_points[plan.granted].mean() / num_steps if plan.granted.any() else np.nan
                found.append((plan.granted.mean(), at_home, gain / num_users))
            granted, at_home, gain = np.nanmean(found, axis=0)
            rows.append(dict(packet=packet, num_steps=num_steps, granted=granted, at_home=at_home, gain_s=gain))
    return pd.DataFrame(rows).set_index(["packet", "num_steps"])


def side_by_side(line: LatencyModel, num_gpus: int, max_batch: int = 18) -> TableLatency:
    """Several GPUs that each run a part of the batch, instead of one machine as many times as fast.

    Args:
        line: of one GPU.
        num_gpus: they share the batch as evenly as whole requests allow; the fullest decides.
        max_batch: of all together.

    Returns:
        Seconds of one step of every batch from 1 to ``max_batch``.
    """
    whole_number("num_gpus", num_gpus, 1)
    whole_number("max_batch", max_batch, 2)
    batch = np.arange(1, max_batch + 1)
    seconds = line.step_latency_s(-(-batch // num_gpus))
    return TableLatency(tuple(map(float, batch)), tuple(map(float, seconds)))


def pooled_or_apart(
    num_users: Sequence[int] = (4, 8, 12, 16, 20), num_gpus: int = 16, *, seeds: int = 100
) -> pd.DataFrame:
    """Plans for the released GPUs as one machine 16 times as fast, and side by side; the same windows for both.

    Users, devices and preferences are the released ones, drawn for the pooled edge; packet and transmission are those
    of ``Scenario``.

    Returns:
        A row per number of users: users granted on either edge, seconds gained per user over serving nobody, and what
        the plan for the pooled edge would gain where the GPUs stand side by side.
    """
    gpu = published_profiles().edge_gpu
    apart, scenario = side_by_side(gpu, num_gpus), Scenario(gpu.shared_by(num_gpus), 18, RELEASED_DEVICES)
    rows = []
    for users in num_users:
        found = []
        for seed in range(seeds):
            pooled = scenario.sample(users, np.random.default_rng([seed, users]))
            truth = replace(pooled, edge=apart)
            plans = solve(pooled), solve(truth)
            local = evaluate(pooled, solve(pooled, "all_local")).utility
            worth = [
                evaluate(w, p).utility - local for w, p in ((pooled, plans[0]), (truth, plans[1]), (truth, plans[0]))
            ]
            found.append([*(plan.granted.sum() for plan in plans), *(value / users for value in worth)])
        rows.append([users, *np.mean(found, axis=0)])
    columns = [
        "num_users",
        "granted, pooled",
        "granted, apart",
        "gain_s, pooled",
        "gain_s, apart",
        "pooled plan, apart",
    ]
    return pd.DataFrame(rows, columns=columns).set_index("num_users")

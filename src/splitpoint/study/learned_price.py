"""Experiments of notebook 11: a learned cost curve, judged on the twin without noise and at full size on unseen paths.

``splitpoint train-policy twin`` and ``… edge`` train the curves that ship, ``… price`` the learned price; ``… judge``,
``… without`` and ``… ablation`` make the tables again.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import trim_mean

from splitpoint.checks import finite_number, instance_of, one_of, whole_number
from splitpoint.edge import (
    Arrivals,
    Edge,
    FittedTrace,
    HiddenRegimes,
    LearnedCurve,
    Poisson,
    Ramp,
    System,
    Twin,
    Users,
    draw_paths,
    fitted_trace,
    load_curve,
    make_policy,
    save_curve,
    simulate,
)
from splitpoint.edge.learned_price import SHIPPED, PriceWeights, save_weights
from splitpoint.edge.policies import Policy, StatePrice
from splitpoint.files import can_write, data_path, results_path, sha256, write_meta, write_rows
from splitpoint.learning.curve_training import CONTEXT, train_policy
from splitpoint.learning.price_search import search_price
from splitpoint.learning.rollouts import EdgeGround, TwinGround
from splitpoint.offloading.hardware import scenario
from splitpoint.study.living_edge import named_edge, released_edge
from splitpoint.tables import code_digest, load_or_run

#: rates and machines that the twin's agent is trained on; it is judged on others, too
TWIN_RATES_HZ, TWIN_LEVELS = (0.5, 1.0, 2.0, 3.0), ((2.0, 4.0, 8.0), (1.0, 2.0, 4.0))
#: the twin's state says everything, so that this is all that a curve needs there
TWIN_CONTEXT = (
    "free", "batch", "waiting", "stay_40", "stay_60", "stay_80", "stay_100", "stay_120", "rate_10", "next_step_s",
)  # fmt: skip
EDGE_KNOTS = (40.0, 80.0, 120.0)
EDGE_CURVE = data_path("agents", "edge_curve.safetensors")
#: what is needed to train each curve that ships
BUDGETS = {
    "twin": dict(generations=7, count=8000, epochs=60),
    "edge": dict(generations=6, count=560, epochs=60, knots=EDGE_KNOTS),
}
#: and for the price
PRICE_BUDGET = dict(iterations=160, pairs=24, paths=4, at_once=8)


def twin_grounds() -> list[TwinGround]:
    """Small edges at four rates and two levels of compute."""
    return [TwinGround(Twin(rate, levels)) for rate in TWIN_RATES_HZ for levels in TWIN_LEVELS]


def edge_grounds() -> list[EdgeGround]:
    """The released edge, constant and fluctuating, slower ones, and four together; at constant rates and moving ones.

    Of the scenarios that the agent is judged on, only three a second at a constant rate is among them, on other paths.
    """
    long_s, slow_s = 50.0, 120.0
    moving = [Ramp(1.0, 24.0, long_s), Ramp(24.0, 1.0, long_s), HiddenRegimes((2.0, 8.0, 24.0), 15.0, long_s)]
    rates = [Poisson(rate, long_s) for rate in (1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 12.0, 18.0, 24.0)]
    cases = [((released_edge(),), asked) for asked in rates + moving]
    cases += [((released_edge(compute="fluctuating"),), asked) for asked in rates + moving]
    several = tuple(Edge(released_edge(4).latency, transfer_s=0.1 * far) for far in (0, 1, 2, 3))
    cases += [(several, Poisson(rate, long_s)) for rate in (3.0, 6.0, 12.0)]
    slow = [((released_edge(2),), Poisson(rate, slow_s)) for rate in (0.5, 1.0, 2.0, 4.0)]
    rule = StatePrice(0.0, 2.0)
    grounds = [EdgeGround(System(edges), asked, rule, 2.0, 15.0) for edges, asked in cases]
    return grounds + [EdgeGround(System(edges), asked, rule, 2.0, 50.0) for edges, asked in slow]


def price_grounds() -> list[tuple[System, Arrivals]]:
    """What the price is learned on: machines of several speeds, still, moving or four at once; steady and moving rates.

    Of the scenarios that it is judged on, only three a second at a constant rate is among them, on other paths; of
    their machines only the released one.
    """
    long_s, slow_s, released = 50.0, 120.0, Users()

    def steady(edges, rates_hz, horizon_s=long_s, users=released):
        return [(System(edges), Poisson(rate, horizon_s, users)) for rate in rates_hz]

    one, moving = (released_edge(),), (released_edge(compute="fluctuating"),)
    several = tuple(Edge(released_edge(4).latency, transfer_s=0.1 * far) for far in (0, 1, 2, 3))
    regimes = [HiddenRegimes((2.0, 8.0, 24.0), 15.0, long_s), HiddenRegimes((3.0, 12.0), 12.0, long_s)]
    ramps = [Ramp(1.0, 26.0, long_s), Ramp(26.0, 1.0, long_s)]
    jumps = [Ramp(3.0, 14.0, long_s, jump_s=25.0), Ramp(14.0, 3.0, long_s, jump_s=25.0)]
    bursts = [FittedTrace(rate, cv, 0.0, long_s) for rate, cv in ((4.0, 6.0), (6.0, 2.5))]
    grounds = steady(one, (0.7, 1.5, 3.0, 4.5, 6.0, 9.0, 12.0, 14.0, 18.0, 24.0, 36.0))
    grounds += [(System(one), asked) for asked in ramps + jumps + regimes + bursts]
    grounds += steady(moving, (1.5, 2.5, 4.0, 7.0, 9.0, 14.0))
    grounds += [(System(moving), asked) for asked in ramps + jumps[:1] + regimes]
    grounds += [*steady(several, (3.0, 6.0, 12.0, 20.0)), (System(several), regimes[0])]
    grounds += steady((released_edge(2),), (0.5, 2.0), slow_s) + steady((released_edge(5),), (1.0, 3.0, 7.0), 70.0)
    for gpu in ("RTX 4090", "V100"):
        edge, users = named_edge(scenario(gpu, software="compiled", num_steps=200))
        grounds += steady((edge,), (0.4, 1.2), slow_s, users)
    return grounds


def train_price(seed: int = 0, jobs: int = 2, after=None, **changes) -> PriceWeights:
    """The learned price that ships; an interrupted search goes on.

    Args:
        seed: of everything random.
        jobs: processes.
        after: see ``search_price``.
        changes: to ``PRICE_BUDGET``.
    """
    budget = PRICE_BUDGET | changes
    return search_price(
        price_grounds(), seed=seed, jobs=jobs, folder=results_path(f"policy_price_{seed}"), after=after, **budget
    )


def train(name: str, seed: int = 0, jobs: int = 2, after=None, **changes) -> LearnedCurve:
    """One of the curves that ship; an interrupted training goes on.

    Args:
        name: ``twin`` or ``edge``.
        seed: of everything random.
        jobs: processes.
        after: see ``train_policy``.
        changes: to its budget in ``BUDGETS``.
    """
    one_of("name", name, BUDGETS)
    grounds = twin_grounds() if name == "twin" else edge_grounds()
    features = TWIN_CONTEXT if name == "twin" else CONTEXT
    budget = BUDGETS[name] | changes
    folder = results_path(f"policy_{name}_{seed}")
    return train_policy(grounds, features=features, seed=seed, jobs=jobs, folder=folder, after=after, **budget)


def judge_twin(curve: LearnedCurve, rates_hz: Sequence[float], levels: Sequence[Sequence[float]]) -> pd.DataFrame:
    """Share of the exact online optimum in every twin, without noise.

    Args:
        curve: one for all.
        rates_hz: requests a second.
        levels: of compute, GPUs.

    Returns:
        ``rate_hz, levels, share``.
    """
    instance_of("curve", curve, LearnedCurve)
    rows = []
    for level in levels:
        for rate in rates_hz:
            ground = TwinGround(Twin(float(rate), tuple(level)))
            gain, best = ground.twin.evaluate(ground.choice(curve))[0], ground.twin.optimum()[0]
            rows.append(dict(rate_hz=rate, levels="/".join(f"{number:g}" for number in level), share=gain / best))
    return pd.DataFrame(rows)


#: what the twin's agent is trained without
WITHOUT = {
    "everything": {},
    "the rate": dict(features=tuple(name for name in TWIN_CONTEXT if name != "rate_10")),
    "the number waiting": dict(features=tuple(name for name in TWIN_CONTEXT if name != "waiting")),
    "how long members stay": dict(features=tuple(name for name in TWIN_CONTEXT if not name.startswith("stay"))),
    "hidden layers": dict(hidden=()),
    "a second generation": dict(generations=1),
}


def train_without(what: str, seed: int) -> list[dict]:
    """The twin's agent with one thing left out, on the twin at four rates, judged exactly at seven.

    Args:
        what: key of ``WITHOUT``.
        seed: of everything random.
    """
    one_of("what", what, WITHOUT)
    grounds = [TwinGround(Twin(rate)) for rate in TWIN_RATES_HZ]
    settings = dict(generations=5, count=4000, epochs=60, features=TWIN_CONTEXT, seed=seed) | WITHOUT[what]
    shares = judge_twin(train_policy(grounds, **settings), (0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0), TWIN_LEVELS[:1])
    return [dict(without=what, seed=seed, rate_hz=r, share=s) for r, s in zip(shares.rate_hz, shares.share)]


def without(seeds: int = 2) -> pd.DataFrame:
    """Every ablation of the twin's agent; stored and resumed.

    Args:
        seeds: trainings of each.
    """
    tasks = [dict(what=what, seed=seed) for what in WITHOUT for seed in range(seeds)]
    settings = dict(seeds=seeds, without=list(WITHOUT), code=code_digest("edge", "learning", "offloading"))
    return load_or_run(
        "twin_without", train_without, tasks, settings=settings, command="splitpoint train-policy without"
    )


@dataclass(frozen=True)
class Unseen:
    """A scenario to be judged on.

    Args:
        edges: machines.
        arrivals: requests.
        expected: what tuned rules expect; ``arrivals`` if left out. Where the rate changes unseen, a constant one.
    """

    edges: tuple[Edge, ...]
    arrivals: Arrivals
    expected: Arrivals | None = None


def scenarios(horizon_s: float = 60.0) -> dict[str, Unseen]:
    """By name: constant rates, compute that fluctuates, hidden regimes, drift, fitted traces, several and named edges.

    Args:
        horizon_s: when the edges close.
    """
    finite_number("horizon_s", horizon_s, 0.0, open_end=True)
    steady, moving = (released_edge(),), (released_edge(compute="fluctuating"),)
    several = tuple(Edge(released_edge(4).latency, transfer_s=0.03 * far) for far in (1, 2, 4, 8))
    named, crowd = named_edge(scenario("A100", num_steps=200))
    nominal = Poisson(8.0, horizon_s)
    regimes, drift = HiddenRegimes((4.0, 16.0), 20.0, horizon_s), Ramp(2.0, 20.0, horizon_s)
    return {
        "half a second": Unseen(steady, Poisson(0.5, horizon_s)),
        "3 a second": Unseen(steady, Poisson(3.0, horizon_s)),
        "8 a second": Unseen(steady, Poisson(8.0, horizon_s)),
        "16 a second": Unseen(steady, Poisson(16.0, horizon_s)),
        "30 a second": Unseen(steady, Poisson(30.0, horizon_s)),
        "3 a second, compute moves": Unseen(moving, Poisson(3.0, horizon_s)),
        "10 a second, compute moves": Unseen(moving, Poisson(10.0, horizon_s)),
        "hidden regimes": Unseen(steady, regimes, nominal),
        "hidden regimes, compute moves": Unseen(moving, regimes, nominal),
        "step from 4 to 16": Unseen(steady, Ramp(4.0, 16.0, horizon_s, jump_s=horizon_s / 2), nominal),
        "ramp from 2 to 20": Unseen(steady, drift, nominal),
        "ramp, compute moves": Unseen(moving, drift, nominal),
        "Azure, conversation": Unseen(steady, fitted_trace("azure_conversation", horizon_s), nominal),
        "Azure, code": Unseen(steady, fitted_trace("azure_code", horizon_s), nominal),
        "four edges": Unseen(several, Poisson(8.0, horizon_s)),
        "an A100, five times as long": Unseen((named,), Poisson(2.0, 5 * horizon_s, crowd)),  # it is slow
    }


#: of the paths that all are judged on; nothing is tuned on it
JUDGE_SEED = 5_000
#: rules with the same information; those after the bar take milliseconds to tens of them a decision
FAST, SLOW = ("posted_price", "state_price", "adaptive_price", "drift_plus_penalty", "learned", "learned_price"), (
    "fluid_resolving", "bayes_selector", "hindsight_duals", "rollout",
)  # fmt: skip
#: what no policy may: it knows the regime that the others must guess
SEEING = "sees the regime"
PATHS = (
    dict.fromkeys((*FAST, SEEING), 200)
    | dict.fromkeys(SLOW, 12)
    | {"drift_plus_penalty": 60, "fluid_resolving": 60, "rollout": 2}
)


def seeing(case: Unseen, seed: int, num_paths: int) -> Policy:
    """The rule with two numbers for each regime, tuned for it, switched by somebody who sees the regime.

    Args:
        case: with hidden regimes.
        seed, num_paths: of the paths that it will play.
    """
    hidden = case.arrivals
    instance_of("case", hidden, HiddenRegimes)
    assert isinstance(hidden, HiddenRegimes)
    rules = {rate: make_policy("state_price", case.edges, Poisson(rate)) for rate in hidden.rates_hz}
    seen = [hidden.regimes(np.random.default_rng([seed, number])) for number in range(num_paths)]

    def decide(observation):
        start, rates = seen[int(observation.run)]
        return rules[float(rates[np.searchsorted(start, observation.time_s, side="right") - 1])](observation)

    return decide


def play_scenario(scenario: str, policy: str, num_paths: int, seed: int = JUDGE_SEED) -> list[dict]:
    """Gains of one policy on the fixed paths of one scenario.

    Args:
        scenario: key of ``scenarios()``.
        policy: a name of ``edge.policies()``, ``learned`` (the curve that ships) or ``SEEING``.
        num_paths: the first of the paths, which are the same for all policies.
        seed: of the paths; nothing is tuned on it.
    """
    table, seconds = _played(scenario, policy, num_paths, seed)
    gains = np.bincount(table.replication, table.gain_s, minlength=num_paths)
    said = dict(scenario=scenario, policy=policy, decision_ms=1000 * seconds / max(len(table), 1))
    return [said | dict(path=path, gain_s=gain) for path, gain in enumerate(gains)]


def _played(scenario: str, policy: str, num_paths: int, seed: int) -> tuple[pd.DataFrame, float]:
    """Every request, and the seconds that playing took."""
    cases = scenarios()
    one_of("scenario", scenario, cases)
    whole_number("num_paths", num_paths, 1)
    case = cases[scenario]
    expected = case.expected or case.arrivals
    paths = draw_paths(case.edges, case.arrivals, seed, num_paths)
    if policy == "learned":
        made = load_curve(EDGE_CURVE)
    elif policy == SEEING:
        made = seeing(case, seed, num_paths)
    else:
        made = make_policy(policy, case.edges, expected)
    began = time.perf_counter()
    table = simulate(case.edges, paths, made)
    return table, time.perf_counter() - began


def granted_by_crowd(
    scenario: str = "Azure, code",
    names: Sequence[str] = ("learned_price", "learned", "adaptive_price", "fluid_resolving", "posted_price"),
    num_paths: int = 12,
    bounds: Sequence[int] = (0, 3, 10, 30),
    seed: int = JUDGE_SEED,
) -> pd.DataFrame:
    """Share of requests that is granted, by how many others came within the second before.

    Args:
        scenario: key of ``scenarios()``.
        names: policies.
        num_paths: the first of the fixed paths.
        bounds: smallest number of others in each column.
        seed: of the paths.

    Returns:
        ``policy, others`` (how many came), ``requests, granted`` (their share).
    """
    labels = [*(f"{low} to {high - 1}" for low, high in pairwise(bounds)), f"{bounds[-1]} or more"]
    rows = []
    for name in names:
        table = _played(scenario, name, num_paths, seed)[0].sort_values(["replication", "arrival_s"])
        others = table.groupby("replication").arrival_s.transform(
            lambda t: np.arange(len(t)) - np.searchsorted(t.to_numpy(), t.to_numpy() - 1.0)
        )
        crowd = np.searchsorted(bounds, others, side="right") - 1
        for place, granted in (table.granted_steps > 0).groupby(crowd):
            rows.append(dict(policy=name, others=labels[place], requests=len(granted), granted=granted.mean()))
    return pd.DataFrame(rows)


def judge(names: Sequence[str] = (*FAST, *SLOW, SEEING), paths: dict[str, int] = PATHS) -> pd.DataFrame:
    """Every policy on every scenario; stored, resumed, and run on all cores.

    Args:
        names: policies.
        paths: how many of each scenario's fixed paths each of them plays.

    Returns:
        ``scenario, policy, decision_ms, path, gain_s``, one row a path.
    """
    cases = scenarios()
    hidden = [case for case, unseen in cases.items() if isinstance(unseen.arrivals, HiddenRegimes)]
    tasks = [
        dict(scenario=case, policy=name, num_paths=paths[name])
        for name in names
        for case in (hidden if name == SEEING else cases)
    ]
    settings = dict(names=list(names), paths={name: paths[name] for name in names}, seed=JUDGE_SEED)
    settings |= dict(
        curve=sha256(EDGE_CURVE), price=sha256(SHIPPED), scenarios=repr(cases), code=code_digest("edge", "offloading")
    )
    return load_or_run(
        "learned_price", play_scenario, tasks, settings=settings, command="splitpoint train-policy judge"
    )


def judge_again(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """A stored table of ``judge`` with the rows of a few policies made anew, and the others' as they were.

    Args:
        path: of the table.
        names: policies.
    """
    stored = pd.read_csv(path)
    return pd.concat([stored[~stored.policy.isin(names)], judge(names)])


def paired(table: pd.DataFrame, policy: str = "learned", draws: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """How far a policy is ahead of every other one, path by path.

    Args:
        table: of ``judge``.
        policy: the one.
        draws: of the bootstrap over paths.
        seed: of the bootstrap.

    Returns:
        ``scenario, against, paths, ahead`` (interquartile mean of the difference over the other's mean gain), ``low,
        high`` (95 % interval), ``p`` (one-sided, by bootstrap) and ``p_holm`` (over scenarios, for each rival).
    """
    instance_of("table", table, pd.DataFrame)
    rng, rows = np.random.default_rng(seed), []
    for case, here in table.groupby("scenario", sort=False):
        gains = here.pivot(index="path", columns="policy", values="gain_s")
        for rival in gains.columns.drop(policy):
            both = gains[[policy, rival]].dropna()
            difference = ((both[policy] - both[rival]) / both[rival].abs().mean()).to_numpy()
            drawn = trim_mean(difference[rng.integers(len(both), size=(draws, len(both)))], 0.25, axis=1)
            low, high = np.quantile(drawn, (0.025, 0.975))
            ahead = float(trim_mean(difference, 0.25))
            p = (1 + np.sum(drawn <= 0)) / (1 + draws)
            rows.append(
                dict(scenario=case, against=rival, paths=len(both), ahead=ahead, low=low, high=high, p=float(p))
            )
    result = pd.DataFrame(rows)
    result["p_holm"] = result.groupby("against").p.transform(_holm)
    return result


def _holm(p: pd.Series) -> pd.Series:
    """Adjusted for looking at several scenarios."""
    order = p.sort_values()
    steps = order * np.arange(len(order), 0, -1)
    return steps.cummax().clip(upper=1.0).reindex(p.index)


def main() -> None:
    """``splitpoint train-policy``."""
    from splitpoint.study.edge_learners import ablation

    parser = argparse.ArgumentParser(
        prog="splitpoint train-policy",
        description="Train the cost curves and the price that ship, and judge them.",
        epilog="example: splitpoint train-policy twin",
    )
    tables = {
        "judge": (judge, "learned_price"),
        "bursts": (granted_by_crowd, "granted_by_crowd"),
        "without": (without, "twin_without"),
        "ablation": (ablation, "edge_learners"),
    }
    parser.add_argument("name", choices=(*BUDGETS, "price", *tables))
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    known = (*FAST, *SLOW, SEEING)
    only = "judge only this policy (may be repeated); the others' rows stay as they are stored"
    parser.add_argument("--policy", action="append", choices=known, help=only)
    options = parser.parse_args()
    if options.name in tables:
        make, file = tables[options.name]
        path = can_write("data", data_path("learning", f"{file}.csv"))
        table = judge_again(path, options.policy) if options.name == "judge" and options.policy else make()
        write_rows(path, table.round(6).to_dict("records"))
        write_meta(path, kind="simulated", command=f"splitpoint train-policy {options.name}", seed=0)
        return
    began = time.perf_counter()
    command = f"splitpoint train-policy {options.name}"

    def said(what: str):
        return lambda number, _: print(f"{what} {number}: {time.perf_counter() - began:.0f} s", flush=True)

    if options.name == "price":
        path = can_write("data", SHIPPED)
        save_weights(path, train_price(jobs=options.jobs, after=said("iteration")))
        settings = PRICE_BUDGET | dict(seconds=round(time.perf_counter() - began), jobs=options.jobs)
        write_meta(path, kind="trained", command=command, seed=0, settings=settings)
        return
    path = can_write("data", data_path("agents", f"{options.name}_curve.safetensors"))
    curve = train(options.name, jobs=options.jobs, after=said("generation"))
    save_curve(path, curve)
    settings = BUDGETS[options.name] | dict(seconds=round(time.perf_counter() - began))
    write_meta(path, kind="trained", command=command, seed=0, settings=settings)

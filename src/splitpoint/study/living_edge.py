"""Experiments of notebook 10: requests over time, every policy against the bound; the twin's exact table.

``splitpoint edge-tables policies`` and ``… twin`` write the tables that notebook 10 reads.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

from splitpoint.checks import a_row, a_sequence, finite_number, instance_of, one_of, whole_number
from splitpoint.edge import (
    ConstantCapacity,
    Edge,
    MarkovCapacity,
    Path,
    Poisson,
    Twin,
    Users,
    draw_paths,
    make_policy,
    policies,
    price_bound,
    simulate,
)
from splitpoint.edge.request import some_edges
from splitpoint.files import can_write, data_path, write_meta, write_rows
from splitpoint.offloading import published_latency
from splitpoint.offloading.hardware import RELEASED_STEPS, Scenario
from splitpoint.tables import code_digest, load_or_run

RATES_HZ = (2.0, 4.0, 8.0, 12.0, 16.0)
#: all but the one that takes tens of milliseconds a decision
QUICK = tuple(name for name in policies() if name not in ("rollout", "learned_price"))
COMPUTE = {"constant": ConstantCapacity(), "fluctuating": MarkovCapacity((1.0, 0.5, 0.25), 5.0)}


def released_edge(num_gpus: int = 16, compute: str = "constant") -> Edge:
    """The released edge: the fastest GPU's line divided by ``num_gpus``; ``compute`` is a key of ``COMPUTE``."""
    whole_number("num_gpus", num_gpus, 1)
    one_of("compute", compute, COMPUTE)
    return Edge(published_latency()[0].shared_by(num_gpus), COMPUTE[compute])


def named_edge(scenario: Scenario) -> tuple[Edge, Users]:
    """An edge and users with names (``offloading.hardware.scenario``) for requests over time.

    Preferences are drawn against the scenario's own edge, as in its windows.

    Args:
        scenario: of 200 steps, the number that this room counts in.

    Raises:
        ValueError: for another number of steps.
    """
    instance_of("scenario", scenario, Scenario)
    if scenario.num_steps != RELEASED_STEPS:
        raise ValueError(f"num_steps={scenario.num_steps} is not {RELEASED_STEPS}, the steps of an edge over time")
    handover_s = scenario.parameters.transfer_s_per_user
    edge = Edge(scenario.edge, max_batch=scenario.max_batch, transfer_s=handover_s)
    return edge, Users(scenario.profiles, scenario.edge)


def play(
    edges: Sequence[Edge], paths: Sequence[Path], named: dict[str, object], bounds: Sequence[float] | None = None
) -> pd.DataFrame:
    """Every policy on the same paths.

    Args:
        edges: at least one.
        paths: from ``draw_paths``.
        named: policies by the name that the table shows.
        bounds: of each path; the price bound if left out.

    Returns:
        One row a policy and path: ``policy, path, gain_s, bound_s, share`` (of the bound), ``granted`` (share of
        requests), ``steps`` (mean, of those granted).

    Raises:
        ValueError: for no edges, paths or policies, or bounds that are not one a path.
    """
    edges = some_edges(edges)
    for path in a_sequence("paths", paths):
        instance_of("paths", path, Path)
    instance_of("named", named, dict)
    if bounds is not None and len(a_row("bounds", bounds)) != len(paths):
        raise ValueError(f"bounds are {len(bounds)}; valid is one for each of the {len(paths)} paths")
    bounds = [price_bound(edges, path) for path in paths] if bounds is None else bounds
    rows = []
    for name, policy in named.items():
        table = simulate(edges, list(paths), policy)
        for number, run in table.groupby("replication"):
            gain, on_edge = float(run.gain_s.sum()), run.granted_steps > 0
            rows.append(
                dict(
                    policy=name,
                    path=number,
                    gain_s=gain,
                    bound_s=bounds[number],
                    share=gain / bounds[number],
                    granted=float(on_edge.mean()),
                    steps=float(run.granted_steps[on_edge].mean()) if on_edge.any() else 0.0,
                )
            )
    return pd.DataFrame(rows)


def policy_sweep(
    name: str,
    rates_hz: Sequence[float] = RATES_HZ,
    names: Sequence[str] | None = None,
    num_paths: int = 8,
    horizon_s: float = 60.0,
    compute: str = "constant",
    seed: int = 0,
) -> pd.DataFrame:
    """Share of the price bound against the arrival rate; stored and resumed, and run through joblib (Dask's too).

    Args:
        name: of the stored table.
        rates_hz: requests a second.
        names: of policies; all but ``rollout`` if left out.
        num_paths: judged on; tuning has its own.
        horizon_s: of each.
        compute: ``constant`` or ``fluctuating``.
        seed: of the paths.

    Returns:
        The rows of ``play`` with ``rate_hz``.

    Raises:
        ValueError: for an unknown policy or compute, or a number outside its range; before anything is played.
    """
    a_row("rates_hz", rates_hz, 0.0, open_end=True)
    for policy in () if names is None else a_sequence("names", names):
        one_of("names", policy, policies())
    whole_number("num_paths", num_paths, 1)
    finite_number("horizon_s", horizon_s, 0.0, open_end=True)
    one_of("compute", compute, COMPUTE)
    whole_number("seed", seed, 0)
    names = list(names or QUICK)
    common = dict(num_paths=num_paths, horizon_s=horizon_s, compute=compute, seed=seed)
    tasks = [common | dict(rate_hz=rate, policy=policy) for rate in rates_hz for policy in names]
    settings = common | dict(rates_hz=list(rates_hz), names=names, code=code_digest("edge", "offloading"))
    command = f"policy_sweep({name!r}, rates_hz={tuple(rates_hz)!r}, …)"
    return load_or_run(name, _one_policy, tasks, settings=settings, command=command)


def _one_policy(rate_hz, policy, num_paths, horizon_s, compute, seed):
    edge, arrivals = released_edge(compute=compute), Poisson(rate_hz, horizon_s)
    paths = draw_paths([edge], arrivals, seed, num_paths)
    table = play([edge], paths, {policy: make_policy(policy, [edge], arrivals)})
    return table.assign(rate_hz=rate_hz, compute=compute).to_dict("records")


def twin_table(rates_hz: Sequence[float] = (0.5, 1.0, 2.0, 3.0)) -> pd.DataFrame:
    """Shares of the twin's exact online optimum, without noise; prices are the best of a grid.

    Returns:
        ``rate_hz, rule, share, gain_s_per_s``.
    """
    rows, for_one = [], Twin(1.0).optimum()[1]
    for rate in rates_hz:
        twin = Twin(rate)
        best, _, value = twin.optimum()

        def add(rule, gain, rate=rate, best=best):
            rows.append(dict(rate_hz=rate, rule=rule, share=gain / best, gain_s_per_s=gain))

        for rule in ("first_come", "selfish", "myopic"):
            add(rule, twin.evaluate(twin.rule(rule), value)[0])
        prices = np.geomspace(0.2, 8, 25)
        add("price", max(twin.evaluate(twin.rule("price", p), value)[0] for p in prices))
        grid = [(fixed, slope) for fixed in (0, 0.2, 0.4, 0.8, 1.4, 2.0) for slope in (0.4, 0.8, 1.2, 1.6, 2.0, 2.6)]
        scores = {numbers: twin.evaluate(twin.rule("state_price", numbers), value)[0] for numbers in grid}
        tuned = max(scores, key=lambda numbers: scores[numbers])
        add("state_price", scores[tuned])
        improved = twin.improve(twin.evaluate(twin.rule("state_price", tuned), value)[1])
        add("improved once", twin.evaluate(improved, value)[0])
        add("optimum for one a second", twin.evaluate(for_one, value)[0])
        add("optimum", best)
    return pd.DataFrame(rows)


def main() -> None:
    """Command line: write tables under ``data/edge/``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("policies", "twin"))
    name = parser.parse_args().name
    path = can_write("data", data_path("edge", f"{name}.csv"))
    if name == "twin":
        table, settings = twin_table(), {}
    else:
        settings = dict(num_paths=8, horizon_s=60.0, seed=0)
        table = pd.concat(
            policy_sweep(f"edge_{compute}", compute=compute, **settings) for compute in ("constant", "fluctuating")
        )
    write_rows(path, table.round(6).to_dict("records"))
    write_meta(path, kind="simulated", command=f"splitpoint edge-tables {name}", seed=0, settings=settings)


if __name__ == "__main__":
    main()

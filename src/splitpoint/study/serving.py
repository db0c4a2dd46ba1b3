"""How far a running edge's prediction is from its measurement, what it takes, and what it survives."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pandas as pd

from splitpoint.checks import finite_number
from splitpoint.edge import EdgeCore, System, make_policy, simulate
from splitpoint.edge import Path as Arriving
from splitpoint.edge.capacity import ConstantCapacity
from splitpoint.files import data_path, write_meta, write_rows
from splitpoint.offloading.fits import fit_latency
from splitpoint.serving import service
from splitpoint.serving.conductor import Event, replay
from splitpoint.serving.forecast import Forecast
from splitpoint.serving.load import draw_requests, play, report
from splitpoint.serving.processes import RunningEdge, running
from splitpoint.serving.service import expected_on

POLICIES = ("first_come", "posted_price", "state_price")
LOADS_HZ = (1.0, 3.0, 6.0)


def facts_of(edge: RunningEdge) -> tuple[list[Event], np.ndarray]:
    """An edge's log, and its table of step times, shape (max_batch,)."""
    said = httpx.get(f"{edge.url}/v1/log", params={"token": edge.viewer}, timeout=30).json()
    return [Event.from_dict(line) for line in said["log"]], np.array(said["table_s"])


def system_of(table_s: np.ndarray, num_steps: int = 50) -> System:
    """The edge as the simulator knows it, from the table that was measured while it served.

    Args:
        table_s: seconds of a step at batch 1, 2, …, shape (max_batch,).
        num_steps: N.
    """
    sizes = range(1, len(table_s) + 1)
    return service.system_of(service.step_table(sizes, table_s), num_steps, len(table_s))


def edge_errors(log: Sequence[Event], table_s: np.ndarray) -> pd.DataFrame:
    """Time on the edge of each granted request, measured, and as it would have been predicted by the table or a line.

    Args:
        log: of an edge, from its first line on.
        table_s: shape (max_batch,).

    Returns:
        ``id, measured_s, table_s, line_s``, one row a request.
    """
    sizes = np.arange(1, len(table_s) + 1)
    line = fit_latency(sizes, table_s, nonnegative=True).model
    forecasts = {
        "table_s": Forecast(table_s),
        "line_s": Forecast(line.step_latency_s(sizes)),
    }
    core, began, rows = EdgeCore(len(table_s)), None, {}
    for event in log:
        if event.kind == "ask":
            for name, steps in zip(event.ids, event.carried):
                if not steps:
                    continue
                row = rows[name] = dict(id=name, asked_s=event.time_s)
                for kind, forecast in forecasts.items():
                    row[kind] = forecast.promise(core, steps, event.time_s, began).expected_s
                core.submit(name, steps)
                for forecast in forecasts.values():
                    forecast.granted(event.time_s, steps)
        elif event.kind == "begin":
            core.next_batch(event.time_s)
            began = event.time_s
        elif event.kind == "end":
            for departure in core.step_done(event.time_s, event.failed):
                rows[departure.id]["measured_s"] = event.time_s - rows[departure.id].pop("asked_s")
            began = None
        else:
            core.cancel(event.ids[0], event.time_s)
    return pd.DataFrame(rows.values()).dropna()


def simulated(table: pd.DataFrame, log: Sequence[Event], system: System, policy: str, expected) -> pd.DataFrame:
    """The simulator's answer to the same requests at the same moments."""
    asked = [event for event in log if event.kind == "ask"]
    moments = np.array([event.time_s for event in asked]) - asked[0].time_s
    device, alpha, draw = (np.array([event.requests[0][i] for event in asked]) for i in range(3))
    path = Arriving(
        moments,
        device,
        alpha,
        draw,
        (ConstantCapacity().draw(np.random.default_rng(0), 1.0),),
        float(moments[-1]) + 1.0,
    )
    made = make_policy(policy, system.edges, expected, system.parameters)
    return simulate(system.edges, [path], made, close=False, parameters=system.parameters)


def predicted_against_measured(
    policies: Sequence[str] = POLICIES,
    loads_hz: Sequence[float] = LOADS_HZ,
    count: int = 60,
    warm_up: int = 20,
    seed: int = 0,
    options: Sequence[str] = (),
    progress: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run an edge under every policy and load, with devices that wait as long as they would compute.

    Args:
        policies: names.
        loads_hz: requests a second.
        count: requests of each run that are counted.
        warm_up: requests before them; they teach the edge what the link and the picture take.
        seed: of all requests.
        options: more, for ``splitpoint edge``.
        progress: say when a run is done.

    Returns:
        One row a run, and one row a request.
    """
    runs, requests = [], []
    for policy in policies:
        for rate in loads_hz:
            with running("--policy", policy, *options, users=[f"user{i}" for i in range(8)]) as edge:
                asked = draw_requests(rate, warm_up + count, seed)
                table = asyncio.run(play(edge.url, list(edge.tokens.values()), asked))
                log, table_s = facts_of(edge)
            system = system_of(table_s)
            expected = expected_on(system)
            again = replay(log, system, make_policy(policy, system.edges, expected, system.parameters))
            said, errors = report(table, warm_up=warm_up), edge_errors(log, table_s)
            counted = errors[errors.id.isin(table.id.iloc[warm_up:])] if len(errors) else errors
            twin = simulated(table, log, system, policy, expected).iloc[warm_up:]
            row = dict(policy=policy, rate_hz=rate, requests=said["requests"], granted=said["granted"])
            row |= dict(
                error_mean=said["error_mean"],
                error_p95=said["error_p95"],
                error_granted_mean=said["error_granted_mean"],
                unexplained_p99=said["unexplained_p99"],
                decisions=len(again),
                decisions_equal=sum(then == now for _, then, now in again),
                latency_mean_s=float(table.total_s.iloc[warm_up:].mean()),
                latency_simulated_s=float(twin.latency_s.mean()),
                late_share=said["late_steps_share"],
                answer_p99_s=said["answer_s"]["p99"],
            )
            for kind in ("table_s", "line_s"):
                shares = (counted[kind] - counted.measured_s).abs() / counted.measured_s if len(counted) else []
                row[f"edge_error_{kind[:-2]}"] = float(np.mean(shares)) if len(counted) else np.nan
            runs.append(row)
            requests.append(table.assign(policy=policy, rate_hz=rate, counted=np.arange(len(table)) >= warm_up))
            if progress:
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return pd.DataFrame(runs), pd.concat(requests, ignore_index=True)


def join_waits(log: Sequence[Event], max_batch: int) -> np.ndarray:
    """How long those who found room waited to join the batch, in steps of the one that was under way.

    Args:
        log: of an edge, from its first line on.
        max_batch: most members of a step.

    Returns:
        One number a request, in order of joining; of one that found nobody, its wait over its own first step.
    """
    core, asked, joined, lasted, began_s = EdgeCore(max_batch), {}, [], {}, None
    for event in log:
        if event.kind == "ask":
            for name, steps in zip(event.ids, event.carried):
                if steps:
                    room = len(core.members) + len(core.waiting) < max_batch
                    asked[name] = event.time_s, room, began_s
                    core.submit(name, steps)
        elif event.kind == "begin":
            core.next_batch(event.time_s)
            began_s = event.time_s
            for asked_s, room, under_way_s in (asked.pop(name) for name in event.ids if name in asked):
                if room:
                    joined.append((began_s - asked_s, began_s if under_way_s is None else under_way_s))
        elif event.kind == "end":
            core.step_done(event.time_s, event.failed)
            if began_s is not None:
                lasted[began_s] = event.time_s - began_s
            began_s = None
        else:
            core.cancel(event.ids[0], event.time_s)
            asked.pop(event.ids[0], None)
    return np.array([wait_s / lasted[step] for wait_s, step in joined if step in lasted])


def largest_rate(rates_hz: Sequence[float], late_s: Sequence[float], bound_s: float) -> float:
    """The rate up to which a percentile of the time stays within a bound.

    Args:
        rates_hz: that were tried, rising, above 0, shape (n,).
        late_s: the percentile at each, infinite where requests were not served, shape (n,).
        bound_s: the most that is allowed.

    Returns:
        Requests a second: between the last rate that held and the first that did not, straight in the logarithm of
        the percentile; the highest that was tried if all held, and a share of the lowest if none did.
    """
    finite_number("bound_s", bound_s, 0.0, open_end=True)
    late = np.minimum(np.maximum.accumulate(np.asarray(late_s, dtype=float)), 100 * bound_s)
    held = int(np.sum(late <= bound_s))  # the percentiles rise: more load is never less late
    if held == len(late):
        return float(rates_hz[-1])
    low, low_s = (float(rates_hz[held - 1]), late[held - 1]) if held else (0.0, bound_s / 3)
    part = np.log(bound_s / low_s) / np.log(late[held] / low_s)
    return float(low + part * (rates_hz[held] - low))


def capacity_table(
    done: pd.DataFrame, first: str, factor: float = 3.0, draws: int = 1_000, seed: int = 0
) -> pd.DataFrame:
    """The largest rate of each system at which its 99th percentile is at most ``factor`` times that without load.

    Args:
        done: ``system, rate_hz`` (0 for a request alone), ``round, arrival_s, seconds`` (none if it was not served),
            ``outside_s`` (that no clock of the edge accounts for), ``steps``, ``asked`` (how many asked in that turn;
            those that a plan sent home have no row); one row a request.
        first: the system that ratios are over.
        factor: of the 99th percentile.
        draws: of the bootstrap: requests alone one by one, loaded ones in blocks of three seconds.
        seed: of the draws.

    Returns:
        One row a system: ``rate_hz`` and its 95 % interval, the same of the ratio to ``first``, and what it rests on.
    """
    rng, rates, rows = np.random.default_rng(seed), {}, {}
    high = lambda values: float(np.quantile(values, 0.99, method="higher"))
    for system, mine in done.groupby("system", sort=False):
        quiet, busy = mine[mine.rate_hz == 0], mine[mine.rate_hz > 0]
        alone = quiet.seconds.to_numpy()
        loads = {}
        for rate, rows_at in busy.groupby("rate_hz"):
            seconds = rows_at.seconds.fillna(np.inf)
            keys = [rows_at["round"], np.floor(rows_at.arrival_s / 3)]
            loads[float(rate)] = [block.to_numpy() for _, block in seconds.groupby(keys)]
        tried = sorted(loads)

        def one(draw):
            pick = lambda count: rng.integers(0, count, count) if draw else np.arange(count)
            bound = factor * high(alone[pick(len(alone))])
            late = [high(np.concatenate([loads[rate][i] for i in pick(len(loads[rate]))])) for rate in tried]
            return largest_rate(tried, late, bound)

        rates[system] = np.array([one(draw) for draw in range(draws + 1)])
        borne = busy[busy.rate_hz <= rates[system][0]]
        rows[system] = dict(
            system=system,
            rate_hz=rates[system][0],
            alone_p50_s=float(np.median(alone)),
            alone_p99_s=high(alone),
            steps_mean=float(mine.steps.mean()),
            helped=len(busy) / busy.groupby(["round", "rate_hz"]).asked.first().sum(),
            outside_alone_p50_s=float(quiet.outside_s.median()),
            outside_alone_p99_s=float(quiet.outside_s.quantile(0.99)),
            outside_loaded_p50_s=float(borne.outside_s.median()),
            outside_loaded_p99_s=float(borne.outside_s.quantile(0.99)),
            requests=len(mine),
        )
    for system, row in rows.items():
        ratio = rates[system] / rates[first]
        for name, values in (("rate_hz", rates[system]), ("ratio", ratio)):
            row[f"{name}_low"], row[f"{name}_high"] = (float(q) for q in np.quantile(values[1:], [0.025, 0.975]))
        row["ratio"] = float(ratio[0])
    return pd.DataFrame(rows.values())


def main() -> None:
    """``splitpoint serving-tables``."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="splitpoint serving-tables",
        description="Run edges on this machine and write how far their prediction was from the measurement.",
        epilog="example: splitpoint serving-tables --out results/serving",
    )
    parser.add_argument("--requests", type=int, default=60, help="counted, of each of nine runs")
    parser.add_argument("--out", type=Path, default=data_path("serving"), help="folder of the tables")
    options = parser.parse_args()
    runs, requests = predicted_against_measured(count=options.requests, progress=True)
    options.out.mkdir(parents=True, exist_ok=True)
    columns = [
        "policy", "rate_hz", "counted", "arrival_s", "device_step_s", "alpha", "status", "steps", "predicted_edge_s",
        "predicted_total_s", "predicted_longest_s", "queue_s", "steps_s", "hand_over_s", "held_s", "transfer_s",
        "device_s", "total_s", "answer_s", "late_s",
    ]  # fmt: skip
    for name, table in (("prediction_runs", runs), ("prediction_requests", requests[columns].round(5))):
        file = options.out / f"{name}.csv"
        write_rows(file, table.to_dict("records"))
        write_meta(file, kind="measured", command="splitpoint serving-tables", seed=0)
    print(runs.to_string(index=False))

"""Many devices at once, in an open loop: requests come when they come, however long the edge takes.

A device here keeps its profile's pace by waiting; a share of them really computes. What it measures is what a person
would wait: from asking to seeing.
"""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import httpx
import numpy as np
import pandas as pd

from splitpoint.checks import finite_number, instance_of, one_of, whole_number
from splitpoint.edge import Arrivals, Edge, Users, draw_paths, read_trace
from splitpoint.edge import Path as Arriving
from splitpoint.files import results_path
from splitpoint.offloading import LatencyModel
from splitpoint.serving.protocol import check_address

ARRIVALS = ("poisson", "gamma", "trace")
SPANS = ("queue_s", "steps_s", "hand_over_s", "transfer_s", "device_s", "decode_s")
PROMPTS = ("red apple", "birthday cake", "umbrella", "rocket", "mushroom", "house", "sunflower", "pizza")


@dataclass(frozen=True)
class Crowd:
    """Devices and preferences of those who ask.

    Args:
        device_step_s: seconds of a step, drawn alike from these.
        alpha_steps: what one unit of accuracy is worth, in steps of one's own device, uniform between these two: few
            leave everything to the edge, few want nothing of it.
    """

    device_step_s: tuple[float, ...] = (0.1, 0.15, 0.25)
    alpha_steps: tuple[float, float] = (50.0, 150.0)

    def __post_init__(self):
        for step_s in self.device_step_s:
            finite_number("device_step_s", step_s, 0.0, open_end=True)
        for steps in self.alpha_steps:
            finite_number("alpha_steps", steps, 0.0)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``edge.Users.draw``: device steps and preferences, shape (count,) each."""
        step_s = rng.choice(self.device_step_s, count)
        return step_s, step_s * rng.uniform(*self.alpha_steps, count)


def draw_requests(
    rate_hz: float, count: int, seed: int = 0, kind: str = "poisson", crowd: Crowd | Users = Crowd(), cv: float = 3.0
) -> pd.DataFrame:
    """Who asks when.

    Args:
        rate_hz: requests a second on average.
        count: of requests.
        seed: of everything.
        kind: "poisson", or "gamma" for bursts.
        crowd: devices and preferences.
        cv: standard deviation of the gaps over their mean, for "gamma".

    Returns:
        ``arrival_s, device_step_s, alpha, prompt, seed``, one row a request.

    Raises:
        ValueError: naming the argument.
    """
    finite_number("rate_hz", rate_hz, 0.0, open_end=True)
    whole_number("count", count, 1)
    whole_number("seed", seed, 0)
    one_of("kind", kind, ("poisson", "gamma"))
    finite_number("cv", cv, 0.0, open_end=True)
    instance_of("crowd", crowd, Crowd | Users)
    rng = np.random.default_rng(seed)
    shape = 1.0 if kind == "poisson" else 1.0 / cv**2
    arrival = np.cumsum(rng.gamma(shape, 1.0 / (rate_hz * shape), count))
    step, alpha = crowd.draw(rng, count)
    prompt = rng.choice(PROMPTS, count)
    return pd.DataFrame(
        dict(arrival_s=arrival, device_step_s=step, alpha=alpha, prompt=prompt, seed=rng.integers(0, 2**31, count))
    )


def requests_of(arrivals: Arrivals, seed: int = 0) -> pd.DataFrame:
    """The same from any arrivals of ``edge``: a recorded trace, hidden regimes, a ramp."""
    instance_of("arrivals", arrivals, Arrivals)
    path: Arriving = draw_paths([Edge(LatencyModel(0.003, 0.008))], arrivals, seed)[0]
    rng = np.random.default_rng([seed, 1])
    return pd.DataFrame(
        dict(
            arrival_s=path.arrival_s,
            device_step_s=path.device_step_s,
            alpha=path.alpha,
            prompt=rng.choice(PROMPTS, len(path)),
            seed=rng.integers(0, 2**31, len(path)),
        )
    )


async def play(
    url: str,
    tokens: Sequence[str],
    requests: pd.DataFrame,
    compute: float = 0.0,
    give_up_s: float = 120.0,
    scale: float = 1.0,
) -> pd.DataFrame:
    """Ask for all of them, each at its moment, and wait as their devices would.

    Args:
        url: of the edge.
        tokens: of users, taken in turn.
        requests: as from ``draw_requests``.
        compute: share of requests whose device really computes, on this machine.
        give_up_s: longest wait for one.
        scale: how much faster devices run here than they say, for tests; 1 is honest.

    Returns:
        One row a request: what it was, ``status`` (of HTTP, 0 for no answer), ``steps``, predicted and measured
        seconds by part, ``late_s`` (how late the request went out, for the load's own sake).
    """
    finite_number("compute", compute, 0.0, 1.0)
    finite_number("give_up_s", give_up_s, 0.0, open_end=True)
    finite_number("scale", scale, 0.0, open_end=True)
    pool = None
    if compute:
        from splitpoint.serving.home import open_home  # torch, only if somebody really computes

        pool = await open_home()
    real = np.random.default_rng(0).random(len(requests)) < compute
    # a connection each, as devices have: one pool for all is looked through at every request, which takes ever longer
    # (idle ones are dropped before the edge drops them, which it does after five seconds)
    options: dict = dict(base_url=url, timeout=httpx.Timeout(give_up_s, connect=5.0), verify=httpx.create_ssl_context())
    options["limits"] = httpx.Limits(keepalive_expiry=3.0)
    began = perf_counter()

    async def come(number: int, row: dict) -> dict:
        await asyncio.sleep(max(0.0, began + row["arrival_s"] - perf_counter()))
        async with httpx.AsyncClient(**options) as client:
            token = tokens[number % len(tokens)]
            return await _one(client, token, row, began, pool if real[number] else None, scale)

    rows = await asyncio.gather(*(come(number, row) for number, row in enumerate(requests.to_dict("records"))))
    if pool is not None:
        pool.shutdown()
    return pd.DataFrame(rows)


async def _one(
    client: httpx.AsyncClient, token: str, row: dict, began: float, pool: ProcessPoolExecutor | None, scale: float
) -> dict:
    """One person: ask, wait for the packet, let the device work, say what it took."""
    asked = perf_counter()
    out = dict(row, late_s=asked - began - row["arrival_s"], status=0, steps=0, computed=pool is not None)
    headers = {"Authorization": f"Bearer {token}"}
    body = {name: row[name] for name in ("prompt", "seed", "device_step_s", "alpha")}
    try:
        answer = await client.post("/v1/requests", json=body, headers=headers)
        out["status"], out["answer_s"] = answer.status_code, perf_counter() - asked
        if answer.status_code != 202:
            return out
        said = answer.json()
        out |= {f"predicted_{name}": value for name, value in said["predicted"].items()}
        out["id"], out["steps"] = said["id"], said["steps"]
        content = None
        while said["granted"] and content is None:
            got = await client.get(f"/v1/requests/{said['id']}/packet", params={"wait": 25}, headers=headers)
            if got.status_code not in (200, 202):
                out["status"] = got.status_code
                return out
            if got.status_code == 200:
                content = got.content
                out |= json.loads(got.headers["x-spans"])
        received = perf_counter()
        pace = row["device_step_s"] * said["split_point"] / scale
        decode_s = 0.0
        if pool is not None:
            from splitpoint.serving.home import draw_at_home

            loop = asyncio.get_running_loop()
            job = row["prompt"], row["seed"], said, content, None
            decode_s = (await loop.run_in_executor(pool, draw_at_home, *job))[1]
        await asyncio.sleep(max(0.0, received + pace + decode_s - perf_counter()))
        done = perf_counter()
        edge_s = sum(out.get(name, 0.0) for name in ("queue_s", "steps_s", "hand_over_s", "held_s"))
        seconds = dict(
            transfer_s=max(0.0, received - asked - edge_s),
            device_s=done - received - decode_s,
            decode_s=decode_s,
            total_s=done - asked,
        )
        out |= seconds
        out["late"] = seconds["device_s"] > pace + max(0.05 * row["device_step_s"], 0.005)
        await client.post(f"/v1/requests/{said['id']}/ack", json=seconds, headers=headers)
    except httpx.HTTPError as error:
        out["failure"] = type(error).__name__
    return out


def report(table: pd.DataFrame, deadline_s: float | None = None, warm_up: int = 0) -> dict:
    """What a run of ``play`` says: waits by percentile, throughput, goodput, by part, and the prediction's error.

    ``unexplained_p99`` is the share of the measured time that no clock of edge or device accounts for: the network, and
    everything that nobody measures.

    Args:
        table: from ``play``.
        deadline_s: a picture counts as good within it; the run at home, N d, of each if left out.
        warm_up: first requests that are left out.

    Raises:
        ValueError: for a table without a picture.
    """
    instance_of("table", table, pd.DataFrame)
    whole_number("warm_up", warm_up, 0)
    kept = table.iloc[warm_up:]
    done = kept[kept.get("total_s", pd.Series(np.nan, kept.index)).notna()]
    if done.empty:
        raise ValueError("table has no picture that arrived; valid is one of play")
    span_s = float((kept.arrival_s + kept.total_s).max() - kept.arrival_s.min())
    granted = done[done.steps > 0]
    home_s = 50 * done.device_step_s if deadline_s is None else deadline_s
    shares = (done.predicted_total_s - done.total_s).abs() / done.total_s
    parts = granted[[name for name in SPANS if name in granted]].fillna(0.0)
    unexplained = granted.get("transfer_s", pd.Series(dtype=float)) / granted.total_s
    return dict(
        requests=len(kept),
        arrived=len(done),
        granted=len(granted),
        turned_away=int(kept.status.isin([429, 503]).sum()),
        failed=int((kept.status == 0).sum()),
        span_s=span_s,
        throughput_hz=len(done) / span_s,
        goodput=float((done.total_s <= home_s * 1.001 + 0.05).sum() / len(kept)),
        total_s=_percentiles(done.total_s),
        answer_s=_percentiles(kept.answer_s.dropna()),
        parts_s={name: float(parts[name].mean()) for name in parts},
        error_mean=float(shares.mean()),
        error_p95=float(shares.quantile(0.95)),
        error_granted_mean=float(shares[done.steps > 0].mean()) if len(granted) else None,
        unexplained_p99=float(unexplained.quantile(0.99)) if len(granted) else None,
        late_steps_share=float(done.get("late", pd.Series(False, done.index)).mean()),
        load_late_p99_s=float(kept.late_s.quantile(0.99)),
    )


def _percentiles(values: pd.Series) -> dict:
    return {f"p{q}": float(values.quantile(q / 100)) for q in (50, 90, 95, 99)}


def main() -> None:
    """``splitpoint load``."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="splitpoint load",
        description="Many devices at once, in an open loop.",
        epilog="example: splitpoint load --edge http://127.0.0.1:8765 --token … --rate 2 --requests 100",
    )
    parser.add_argument("--edge", required=True, help="address of the edge, http://…")
    parser.add_argument("--token", required=True, action="append", help="as the edge printed it; one a user")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--requests", type=int, default=60, help="how many")
    parser.add_argument("--arrivals", choices=ARRIVALS, default="poisson")
    parser.add_argument("--trace", type=Path, help="CSV of moments, for --arrivals trace")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm-up", type=int, default=0, help="first requests that are not counted")
    parser.add_argument("--compute", type=float, default=0.0, help="share of devices that really compute")
    parser.add_argument("--deadline", type=float, help="seconds within which a picture is good")
    parser.add_argument("--out", type=Path, default=results_path("load"), help="folder for table, report and figure")
    options = parser.parse_args()
    check_address("edge", options.edge)
    if options.arrivals == "trace":
        if options.trace is None:
            raise ValueError("trace is not given; valid is a CSV file with a column of moments")
        requests = requests_of(read_trace(options.trace), options.seed).head(options.requests)
    else:
        requests = draw_requests(options.rate, options.requests, options.seed, options.arrivals)
    table = asyncio.run(play(options.edge, options.token, requests, options.compute))
    said = report(table, options.deadline, options.warm_up) | {"seed": options.seed, "arrivals": options.arrivals}
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "requests.csv", index=False)
    (options.out / "report.json").write_text(json.dumps(said, indent=1))
    _figure(table).savefig(options.out / "load.png", dpi=150)
    print(as_text(said))
    print(f"table, report and figure are in {options.out}")


def as_text(said: dict) -> str:
    """A report as lines of text."""
    total, parts = said["total_s"], said["parts_s"]
    lines = [
        f"{said['arrived']} of {said['requests']} pictures arrived, {said['granted']} with the edge's help; "
        f"{said['turned_away']} turned away, {said['failed']} without an answer",
        f"seconds to the picture: median {total['p50']:.2f}, p90 {total['p90']:.2f}, p95 {total['p95']:.2f}, "
        f"p99 {total['p99']:.2f}; {said['throughput_hz']:.2f} a second; in time {100 * said['goodput']:.0f} %",
        "of a granted one: " + ", ".join(f"{name[:-2]} {seconds:.3f} s" for name, seconds in parts.items())
        if said["granted"]
        else "nobody was granted: the steps of this edge cost more than these devices gain by them",
        f"predicted at admission: mean error {100 * said['error_mean']:.1f} %, p95 {100 * said['error_p95']:.1f} %",
    ]
    if said["late_steps_share"] > 0.01:
        lines.append(
            f"NOT VALID: {100 * said['late_steps_share']:.1f} % of devices were late; this machine is too slow"
        )
    return "\n".join(lines)


def _figure(table: pd.DataFrame):
    """Waits over time, and predicted against measured."""
    import seaborn as sns
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    done = table.dropna(subset=["total_s"]).assign(where=np.where(table.steps > 0, "edge and device", "device alone"))
    hue = dict(hue="where", style="where", hue_order=["edge and device", "device alone"], palette="colorblind")
    sns.scatterplot(done, x="arrival_s", y="total_s", ax=left, **hue)
    left.set(xlabel="moment of asking (s)", ylabel="seconds to the picture", ylim=(0, None))
    sns.scatterplot(done, x="predicted_total_s", y="total_s", ax=right, legend=False, **hue)
    most = float(done[["predicted_total_s", "total_s"]].max().max())
    right.plot([0, most], [0, most], color="0.5", ls="--", lw=1)
    right.set(xlabel="predicted at admission (s)", ylabel="measured (s)")
    return figure

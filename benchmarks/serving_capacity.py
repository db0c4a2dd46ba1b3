"""How many requests a second an edge bears, four ways to batch: ``python benchmarks/serving_capacity.py`` (20 minutes).

The same requests, for the same steps, go to a step-level batch, to one row at a time, to windows (the released plan of
each second) and to Ray's ``@serve.batch``, which batches whole calls. In every round each of them in turn answers a few
requests alone, then a Poisson load; the rate is halved towards the largest at which the 99th percentile of the time
from asking to the packet is at most three times that of its own requests alone. Everything is measured in one run, in
turns, so that other work on the machine slows all of them: what counts are the ratios.

Stopped and started again with the same settings it goes on (``results/serving_capacity``); at the end it writes
``data/serving/capacity.csv``, ``capacity_requests.csv`` and ``capacity_steps.csv``.
"""

import argparse
import asyncio
import json
import os
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import numpy as np
import pandas as pd

from splitpoint.edge import make_policy
from splitpoint.files import data_path, results_path, write_meta, write_rows
from splitpoint.serving.load import Crowd, draw_requests, play
from splitpoint.serving.processes import running
from splitpoint.serving.service import expected_on
from splitpoint.study.serving import capacity_table, facts_of, join_waits, system_of

QUIET_HZ = 0.1  # a posted price for so few asks next to nothing: everybody gets what is best for one alone
MAX_BATCH, ALONE = 18, 6
FACTOR = 3.0  # of the 99th percentile alone: the most that a load may make of it
EDGES = {
    "step-level batch": ("--policy", "posted_price"),
    "one by one": ("--policy", "posted_price", "--max-batch", "1"),
    "windows": ("--policy", "window_plan"),
}
WHOLE_CALLS = "@serve.batch"
CROWD = Crowd(alpha_steps=(10.0, 80.0))  # most leave half of their steps or more to the edge
NO_DEVICE = 1e9  # devices that take no time: what is timed ends with the packet


def wanted_steps(requests: pd.DataFrame, table_s: np.ndarray) -> np.ndarray:
    """Steps that the posted price grants, whoever else is there, shape (n,)."""
    system = system_of(table_s)
    policy = make_policy("posted_price", system.edges, expected_on(system, QUIET_HZ), system.parameters)
    columns = requests.arrival_s, requests.device_step_s, requests.alpha, np.full(len(requests), 0.5)
    return np.asarray(policy.decide(*(np.asarray(column, dtype=float) for column in columns)).steps)


def some_requests(rate_hz: float, seconds: float, seed: int, table_s: np.ndarray) -> pd.DataFrame:
    """Poisson arrivals of those who want the edge's help; ``wanted`` are their steps."""
    drawn = draw_requests(3 * rate_hz, int(6 * rate_hz * seconds) + 60, seed, crowd=CROWD)
    drawn["wanted"] = wanted_steps(drawn, table_s)
    kept = drawn[drawn.wanted > 0]
    # those who want no help are left out, and time is stretched until the rate of the others is right
    kept = kept.assign(arrival_s=kept.arrival_s * (len(kept) / kept.arrival_s.iloc[-1]) / rate_hz)
    return kept[kept.arrival_s <= seconds].reset_index(drop=True)


class OnEdge:
    """``splitpoint edge``, asked as devices ask."""

    def __init__(self, stack: ExitStack, options: tuple[str, ...], table: Path):
        common = ("--table", str(table), "--expected-hz", str(QUIET_HZ), "--max-waiting", "256")
        self.edge = stack.enter_context(running(*common, *options, users=["ann", "ben", "cem", "dua"]))

    async def play(self, requests: pd.DataFrame) -> pd.DataFrame:
        """One row a request; those that were not served have no seconds, those sent home no row."""
        table = await play(self.edge.url, list(self.edge.tokens.values()), requests, scale=NO_DEVICE)
        for name in ("total_s", "transfer_s", "hand_over_s"):
            table[name] = table.get(name, pd.Series(np.nan, table.index))
        table = table[(table.status != 202) | (table.steps > 0)]  # a window's plan sends some home, who do not wait
        served = table.status == 202
        return pd.DataFrame(
            dict(steps=table.steps, seconds=table.total_s.where(served), outside_s=table.transfer_s.where(served))
        )


class OnRay:
    """Whole calls, batched by Ray; a call says how many steps it wants and gets its packet."""

    def __init__(self, stack: ExitStack):
        from splitpoint.serving.ray_app import ray_alone

        self.url = stack.enter_context(ray_alone())
        from ray import serve

        class WholeCalls:
            def __init__(self):
                import torch

                from splitpoint.diffusion.batch import StepBatch
                from splitpoint.serving.engine import EngineOptions, load_family

                torch.set_num_threads(1)
                family, self.guidance_scale = load_family(EngineOptions())
                self.batch = StepBatch(family)

            async def __call__(self, request):
                from starlette.responses import Response

                return Response(await self.draw(await request.json()))

            @serve.batch(max_batch_size=MAX_BATCH)
            async def draw(self, jobs):
                return await asyncio.to_thread(self.together, jobs)

            def together(self, jobs):
                from splitpoint.diffusion.batch import Request

                rows = [
                    self.batch.prepare(
                        Request(job["prompt"], job["seed"], 50, 50 - job["steps"], self.guidance_scale, "ddim")
                    )
                    for job in jobs
                ]
                for row in rows:
                    self.batch.admit(row)
                while self.batch.rows:
                    self.batch.step()
                return [self.batch.finish(row).to_bytes() for row in rows]

        deployment = serve.deployment(WholeCalls).options(
            max_ongoing_requests=10_000, logging_config={"enable_access_log": False}
        )
        serve.run(deployment.bind(), name="whole-calls", route_prefix="/")

    async def play(self, requests: pd.DataFrame) -> pd.DataFrame:
        """As of ``OnEdge``."""
        limits = httpx.Limits(max_connections=None, keepalive_expiry=3.0)
        async with httpx.AsyncClient(timeout=120.0, limits=limits) as client:
            began = perf_counter()

            async def one(row: dict) -> dict:
                await asyncio.sleep(max(0.0, began + row["arrival_s"] - perf_counter()))
                asked = perf_counter()
                body = dict(prompt=row["prompt"], seed=row["seed"], steps=row["wanted"])
                answer = await client.post(self.url, json=body)
                seconds = perf_counter() - asked if answer.status_code == 200 else np.nan
                return dict(steps=row["wanted"], seconds=seconds, outside_s=np.nan)

            return pd.DataFrame(await asyncio.gather(*(one(row) for row in requests.to_dict("records"))))


def one_after_the_other(system: OnEdge | OnRay, requests: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Each alone, at a random moment of whatever clock the system has."""
    rows = []
    for number in range(len(requests)):
        row = requests.iloc[[number]].assign(arrival_s=float(rng.uniform(0.0, 1.0)))
        rows.append(asyncio.run(system.play(row)))
    return pd.concat(rows, ignore_index=True)


def next_rate(done: pd.DataFrame, highest_hz: float) -> float:
    """Halfway between what was borne and what was not."""
    alone, loaded = done[done.rate_hz == 0], done[done.rate_hz > 0]
    bound = FACTOR * np.quantile(alone.seconds, 0.99, method="higher") if len(alone) else np.inf
    low, high = 0.0, highest_hz
    for rate, rows in loaded.groupby("rate_hz"):
        if np.quantile(rows.seconds.fillna(np.inf), 0.99, method="higher") <= bound:
            low = max(low, rate)
        else:
            high = min(high, rate)
    return (min(low, high) + high) / 2


def measure(folder: Path, rounds: int, seconds: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All rounds, and who waited how long to join the step-level batch, in steps."""
    file, table, joins_file = folder / "requests.csv", folder / "table.csv", folder / "joins.csv"
    done = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["system", "round", "rate_hz", "seconds"])
    joins = pd.read_csv(joins_file) if joins_file.exists() else pd.DataFrame(columns=["join_steps"])
    if not table.exists():
        with running("--policy", "posted_price", "--max-batch", str(MAX_BATCH), users=["ann"]) as edge:
            table_s = facts_of(edge)[1]
        write_rows(table, [dict(batch=size, step_s=step) for size, step in enumerate(table_s, 1)])
    table_s = pd.read_csv(table).step_s.to_numpy()
    mean_steps = some_requests(4.0, 60.0, 0, table_s).wanted.mean()
    with ExitStack() as stack:
        systems: dict = {name: OnEdge(stack, options, table) for name, options in EDGES.items()}
        systems[WHOLE_CALLS] = OnRay(stack)
        for system in systems.values():  # the first request of a process loads what all others find
            asyncio.run(system.play(some_requests(2.0, 2.0, 1, table_s)))
        for number in range(rounds):
            names = list(systems) if number % 2 == 0 else list(systems)[::-1]
            for name in names:
                if len(done) and ((done.system == name) & (done["round"] == number)).any():
                    continue
                most = 1.3 / mean_steps / (table_s[0] if name == "one by one" else table_s[-1] / MAX_BATCH)
                rate = next_rate(done[done.system == name], most)
                few = some_requests(1.0, 60.0, 100 + number, table_s).head(ALONE)
                alone = one_after_the_other(systems[name], few, np.random.default_rng(number))
                asked = some_requests(rate, seconds, 200 + number, table_s)
                loaded = asyncio.run(systems[name].play(asked))
                rows = pd.concat(
                    [
                        alone.assign(rate_hz=0.0, arrival_s=np.arange(len(alone), dtype=float), asked=len(few)),
                        loaded.assign(rate_hz=rate, arrival_s=asked.arrival_s, asked=len(asked)),
                    ]
                ).assign(system=name, round=number, load_average=os.getloadavg()[0])
                done = pd.concat([done, rows], ignore_index=True) if len(done) else rows.reset_index(drop=True)
                write_rows(file, done.to_dict("records"))
                if name == "step-level batch":
                    steps = join_waits(facts_of(systems[name].edge)[0], MAX_BATCH)
                    joins = pd.DataFrame(dict(join_steps=steps))  # the log holds all rounds since its edge started
                    write_rows(joins_file, joins.to_dict("records"))
                late = np.quantile(loaded.seconds.fillna(np.inf), 0.99, method="higher")
                print(
                    f"round {number + 1}/{rounds}  {name:17} {rate:5.2f} a second: p99 {late:6.2f} s, "
                    f"alone {alone.seconds.max():.2f} s at most, {loaded.steps.mean():.1f} steps",
                    flush=True,
                )
    return done, joins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=40.0, help="of Poisson load in each turn")
    parser.add_argument("--out", type=Path, default=data_path("serving"), help="folder of the tables")
    parser.add_argument("--notes", default="", help="what else the machine did, for the sidecar")
    options = parser.parse_args()
    settings = dict(rounds=options.rounds, seconds=options.seconds, alone=ALONE, max_batch=MAX_BATCH, factor=FACTOR)
    folder = results_path("serving_capacity", f"{options.rounds}_rounds_of_{options.seconds:g}_s")
    done, joins = measure(folder, options.rounds, options.seconds)
    table = capacity_table(done, "step-level batch", FACTOR)
    first = table.system == "step-level batch"
    table.loc[first, "join_p99_steps"] = np.quantile(joins.join_steps, 0.99) if len(joins) else np.nan
    table.loc[first, "joined"] = len(joins)
    steps = pd.read_csv(folder / "table.csv").round(5)
    files = {
        "capacity": table,
        "capacity_requests": done.drop(columns="load_average").round(5),
        "capacity_steps": steps,
    }
    for name, rows in files.items():
        file = options.out / f"{name}.csv"
        write_rows(file, rows.to_dict("records"))
        write_meta(
            file, kind="measured", command="python benchmarks/serving_capacity.py", seed=0, settings=settings,
            load_average=[round(float(q), 1) for q in done.load_average.quantile([0, 0.5, 1])], notes=options.notes,
        )  # fmt: skip
    print(json.dumps(settings), table.to_string(index=False), sep="\n")


if __name__ == "__main__":
    main()

"""What a running edge survives, at length: kills at random points, ten times too many requests, half an hour of work.

``make soak`` (about 75 minutes) writes ``data/serving/soak.csv``, one row a part; ``python scripts/soak.py PART`` runs
those parts, with ``--short`` in minutes and without writing.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd

from splitpoint.diffusion.hybrid import load_mini_hybrid
from splitpoint.diffusion.packet import Packet
from splitpoint.files import data_path, device_name, write_meta, write_rows
from splitpoint.serving.load import Crowd, draw_requests, play, report
from splitpoint.serving.processes import RunningEdge, running, start
from splitpoint.study.serving import facts_of

PROMPTS = ("red apple", "umbrella", "rocket", "house")


def table_of(edge: RunningEdge, folder: Path) -> tuple[str, str]:
    """The option that spares a later start of the same edge its timing."""
    table_s = facts_of(edge)[1]
    file = folder / "table.csv"
    pd.DataFrame(dict(batch=np.arange(1, len(table_s) + 1), step_s=table_s)).to_csv(file, index=False)
    return "--table", str(file)


def edge_kills(count: int, seed: int = 0) -> dict:
    """SIGKILL at random moments while six requests are on their way; all must arrive, as they would have alone."""
    rng, hybrid = np.random.default_rng(seed), load_mini_hybrid(num_steps=50)
    lost, worst, recovery_s, granted = 0, 0.0, [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["--policy", "first_come", "--journal", str(folder / "journal")]
        edge = start(*options, users=["ann"])
        options += table_of(edge, folder)
        edge.end()
        began = time.perf_counter()
        edge = start(*options, users=dict(edge.tokens), port=edge.port)
        plain_s = time.perf_counter() - began
        headers = {"Authorization": f"Bearer {edge.tokens['ann']}"}
        for number in range(count):
            asked = {}
            for seed_of in range(6 * number, 6 * number + 6):
                body = dict(prompt=PROMPTS[seed_of % 4], seed=seed_of, device_step_s=0.5, alpha=10.0)
                answer = httpx.post(f"{edge.url}/v1/requests", json=body, headers=headers, timeout=30).json()
                asked[answer["id"]] = body, answer
            time.sleep(float(rng.uniform(0.0, 1.5)))
            edge.kill()
            began = time.perf_counter()
            edge = start(*options, users=dict(edge.tokens), port=edge.port)
            recovery_s.append(time.perf_counter() - began)
            for request, (body, answer) in asked.items():
                url = f"{edge.url}/v1/requests/{request}"
                if not answer["granted"]:
                    lost += httpx.get(url, headers=headers).json().get("state") != "home"
                    continue
                granted += 1
                got = httpx.get(f"{url}/packet", params={"wait": 25}, headers=headers, timeout=40)
                if got.status_code != 200:
                    lost += 1
                    continue
                packet = Packet.from_bytes(got.content)
                (alone,) = hybrid.edge_phase(body["prompt"], answer["split_point"], body["seed"])
                off = (packet.latent - alone.latent).abs().max() / alone.latent.abs().max()
                worst = max(worst, float(off))
                done = dict(transfer_s=0.0, device_s=0.0, decode_s=0.0, total_s=1.0)
                httpx.post(f"{url}/ack", json=done, headers=headers)
            print(f"edge killed {number + 1}/{count}: {lost} lost, {recovery_s[-1]:.1f} s to recover", flush=True)
        edge.end()
    return dict(
        kills=count, requests=6 * count, granted=granted, lost=lost, worst_relative=worst, start_s=plain_s,
        recovery_median_s=float(np.median(recovery_s)), recovery_max_s=float(np.max(recovery_s)),
    )  # fmt: skip


def device_kills(count: int, seed: int = 0) -> dict:
    """SIGKILL of a device at random moments after it asked; started again, it must end with the same picture."""
    rng = np.random.default_rng(seed)
    wrong, late = 0, 0
    with tempfile.TemporaryDirectory() as name, running("--policy", "first_come", users=["ann"]) as edge:
        folder = Path(name)

        def command(out: str, keep: str) -> list[str]:
            ask = ["--prompt", "red apple", "--alpha", "5", "--pace", "0.02"]
            said = [
                "--edge",
                edge.url,
                "--token",
                edge.tokens["ann"],
                "--out",
                str(folder / out),
                "--keep",
                str(folder / keep),
            ]
            return [sys.executable, "-m", "splitpoint", "device", *said, *ask]

        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        began = time.perf_counter()
        subprocess.run(command("whole", "none"), check=True, **quiet)
        whole_s = time.perf_counter() - began
        wanted = next((folder / "whole").glob("*.png")).read_bytes()
        for number in range(count):
            process = subprocess.Popen(command(f"out{number}", f"keep{number}"), **quiet)
            time.sleep(float(rng.uniform(0.5, 1.0)) * whole_s)
            late += process.poll() is not None
            process.kill()
            process.wait()
            again = subprocess.run(command(f"out{number}", f"keep{number}"), **quiet)
            pictures = list((folder / f"out{number}").glob("*.png"))
            wrong += again.returncode != 0 or not pictures or pictures[0].read_bytes() != wanted
            left = list((folder / f"keep{number}").glob("*")) if (folder / f"keep{number}").exists() else []
            wrong += bool(left)
            print(f"device killed {number + 1}/{count}: {wrong} wrong", flush=True)
    return dict(kills=count, too_late=late, wrong=wrong, run_s=whole_s)


def memory_mb(edge: RunningEdge) -> float:
    """Resident memory of an edge and the processes that it started, MB."""
    pid = edge.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0
    for one in (str(pid), *children):
        lines = Path(f"/proc/{one}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total / 1024


async def _watch(edge: RunningEdge, every_s: float, health: list, memory: list) -> None:
    async with httpx.AsyncClient(base_url=edge.url, timeout=30) as client:
        while True:
            began = time.perf_counter()
            await client.get("/healthz")
            health.append(time.perf_counter() - began)
            memory.append((time.perf_counter(), memory_mb(edge)))
            await asyncio.sleep(every_s)


def under_load(rate_hz: float, seconds: float, every_s: float = 0.5, seed: int = 0) -> dict:
    """Requests at a rate for so long: memory, health, rejections, and promises kept."""

    async def run(edge):
        health, memory = [], []
        watching = asyncio.ensure_future(_watch(edge, every_s, health, memory))
        requests = draw_requests(rate_hz, int(rate_hz * seconds), seed, crowd=Crowd((0.02, 0.04)))
        table = await play(edge.url, list(edge.tokens.values()), requests, give_up_s=120.0)
        watching.cancel()
        return table, np.array(health), np.array(memory)

    with running("--policy", "first_come", "--max-waiting", "64", users=[f"user{i}" for i in range(8)]) as edge:
        table, health, memory = asyncio.run(run(edge))
    said = report(table)
    refused = table[table.status.isin([429, 503])]
    kept = table[table.total_s.notna()]
    over = (kept.total_s - kept.predicted_longest_s) / kept.predicted_longest_s
    part = max(1, len(memory) // 5)
    warm = memory[part : 2 * part, 1]  # the second fifth: once everything was used
    return dict(
        rate_hz=rate_hz, seconds=seconds, requests=len(table), arrived=said["arrived"], turned_away=len(refused),
        no_answer=said["failed"], refused_p99_s=float(refused.answer_s.quantile(0.99)) if len(refused) else None,
        health_p99_s=float(np.quantile(health, 0.99)), over_promise_share=float((over > 0.05).mean()),
        over_promise_p99=float(over.quantile(0.99)), error_mean=said["error_mean"],
        memory_first_mb=float(warm.mean()), memory_last_mb=float(memory[-part:, 1].mean()),
        memory_most_mb=float(memory[:, 1].max()),
    )  # fmt: skip


def capacity_hz() -> float:
    """Requests a second that the edge can just do: members of a full step, over the steps of a mean grant."""
    with running("--policy", "first_come", users=["ann"]) as edge:
        table_s = facts_of(edge)[1]
        requests = draw_requests(2.0, 20, 1, crowd=Crowd((0.02, 0.04)))
        steps = asyncio.run(play(edge.url, list(edge.tokens.values()), requests)).steps.mean()
    return len(table_s) / (table_s[-1] * steps)


PARTS = {
    "edge killed": lambda short: edge_kills(5 if short else 50),
    "device killed": lambda short: device_kills(5 if short else 50),
    "ten times too many": lambda short: under_load(10 * capacity_hz(), 30.0 if short else 300.0),
    "half an hour at 80 %": lambda short: under_load(0.8 * capacity_hz(), 60.0 if short else 1800.0, 2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"of: {', '.join(PARTS)}; all if left out")
    parser.add_argument("--short", action="store_true", help="minutes, and nothing is written")
    options = parser.parse_args()
    out = data_path("serving", "soak.csv")
    rows = {} if options.short or not out.exists() else pd.read_csv(out).set_index("part").to_dict("index")
    for part in options.part or PARTS:
        rows[part] = {"what": json.dumps(PARTS[part](options.short))}
        print(part, rows[part]["what"], flush=True)
        if not options.short:
            write_rows(out, [dict(part=part, **row) for part, row in rows.items()])
            write_meta(out, kind="measured", command="make soak", seed=0, device=device_name())


if __name__ == "__main__":
    main()

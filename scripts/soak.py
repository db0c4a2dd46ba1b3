"""What a running edge survives, at length: kills at random points, ten times too many requests, half an hour of work.

``make soak`` (about 75 minutes) writes ``data/serving/soak.csv``, one row a part, each as soon as it is done; what is
there with the same settings is not run again. ``python scripts/soak.py PART`` runs those parts only, with ``--again``
in any case, with ``--short`` in minutes and without writing.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pandas as pd

from splitpoint.checks import one_of
from splitpoint.diffusion.hybrid import load_mini_hybrid
from splitpoint.diffusion.packet import Packet
from splitpoint.files import data_path, meta_path, write_meta, write_rows
from splitpoint.serving.device import Device
from splitpoint.serving.link import LinkProxy, Toxics
from splitpoint.serving.load import Crowd, draw_requests, play, report
from splitpoint.serving.processes import RunningEdge, running, start
from splitpoint.study.serving import facts_of

PROMPTS = ("red apple", "umbrella", "rocket", "house")
BODY = dict(prompt="red apple", seed=3, device_step_s=0.5, alpha=0.0)


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
        killed = 0
        while killed < count:
            number = killed + late
            process = subprocess.Popen(command(f"out{number}", f"keep{number}"), **quiet)
            time.sleep(float(rng.uniform(0.5, 1.0)) * whole_s)
            if process.poll() is not None:
                late += 1  # it was done already: no kill
                continue
            process.kill()
            process.wait()
            killed += 1
            again = subprocess.run(command(f"out{number}", f"keep{number}"), **quiet)
            pictures = list((folder / f"out{number}").glob("*.png"))
            wrong += again.returncode != 0 or not pictures or pictures[0].read_bytes() != wanted
            left = list((folder / f"keep{number}").glob("*")) if (folder / f"keep{number}").exists() else []
            wrong += bool(left)
            print(f"device killed {killed}/{count}: {wrong} wrong", flush=True)
    return dict(kills=killed, too_late=late, wrong=wrong, run_s=whole_s)


class CutOnce(httpx.HTTPTransport):
    """Sends the first request for a packet over a bad link, everything else to the edge itself."""

    def __init__(self, port: int):
        super().__init__()
        self.port, self.cut = port, False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Of httpx."""
        if request.url.path.endswith("/packet") and not self.cut:
            self.cut, request.url = True, request.url.copy_with(port=self.port)
        return super().handle_request(request)


def link_cuts(every_bytes: int, seed: int = 0) -> dict:
    """The link reset, closed or stalled after so many bytes of the answer with the packet; the picture must come."""
    wrong, cuts, seconds, hybrid = 0, 0, [], load_mini_hybrid(num_steps=50)
    user = hybrid.users["noto"]
    with running("--policy", "first_come", users=["ann"]) as edge:

        def draw(transport: httpx.BaseTransport):
            device = Device(edge.url, edge.tokens["ann"], user, step_s=0.5)
            device.client = httpx.Client(
                base_url=edge.url, headers=device.client.headers, timeout=httpx.Timeout(3.0), transport=transport
            )
            began = time.perf_counter()
            drawn = device.draw("red apple", seed)
            seconds.append(time.perf_counter() - began)
            device.close()
            return drawn

        plain = draw(httpx.HTTPTransport())
        wanted = np.asarray(hybrid.generate("red apple", "noto", 50 - plain.steps, seed).images[0], dtype=int)
        headers = {"Authorization": f"Bearer {edge.tokens['ann']}"}
        asked = httpx.post(f"{edge.url}/v1/requests", json=BODY | {"seed": seed}, headers=headers).json()
        got = httpx.get(
            f"{edge.url}/v1/requests/{asked['id']}/packet", params={"wait": 25}, headers=headers, timeout=30
        )
        size = len(got.content) + sum(len(key) + len(value) + 4 for key, value in got.headers.raw)
        places = sorted({*range(0, size, every_bytes), size // 2, size - 1})
        for kind in ("reset_after", "truncate_after", "stall_after"):
            for place in places:
                with LinkProxy("127.0.0.1", edge.port, Toxics(**{kind: place + 1})) as link:
                    transport = CutOnce(int(link.url.rsplit(":", 1)[1]))
                    drawn = draw(transport)
                cuts += transport.cut
                off = np.abs(np.asarray(drawn.image, dtype=int) - wanted).max()
                wrong += drawn.where != "edge" or off > 1
            print(f"{kind}: {cuts} cuts, {wrong} wrong", flush=True)
    return dict(
        cuts=cuts, answer_bytes=size, places=len(places), wrong=int(wrong), plain_s=seconds[0],
        with_a_cut_median_s=float(np.median(seconds[1:])),
    )  # fmt: skip


def duplicates(rounds: int, at_once: int = 100) -> dict:
    """The same request many times at once: computed once; with another body under the same key it is refused."""
    more_than_one, refused, statuses = 0, 0, Counter()

    async def run(edge: RunningEdge) -> None:
        nonlocal more_than_one, refused
        limits = httpx.Limits(max_connections=at_once, keepalive_expiry=2.0)  # before the edge closes idle ones
        headers = {"Authorization": f"Bearer {edge.tokens['ann']}"}
        async with httpx.AsyncClient(base_url=edge.url, headers=headers, timeout=60, limits=limits) as client:
            for number in range(rounds):
                key = {"Idempotency-Key": f"round-{number}"}
                body = BODY | {"seed": number}
                asking = [client.post("/v1/requests", json=body, headers=key) for _ in range(at_once)]
                answers = await asyncio.gather(*asking)
                statuses.update(answer.status_code for answer in answers)
                names = {answer.json().get("id") for answer in answers}
                more_than_one += len(names) != 1
                changed = await client.post("/v1/requests", json=body | {"prompt": "house"}, headers=key)
                refused += changed.status_code == 422
                await client.delete(f"/v1/requests/{names.pop()}")

    with running("--policy", "first_come", users=["ann"]) as edge:
        asyncio.run(run(edge))
        asked = sum(len(event.ids) for event in facts_of(edge)[0] if event.kind == "ask")
    return dict(
        rounds=rounds, at_once=at_once, accepted=statuses[202], other_answers=statuses.total() - statuses[202],
        decided=asked, more_than_one=more_than_one, changed_body_refused=refused,
    )  # fmt: skip


def races(count: int, at_once: int = 16, seed: int = 0) -> dict:
    """Requests taken back at random moments round the end of their steps, over the network; nothing may stay behind."""
    rng, answers = np.random.default_rng(seed), Counter()

    async def one(client: httpx.AsyncClient, number: int, longest_s: float) -> None:
        asked = await client.post("/v1/requests", json=BODY | {"seed": number})
        while asked.status_code in (429, 503):
            answers["asked again"] += 1
            await asyncio.sleep(0.2)
            asked = await client.post("/v1/requests", json=BODY | {"seed": number})
        name, granted = asked.json()["id"], asked.json()["granted"]
        answers["granted"] += granted
        await asyncio.sleep(float(rng.uniform(0.0, longest_s)))
        ready = granted and (await client.get(f"/v1/requests/{name}/packet?wait=0")).status_code == 200
        answers["finished first"] += ready
        taken = await client.delete(f"/v1/requests/{name}")
        answers["not cancelled"] += taken.json() != {"state": "cancelled"}
        after = await client.get(f"/v1/requests/{name}/packet?wait=0")
        answers["packet after the end"] += after.status_code not in (410, 404)

    async def run(edge: RunningEdge) -> dict:
        headers, turn = {"Authorization": f"Bearer {edge.tokens['ann']}"}, asyncio.Semaphore(at_once)
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
        async with httpx.AsyncClient(base_url=edge.url, headers=headers, timeout=60, limits=limits) as client:

            async def whole(number: int) -> float:
                began = time.perf_counter()
                name = (await client.post("/v1/requests", json=BODY | {"seed": number})).json()["id"]
                await client.get(f"/v1/requests/{name}/packet?wait=25")
                await client.delete(f"/v1/requests/{name}")
                return time.perf_counter() - began

            # a crowd that waits shows how long one takes in company; those who race give up at most 1.5 times later
            longest_s = 1.5 * float(np.median(await asyncio.gather(*(whole(number) for number in range(16)))))

            async def in_turn(number: int) -> None:
                async with turn:
                    await one(client, number, longest_s)

            await asyncio.gather(*(in_turn(number) for number in range(count // 5)))
            before_mb = memory_mb(edge)
            await asyncio.gather(*(in_turn(number) for number in range(count // 5, count)))
            async with client.stream("GET", "/events", params={"token": edge.viewer}) as stream:
                async for line in stream.aiter_lines():
                    view = json.loads(line[6:]) if line.startswith("data: ") else dict(batch=[0], waiting=[])
                    if not view["batch"] and not view["waiting"]:
                        break  # everyone is out
            last = (await client.post("/v1/requests", json=BODY)).json()
            got = await client.get(f"/v1/requests/{last['id']}/packet?wait=25")
            return dict(memory_after_a_fifth_mb=before_mb, memory_last_mb=memory_mb(edge), last=got.status_code)

    few = ("--num-steps", "6", "--max-batch", "16", "--policy", "first_come", "--keep", "10")
    with running(*few, users=["ann"]) as edge:
        rest = asyncio.run(run(edge))
    names = ("granted", "finished first", "not cancelled", "packet after the end", "asked again")
    return dict(races=count, **{name.replace(" ", "_"): answers[name] for name in names}, **rest)


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


#: everybody is granted what is best for one alone, so that a crowd has to wait, and is turned away once 64 wait
GENEROUS = ("--policy", "posted_price", "--expected-hz", "0.1", "--max-waiting", "64")
PEOPLE = [f"user{i}" for i in range(8)]


def asked_of(step_s: float, rate_hz: float, count: int, seed: int) -> pd.DataFrame:
    """Requests from devices two and four times slower than a step of the edge; most leave it half of theirs or more."""
    crowd = Crowd((2 * step_s, 4 * step_s), alpha_steps=(10.0, 80.0))
    return draw_requests(rate_hz, count, seed, crowd=crowd)


def under_load(times_capacity: float, seconds: float, every_s: float = 0.5, seed: int = 0) -> dict:
    """Requests at so many times what an edge can do: memory, health, rejections, and promises kept."""

    async def run(edge, requests):
        health, memory = [], []
        watching = asyncio.ensure_future(_watch(edge, every_s, health, memory))
        table = await play(edge.url, list(edge.tokens.values()), requests, give_up_s=120.0)
        watching.cancel()
        return table, np.array(health), np.array(memory)

    with running(*GENEROUS, users=PEOPLE) as edge:
        table_s, tokens = facts_of(edge)[1], list(edge.tokens.values())
        few = asyncio.run(play(edge.url, tokens, asked_of(table_s[0], 1.0, 20, 1)))
        capacity_hz = len(table_s) / (table_s[-1] * few.steps.mean())  # members of a full step, over a mean grant
        rate_hz = times_capacity * capacity_hz
        requests = asked_of(table_s[0], rate_hz, max(1, int(rate_hz * seconds)), seed)
        table, health, memory = asyncio.run(run(edge, requests))
    said = report(table)
    refused = table[table.status.isin([429, 503])]
    kept = table[table.total_s.notna()]
    over = (kept.total_s - kept.predicted_longest_s) / kept.predicted_longest_s
    part = max(1, len(memory) // 5)
    warm = memory[part : 2 * part, 1]  # the second fifth: once everything was used
    return dict(
        capacity_hz=capacity_hz, rate_hz=rate_hz, seconds=seconds, requests=len(table), arrived=said["arrived"],
        granted=int((table.steps > 0).sum()), turned_away=len(refused), no_answer=said["failed"],
        refused_p99_s=float(refused.answer_s.quantile(0.99)) if len(refused) else None,
        health_p99_s=float(np.quantile(health, 0.99)), over_promise_share=float((over > 0.05).mean()),
        over_promise_p99=float(over.quantile(0.99)), error_mean=said["error_mean"],
        asked_late_p99_s=float(table.late_s.quantile(0.99)),
        memory_first_mb=float(warm.mean()), memory_last_mb=float(memory[-part:, 1].mean()),
        memory_most_mb=float(memory[:, 1].max()),
    )  # fmt: skip


#: what is run, its settings in full, and those of ``--short``
PARTS = {
    "edge killed": (edge_kills, dict(count=50), dict(count=5)),
    "device killed": (device_kills, dict(count=50), dict(count=5)),
    "link cut": (link_cuts, dict(every_bytes=256), dict(every_bytes=4096)),
    "duplicates": (duplicates, dict(rounds=100), dict(rounds=3)),
    "cancelled while finishing": (races, dict(count=10_000), dict(count=500)),
    "ten times too many": (
        under_load,
        dict(times_capacity=10.0, seconds=300.0),
        dict(times_capacity=10.0, seconds=30.0),
    ),
    "half an hour at 80 %": (
        under_load,
        dict(times_capacity=0.8, seconds=1800.0, every_s=2.0),
        dict(times_capacity=0.8, seconds=60.0),
    ),
}


def stored(out: Path) -> dict[str, dict]:
    """Rows of the parts that were run before, by name."""
    return {} if not out.exists() else {row["part"]: row for row in pd.read_csv(out).to_dict("records")}


def run_part(part: str, out: Path, short: bool = False, again: bool = False, notes: str = "") -> dict | None:
    """Run a part and store its row; None if it is there already with the same settings.

    Args:
        part: of ``PARTS``.
        out: table of one row a part; nothing is written if ``short``.
        short: in minutes.
        again: also if it is there.
        notes: for the sidecar, after those of the parts before.
    """
    function, settings, briefly = PARTS[part]
    settings = briefly if short else settings
    said = json.dumps(settings)
    if not (short or again) and stored(out).get(part, {}).get("settings") == said:
        return None
    began = time.perf_counter()
    found = function(**settings)
    row = dict(
        part=part, settings=said, seconds=round(time.perf_counter() - began, 1),
        date_utc=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), what=json.dumps(found),
    )  # fmt: skip
    if not short:
        rows = stored(out) | {part: row}
        write_rows(out, [rows[name] for name in PARTS if name in rows])
        before = json.loads(meta_path(out).read_text()).get("notes", {}) if meta_path(out).exists() else {}
        said_of = {name: text for name, text in {**before, part: notes}.items() if text}
        write_meta(out, kind="measured", command="make soak", seed=0, notes=said_of)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"of: {', '.join(PARTS)}; all if left out")
    parser.add_argument("--short", action="store_true", help="minutes, and nothing is written")
    parser.add_argument("--again", action="store_true", help="also what is stored already")
    parser.add_argument("--out", type=Path, default=data_path("serving", "soak.csv"), help="the table")
    parser.add_argument("--notes", default="", help="what else the machine did, for the sidecar")
    options = parser.parse_args()
    for part in options.part:
        one_of("part", part, PARTS)
    for part in options.part or PARTS:
        row = run_part(part, options.out, options.short, options.again, options.notes)
        print(part, "is stored already" if row is None else row["what"], flush=True)


if __name__ == "__main__":
    main()

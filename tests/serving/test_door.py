"""Several edges behind one door: decisions are the simulator's, and devices notice nothing."""

import asyncio
import heapq
import json

import httpx
import pytest

from splitpoint.edge import Edge, EdgeCore, Poisson, Request, System, draw_paths, make_policy, simulate
from splitpoint.edge.observation import Inside
from splitpoint.offloading import LatencyModel
from splitpoint.serving.door import Door, EdgeBehind, Routing
from splitpoint.serving.protocol import Tokens
from splitpoint.serving.service import ServiceOptions

from .pretend_engine import PretendEngine

EDGES = (Edge(LatencyModel(0.0005, 0.002), max_batch=6), Edge(LatencyModel(0.001, 0.003), max_batch=4, transfer_s=0.02))
BODY = dict(prompt="cat", seed=1, device_step_s=1.0, alpha=0.0)
ANN, BEN = {"Authorization": "Bearer token-of-ann"}, {"Authorization": "Bearer token-of-ben"}


def drive(routing, path):
    """Two cores with a fake clock, which say of themselves what a door would hear."""
    cores = [EdgeCore(edge.max_batch) for edge in EDGES]
    events = [(time, 1, number) for number, time in enumerate(path.arrival_s)]
    heapq.heapify(events)
    decided, left = {}, {}
    while events:
        now, kind, number = heapq.heappop(events)
        if kind == 0:
            left |= {departure.id: now for departure in cores[number].step_done(now)}
        else:
            request = Request(number, now, path.device_step_s[number], path.alpha[number])
            edge, steps = routing.decide(request, [Inside.of(core) for core in cores], now, path.draw[number])
            decided[number] = edge, steps
            if steps:
                cores[edge].submit(number, steps)
        if not events or events[0][0] > now:
            for place, core in enumerate(cores):
                if not core.running and (ids := core.next_batch(now)):
                    heapq.heappush(events, (now + float(EDGES[place].latency.step_latency_s(len(ids))), 0, place))
    return decided, left


@pytest.mark.parametrize("name", ["first_come", "posted_price", "replanning", "myopic", "fluid_resolving"])
def test_requests_are_routed_as_in_the_simulator(name):
    arrivals = Poisson(20.0, horizon_s=15.0)
    (path,) = draw_paths(EDGES, arrivals, seed=4)
    table = simulate(EDGES, [path], make_policy(name, EDGES, arrivals), close=False)
    decided, left = drive(Routing(System(EDGES), make_policy(name, EDGES, arrivals)), path)
    served = table[table.edge >= 0]
    assert set(served.edge) == {0, 1}
    granted = {number: answer for number, answer in decided.items() if answer[1]}
    assert granted == {row.request: (row.edge, row.granted_steps) for row in served.itertuples()}
    for row in served.itertuples():
        assert left[row.request] == pytest.approx(row.left_s, abs=1e-9)


def test_nobody_is_sent_to_an_edge_that_does_not_answer():
    system, request = System(EDGES), Request("new", 0.0, 1.0, 0.0)
    for name in ("first_come", "posted_price"):
        routing = Routing(system, make_policy(name, EDGES, Poisson(4.0)))
        answers = [routing.decide(request, [None, Inside()], 1.0 + i, i / 40) for i in range(40)]
        assert {edge for edge, _ in answers} == {1}
    with pytest.raises(ValueError, match="no edge that answers"):
        routing.decide(request, [None, None], 100.0)


def test_a_policy_must_answer_at_once_and_within_bounds():
    system = System(EDGES)
    with pytest.raises(ValueError, match="policy plans windows"):
        Routing(system, make_policy("window_plan", EDGES))
    from splitpoint.edge import Decision

    for wrong in (Decision(2, 5), Decision(0, 10_000)):
        with pytest.raises(ValueError, match="policy"):
            Routing(system, lambda _, wrong=wrong: wrong).decide(Request("new", 0.0, 1.0, 0.0), [Inside()] * 2, 1.0)


def behind(number, tokens, engine, **more):
    options = ServiceOptions("all_local", **{**dict(repeats=3, max_waiting=1_000), **more})
    return EdgeBehind(number, engine, options, tokens, "viewer-token")


def through_the_door(scenario, engines=None, policy="first_come", **more):
    """Run a scenario on a client of a door with two edges."""

    async def run():
        tokens = Tokens({"ann": "token-of-ann", "ben": "token-of-ben"})
        edges = [behind(n, tokens, e, **more) for n, e in enumerate(engines or [PretendEngine(), PretendEngine()])]
        for edge in edges:
            await edge.start()
        try:
            door = Door(edges, tokens, policy)
            await door.start()
            transport = httpx.ASGITransport(door.app(), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://door", headers=ANN) as client:
                return await scenario(client, door)
        finally:
            for edge in edges:
                await edge.stop()

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_a_device_speaks_with_two_edges_as_with_one():
    async def scenario(client, door):
        where = set()
        for seed in range(8):
            asked = await client.post("/v1/requests", json=BODY | {"seed": seed})
            said = asked.json()
            assert asked.status_code == 202 and said["granted"]
            where.add(said["id"].split("-")[0])
        assert where == {"0", "1"}
        for edge in door.edges:
            edge.service.engine.by_hand = False
            edge.service.engine.gate.release()
        address = f"/v1/requests/{said['id']}"
        got = await client.get(f"{address}/packet", params={"wait": 10})
        assert got.content == f"cat 7 {said['steps']}".encode()
        assert set(json.loads(got.headers["x-spans"])) == {"queue_s", "steps_s", "hand_over_s", "held_s"}
        assert (await client.get(f"{address}/packet", headers=BEN)).status_code == 404
        done = dict(transfer_s=0.0, device_s=0.1, decode_s=0.0, total_s=1.0)
        assert (await client.post(f"{address}/ack", json=done)).json() == {"state": "done"}
        assert (await client.get(address)).json()["state"] == "done"
        other = (await client.post("/v1/requests", json=BODY)).json()
        assert (await client.delete(f"/v1/requests/{other['id']}")).json() == {"state": "cancelled"}
        assert (await client.get(f"/v1/requests/{other['id']}/packet")).status_code == 410
        finished = [
            (await client.get(f"/edges/{number}/v1/finished", params={"token": "viewer-token"})).json()
            for number in range(2)
        ]
        assert sum(map(len, finished)) == 1

    through_the_door(scenario, [PretendEngine(by_hand=True), PretendEngine(by_hand=True)])


def test_duplicates_find_the_edge_that_knows_them():
    async def scenario(client, door):
        key = {"Idempotency-Key": "once"}
        asking = [client.post("/v1/requests", json=BODY, headers=key) for _ in range(40)]
        others = [client.post("/v1/requests", json=BODY | {"seed": seed}) for seed in range(10)]
        answers = await asyncio.gather(*asking, *others)
        assert len({answer.json()["id"] for answer in answers[:40]}) == 1
        assert len({answer.json()["id"] for answer in answers[40:]}) == 10
        changed = await client.post("/v1/requests", json=BODY | {"prompt": "dog"}, headers=key)
        assert (changed.status_code, changed.json()["error"]) == (422, "Idempotency-Key was used with another body")
        mine = await client.post("/v1/requests", json=BODY, headers={**key, **BEN})
        assert mine.json()["id"] != answers[0].json()["id"]

    through_the_door(scenario)


@pytest.mark.parametrize(
    "method, path, options, status",
    [
        ("POST", "/v1/requests", dict(headers={"Authorization": "Bearer forged-token"}, json=BODY), 401),
        ("POST", "/v1/requests", dict(content=b"[" * 10_000), 422),
        ("POST", "/v1/requests", dict(content=b"x" * 20_000), 413),
        ("POST", "/v1/requests", dict(json=BODY | {"device_step_s": -1}), 422),
        ("POST", "/v1/requests", dict(json=BODY | {"decided_steps": 3}), 422),
        ("POST", "/v1/requests", dict(json=BODY, headers={"Idempotency-Key": "a b"}), 422),
        ("GET", "/v1/requests/7-abc/packet", {}, 404),
        ("GET", "/v1/requests/0-abc/packet", {}, 404),
        ("GET", "/v1/requests/..%2f..%2fetc/packet", {}, 404),
        ("GET", "/edges/0/metrics", dict(headers={"Authorization": "x"}), 401),
        ("GET", "/edges/2/metrics", {}, 404),
        ("GET", "/edges/0/v1/requests/x", {}, 404),
        ("GET", "/edges/0/events", {}, 404),
        ("GET", "/docs", {}, 404),
        ("PUT", "/v1/requests", {}, 405),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(method, path, options, status):
    async def scenario(client, door):
        answer = await client.request(method, path, **options)
        assert answer.status_code == status
        said = answer.json()["error"]
        assert "\n" not in said and len(said) <= 200 and "Traceback" not in said

    through_the_door(scenario)


def test_an_edge_that_is_gone_is_told_and_the_other_serves():
    async def scenario(client, door):
        first = (await client.post("/v1/requests", json=BODY)).json()["id"]
        gone = int(first.split("-")[0])

        class Gone:
            async def look(self, *_):
                raise ConnectionError("gone")

            async def answer(self, *_):
                raise ConnectionError("gone")

        door.edges[gone] = Gone()
        for seed in range(6):
            said = (await client.post("/v1/requests", json=BODY | {"seed": seed})).json()
            assert said["id"].startswith(f"{1 - gone}-")
        lost = await client.get(f"/v1/requests/{first}/packet")
        assert lost.status_code == 503 and "retry-after" in lost.headers
        health = await client.get("/healthz")
        assert health.status_code == 503 and [one["ok"] for one in health.json()["edges"]].count(False) == 1
        door.edges[1 - gone] = Gone()
        none = await client.post("/v1/requests", json=BODY)
        assert (none.status_code, none.json()) == (503, {"error": "no edge is there at the moment"})

    through_the_door(scenario)


def test_one_that_stays_at_home_is_remembered_all_the_same():
    async def scenario(client, door):
        said = (await client.post("/v1/requests", json=BODY)).json()
        assert not said["granted"]
        assert (await client.get(f"/v1/requests/{said['id']}")).json()["state"] == "home"

    through_the_door(scenario, policy="all_local")


def test_edges_must_hold_one_model():
    async def scenario(client, door):
        door.edges[1].service.engine.facts["fingerprint"] = "another"
        with pytest.raises(ValueError, match="edges hold different models"):
            await door.start()
        with pytest.raises(ValueError, match="edges is empty"):
            Door([], Tokens({}))

    through_the_door(scenario)


def test_strangers_pictures_go_to_the_emptiest_edge():
    async def scenario(client, door):
        busy = door.edges[0].service
        busy.engine.by_hand = True
        for seed in range(4):
            headers = {"authorization": "Bearer token-of-ann"}
            body = json.dumps(BODY | {"seed": seed}).encode()
            await door.edges[0].answer("POST", "/v1/requests", b"", headers, body, 5)
        before = len(door.edges[1].service.tickets)
        await client.post("/v1/images/generations", json=dict(prompt="house"))
        assert len(door.edges[1].service.tickets) == before + 1
        inside = Inside.of(busy.conductor.core)
        assert len(inside.members) + len(inside.waiting) == 4

    through_the_door(scenario)

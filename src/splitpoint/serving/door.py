"""One door before several edges: their common policy says which edge serves, and for how many steps.

Behind it stand whole edges, each with its engine, its batch and its own application; what the door does not decide it
passes on, so that a device speaks with several edges as it does with one. An id begins with its edge's number.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import numpy as np
from fastapi import FastAPI, Request, Response

from splitpoint.checks import a_sequence, instance_of
from splitpoint.edge import ArrivalRates, System, make_policy, observe
from splitpoint.edge import Request as Asking
from splitpoint.edge.observation import Inside
from splitpoint.edge.simulator import a_decision, is_a_policy
from splitpoint.serving.app import bare_app, create_app
from splitpoint.serving.engine import Engine
from splitpoint.serving.journal import Journal
from splitpoint.serving.protocol import Ask, Tokens, read_body
from splitpoint.serving.service import Refused, Service, ServiceOptions, expected_on

#: status, headers and body of an answer
Answer = tuple[int, dict[str, str], bytes]

_OF_A_REQUEST = re.compile(r"/v1/requests/(\d{1,6})-[^/]+(/[a-z]+)?")
_OF_AN_EDGE = re.compile(r"/edges/(\d{1,6})(/metrics|/healthz|/v1/log|/v1/finished|/pictures/[^/]+)")
_PASSED_ON = {b"authorization", b"content-type", b"idempotency-key"}


def emptiest(inside: Sequence[Inside | None]) -> int:
    """Number of the edge with the fewest on it, of those that answer.

    Raises:
        ValueError: if none does.
    """
    there = {number: one.count for number, one in enumerate(inside) if one is not None}
    if not there:
        raise ValueError("inside is of no edge that answers; at least one is needed")
    return min(there, key=lambda number: there[number])


class Routing:
    """Decisions over several edges, from what each says about itself.

    Args:
        system: the edges.
        policy: ``(Observation) -> Decision``.

    Raises:
        ValueError: for what is no policy, or plans windows.
    """

    def __init__(self, system: System, policy: Any):
        instance_of("system", system, System)
        is_a_policy("policy", policy)
        if getattr(policy, "window_s", None) is not None:
            raise ValueError("policy plans windows, and for one edge; valid is one that answers each request at once")
        if hasattr(policy, "reset"):
            policy.reset(1)
        self.system, self.policy, self.rates = system, policy, ArrivalRates()

    def decide(
        self, request: Asking, inside: Sequence[Inside | None], now_s: float, draw: float = 0.5
    ) -> tuple[int, int]:
        """Which edge, and how many steps there.

        Args:
            request: who asks.
            inside: who is on each edge; None for one that does not answer: nobody is sent there.
            now_s: moment, on any clock that rises.
            draw: uniform on [0, 1), for policies that toss a coin.

        Returns:
            Number of the edge and steps; no steps leave the request at home, and the emptiest edge remembers it.

        Raises:
            ValueError: if no edge answers, or the policy's answer is none.
        """
        home = emptiest(inside)
        full = [Inside((1,) * int(limit)) for limit in self.system.limits]  # what an absent edge looks like
        seen = [full[number] if one is None else one for number, one in enumerate(inside)]
        free = [1.0] * len(seen)
        rates = self.rates.seen(np.float64(now_s))
        decision = a_decision(self.policy(observe(request, seen, free, rates, self.system, draw)))
        edge, steps = int(np.asarray(decision.edge)), int(np.asarray(decision.steps))
        if edge >= len(seen) or not 0 <= steps <= self.system.most_steps:
            raise ValueError(f"policy answers edge {edge} and {steps} steps; valid are [-1, {len(seen)}) and at most "
                             f"{self.system.most_steps}")  # fmt: skip
        if edge >= 0 and steps > 0 and inside[edge] is not None:
            return edge, steps
        return home, 0


class Behind(Protocol):
    """An edge as its door sees it, wherever it runs."""

    async def machine(self) -> dict:
        """``edge`` and ``parameters`` for the policy, ``fingerprint`` of the model."""
        ...

    async def look(self, user: str, key: str | None) -> tuple[Inside, bool]:
        """Who is on it, and whether it knows this user's key."""
        ...

    async def answer(
        self, method: str, path: str, query: bytes, headers: Mapping[str, str], body: bytes, steps: int | None = None
    ) -> Answer:
        """What its application says; ``steps`` are what was decided for a request that asks."""
        ...


class EdgeBehind:
    """A whole edge without a network of its own.

    Args:
        number: of the edge, from 0.
        engine: that computes.
        options: see ``ServiceOptions``; the policy is the door's.
        tokens: who may ask, as at the door.
        viewer: token of what only looks.
        journal: for restarts.
    """

    def __init__(
        self,
        number: int,
        engine: Engine,
        options: ServiceOptions,
        tokens: Tokens,
        viewer: str,
        journal: Journal | None = None,
    ):
        self.service = Service(engine, options, journal, mark=f"{number}-")
        self.app = create_app(self.service, tokens, viewer)

    async def start(self) -> None:
        """Load the engine and time its steps."""
        await self.service.start()

    async def stop(self) -> None:
        """End the engine."""
        await self.service.stop()

    async def machine(self) -> dict:
        """See ``Behind``."""
        system = self.service.system
        fingerprint = self.service.engine.facts["fingerprint"]
        return dict(edge=system.edges[0], parameters=system.parameters, fingerprint=fingerprint)

    async def look(self, user: str, key: str | None) -> tuple[Inside, bool]:
        """See ``Behind``."""
        return Inside.of(self.service.conductor.core), bool(key) and (user, key) in self.service.keys

    async def answer(
        self, method: str, path: str, query: bytes, headers: Mapping[str, str], body: bytes, steps: int | None = None
    ) -> Answer:
        """See ``Behind``."""
        scope = dict(
            type="http", asgi={"version": "3.0"}, http_version="1.1", method=method, scheme="http", path=path,
            raw_path=path.encode(), query_string=query, root_path="", client=None, server=None, decided_steps=steps,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        )  # fmt: skip
        said: list[dict] = []

        async def receive() -> dict:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict) -> None:
            said.append(message)

        try:
            await self.app(scope, receive, send)
        except Exception:
            if not said:  # a mistake that was answered with a 500 is raised all the same, for a server's log
                raise
        start = said[0]
        back = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
        return start["status"], back, b"".join(message.get("body", b"") for message in said[1:])


class Door:
    """What devices talk to.

    Args:
        edges: behind it, by number.
        tokens: who may ask.
        policy: a name of ``edge.policies()``, or a file of a learned curve.
        expected_hz: arrivals at all edges together that tuned policies are tuned for.
        patience_s: how long an edge may take to say who is on it; nobody is sent to one that takes longer.

    Raises:
        ValueError: without an edge.
    """

    def __init__(
        self,
        edges: Sequence[Behind],
        tokens: Tokens,
        policy: str = ServiceOptions.policy,
        expected_hz: float = ServiceOptions.expected_hz,
        patience_s: float = 1.0,
    ):
        self.edges, self.tokens = list(a_sequence("edges", edges)), tokens
        self.policy, self.expected_hz, self.patience_s = policy, expected_hz, patience_s
        self._turn, self._rng, self._start = asyncio.Lock(), np.random.default_rng(0), monotonic()

    async def start(self) -> None:
        """Ask every edge what it is, and make the policy for all of them.

        Raises:
            ValueError: if they hold different models, or the policy plans windows.
        """
        machines = await asyncio.gather(*(edge.machine() for edge in self.edges))
        if len({one["fingerprint"] for one in machines}) > 1:
            raise ValueError("edges hold different models; valid is one model on all of them")
        system = System(tuple(one["edge"] for one in machines), machines[0]["parameters"])
        policy = make_policy(self.policy, system.edges, expected_on(system, self.expected_hz), system.parameters)
        self.routing = Routing(system, policy)

    def app(self) -> FastAPI:
        """The application, as FastAPI knows it."""
        web = bare_app()

        @web.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])
        async def everything(request: Request, path: str) -> Response:
            headers = {name.decode(): value.decode("latin-1") for name, value in request.headers.raw
                       if name.lower() in _PASSED_ON}  # fmt: skip
            query = request.scope["query_string"]
            status, back, content = await self.answer(
                request.method, request.scope["path"], query, headers, await request.body()
            )
            return Response(content, status, {name: value for name, value in back.items() if name != "content-length"})

        return web

    async def answer(self, method: str, path: str, query: bytes, headers: Mapping[str, str], body: bytes) -> Answer:
        """What one of the edges says.

        Raises:
            Refused: 404 for an address that is nowhere, 503 if the edge is not there at the moment.
        """
        passed = method, path, query, headers, body
        if (method, path) == ("POST", "/v1/requests"):
            return await self._ask(passed)
        if (method, path) == ("POST", "/v1/images/generations"):
            seen = await self._look("", None)
            inside = [one and one[0] for one in seen]
            return await self._pass_on(_emptiest_there(inside), passed)
        if (method, path) == ("GET", "/healthz"):
            return await self._health(passed)
        for pattern in (_OF_A_REQUEST, _OF_AN_EDGE):
            found = pattern.fullmatch(path)
            if found and int(found[1]) < len(self.edges):
                there = found[2] if pattern is _OF_AN_EDGE else path
                return await self._pass_on(int(found[1]), (method, there, query, headers, body))
        if path.startswith("/v1/requests/"):
            return await self._pass_on(0, passed)  # nobody's id: says so, to those who may ask
        raise Refused(404, "there is nothing at this address")

    async def _ask(self, passed: tuple) -> Answer:
        """Look at all edges, decide, and tell the one that is chosen; one request at a time, so that nobody comes
        between looking and deciding."""
        headers, body = passed[3], passed[4]
        user, key = self.tokens.user(headers.get("authorization")), headers.get("idempotency-key")
        try:
            ask = read_body(Ask, body)
        except ValueError:
            ask = None
        if user is None or ask is None:
            return await self._pass_on(0, passed)  # which refuses it by name
        async with self._turn:
            seen = await self._look(user, key)
            known = next((number for number, one in enumerate(seen) if one and one[1]), None)
            if known is not None:
                return await self._pass_on(known, passed, 0)
            inside = [one and one[0] for one in seen]
            _emptiest_there(inside)  # refuses if there is none
            now = monotonic() - self._start
            request = Asking("new", now, ask.device_step_s, ask.alpha)
            number, steps = self.routing.decide(request, inside, now, float(self._rng.random()))
            return await self._pass_on(number, passed, steps)

    async def _look(self, user: str, key: str | None) -> list[tuple[Inside, bool] | None]:
        async def one(edge: Behind):
            try:
                return await asyncio.wait_for(edge.look(user, key), self.patience_s)
            except Exception:  # whatever keeps it: it is not there
                return None

        return list(await asyncio.gather(*(one(edge) for edge in self.edges)))

    async def _pass_on(self, number: int, passed: tuple, steps: int | None = None) -> Answer:
        try:
            return await self.edges[number].answer(*passed, steps)
        except Exception:  # of the way there: an edge turns its own errors into answers
            raise Refused(503, "this edge is not there at the moment", 2.0) from None

    async def _health(self, passed: tuple) -> Answer:
        said = []
        for number in range(len(self.edges)):
            try:
                said.append(json.loads((await asyncio.wait_for(self._pass_on(number, passed), self.patience_s))[2]))
            except (Refused, TimeoutError):
                said.append({"ok": False})
        fine = all(one["ok"] for one in said)
        content = json.dumps({"ok": fine, "edges": said}).encode()
        return (200 if fine else 503), {"content-type": "application/json"}, content


def _emptiest_there(inside: Sequence[Inside | None]) -> int:
    try:
        return emptiest(inside)
    except ValueError:
        raise Refused(503, "no edge is there at the moment", 2.0) from None

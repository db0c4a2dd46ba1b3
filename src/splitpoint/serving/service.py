"""The edge's memory of every request, between the network, the conductor and the engine; everything on one event loop.

A request is accepted (written to the journal, then answered), waits, is a member, is handed over, fetched, and
acknowledged. Everything that may refuse it comes before the engine hears of it.
"""

import asyncio
import math
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any

import numpy as np

from splitpoint.checks import finite_number, instance_of, whole_number
from splitpoint.edge import Edge, Poisson, Request, System, Users, make_policy
from splitpoint.offloading import AccuracyModel, StepLatency, SystemParameters, TableLatency, published_profiles
from splitpoint.offloading.problem import RELEASED_ACCURACY
from splitpoint.serving.conductor import Conductor
from splitpoint.serving.engine import Engine, EngineDied, HandOver, Job
from splitpoint.serving.forecast import Forecast
from splitpoint.serving.journal import Journal
from splitpoint.serving.metrics import Metrics
from splitpoint.serving.protocol import Ask, Timings

TABLE_BATCHES = (1, 2, 4, 8, 12, 18, 24, 32)
OPEN, SHUT = ("waiting", "granted", "home"), ("done", "cancelled", "failed", "expired")


@dataclass(frozen=True)
class ServiceOptions:
    """How an edge behaves.

    Args:
        policy: a name of ``edge.policies()``, or a file of a learned curve.
        transfer_s: hand-over of a packet to a device, for decisions and forecasts.
        min_split: fewest steps that stay on a device.
        max_waiting: requests that may wait for the batch; more are turned away with 429.
        max_live: requests that are not over; more are turned away with 503.
        keep_s: how long a packet waits to be fetched and acknowledged.
        repeats: steps a batch size is timed with at the start.
        accuracy: curve; the released one rescaled to the run if left out.
        expected_hz: arrivals that tuned policies are tuned for.
        table: seconds of a step against the batch, from an earlier start; measured at the start if left out.
    """

    policy: str = "posted_price"
    transfer_s: float = 0.005
    min_split: int = 0
    max_waiting: int = 64
    max_live: int = 2_000
    keep_s: float = 600.0
    repeats: int = 9
    accuracy: AccuracyModel | None = None
    expected_hz: float = 4.0
    table: TableLatency | None = None

    def __post_init__(self):
        finite_number("transfer_s", self.transfer_s, 0.0)
        whole_number("min_split", self.min_split, 0)
        whole_number("max_waiting", self.max_waiting, 1)
        whole_number("max_live", self.max_live, 1)
        whole_number("repeats", self.repeats, 1)
        finite_number("keep_s", self.keep_s, 0.0, open_end=True)
        finite_number("expected_hz", self.expected_hz, 0.0, open_end=True)
        if self.table is not None:
            instance_of("table", self.table, TableLatency)


def step_table(sizes: Sequence[int], seconds: Sequence[float]) -> TableLatency:
    """Seconds of a step as they were measured; a larger batch takes no less.

    Args:
        sizes: of the batch, rising.
        seconds: of a step at each. If only a single row was measured, the table, which needs two lines, gets a second.
    """
    if len(sizes) == 1:
        sizes, seconds = [sizes[0], 2 * sizes[0]], [seconds[0], 2 * seconds[0]]
    return TableLatency(tuple(map(float, sizes)), tuple(np.maximum.accumulate(seconds).tolist()))


def system_of(
    table: StepLatency,
    num_steps: int,
    max_batch: int,
    transfer_s: float = ServiceOptions.transfer_s,
    min_split: int = ServiceOptions.min_split,
    accuracy: AccuracyModel | None = None,
) -> System:
    """The running edge as policies and the simulator know it.

    Args:
        table: seconds of a step against the batch.
        num_steps, max_batch: of the engine.
        transfer_s, min_split, accuracy: see ``ServiceOptions``.
    """
    accuracy = accuracy or RELEASED_ACCURACY.rescaled(num_steps)
    parameters = SystemParameters(
        transmission="corrected", num_steps=num_steps, max_batch=max_batch, min_split=min_split, accuracy=accuracy
    )
    return System((Edge(table, max_batch=max_batch, transfer_s=transfer_s),), parameters)


def expected_on(system: System, rate_hz: float = ServiceOptions.expected_hz) -> Poisson:
    """Whom tuned policies are tuned for: the released devices, with preferences drawn against this edge."""
    return Poisson(rate_hz, users=Users(published_profiles(), system.edges[0].latency))


class Refused(Exception):
    """An answer that is no.

    Args:
        status: of HTTP.
        text: one line.
        retry_after_s: when to come again, if it makes sense.
    """

    def __init__(self, status: int, text: str, retry_after_s: float | None = None):
        super().__init__(text)
        self.status, self.text, self.retry_after_s = status, text, retry_after_s


@dataclass(eq=False)
class Ticket:
    """One request, from its acceptance to its end."""

    id: str
    user: str
    ask: Ask
    key: str | None
    digest: str
    accepted_s: float
    decode: bool = False
    state: str = "waiting"
    steps: int = 0
    price_s: float = 0.0  # of a step, when this was decided: what one more member costs all who are in
    predicted: dict = field(default_factory=dict)
    content: bytes | None = None
    error: str = ""
    joined_s: float | None = None
    left_s: float | None = None
    ready_s: float | None = None
    encode_s: float = 0.0
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def spans(self) -> dict:
        """Durations on the edge, seconds, one after the other; only durations cross machines."""
        if self.joined_s is None or self.left_s is None or self.ready_s is None:
            return {}
        return dict(
            queue_s=self.joined_s - self.accepted_s,
            steps_s=self.left_s - self.joined_s,
            hand_over_s=self.ready_s - self.left_s,
        )


class Service:
    """An edge without its network.

    Args:
        engine: that computes.
        options: see ``ServiceOptions``.
        journal: for restarts; none keeps nothing.
        now: a clock that rises, seconds.
        mark: put before the id of every request, where several edges must tell theirs apart.
    """

    def __init__(
        self,
        engine: Engine,
        options: ServiceOptions = ServiceOptions(),
        journal: Journal | None = None,
        now: Callable[[], float] = monotonic,
        mark: str = "",
    ):
        self.engine, self.options, self.journal, self.mark = engine, options, journal, mark
        start = now()
        self.now = lambda: now() - start
        self.tickets: dict[str, Ticket] = {}
        self.keys: dict[tuple[str, str], Ticket] = {}
        self.finished: deque[dict] = deque(maxlen=1_000)
        self.pictures: dict[str, tuple[str, str, bytes]] = {}
        self.listeners: set[asyncio.Queue] = set()
        self.metrics = Metrics()
        self.draining, self.ticks, self.deaths = False, 0, 0
        self._work, self._window, self._tasks = asyncio.Event(), [], []
        self._leaving: list[str] = []
        self._announced: set[str] = set()
        self._decode_s, self._hand_over_s, self._transfer_s = 0.03, 0.004, options.transfer_s
        self._shown_s = -1.0
        self._rng = np.random.default_rng(0)

    # --- life ---

    async def start(self) -> None:
        """Load the engine, time its steps, make the policy and take up what the journal holds."""
        await self.engine.start(self._handed_over, self._engine_died)
        table = self.options.table or await self._measured_table()
        facts, options = self.engine.facts, self.options
        self.system = system_of(
            table, facts["num_steps"], facts["max_batch"], options.transfer_s, options.min_split, options.accuracy
        )
        expected = expected_on(self.system, options.expected_hz)
        policy = make_policy(options.policy, self.system.edges, expected, self.system.parameters)
        self.conductor = Conductor(self.system, policy, Forecast(self.system.table_s[0, 1:]))
        if self.journal is not None:
            for fact in self.journal.live():
                self._restore(fact)
            self.journal.compact()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._stepping()), loop.create_task(self._sweeping())]
        if self.conductor.window_s is not None:
            self._tasks.append(loop.create_task(self._windows(self.conductor.window_s)))

    async def stop(self) -> None:
        """End everything; what is not over stays in the journal."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self.engine.stop()
        if self.journal is not None:
            self.journal.close()

    def check_health(self) -> None:
        """Whether the loops still turn.

        Raises:
            RuntimeError: if one has ended.
        """
        if not self._tasks or any(task.done() for task in self._tasks):
            raise RuntimeError("the edge does not step any more")

    async def drain(self, longest_s: float = 30.0) -> None:
        """Take nobody in any more and wait until who is here has the picture, or ``longest_s`` have passed."""
        self.draining = True
        until = monotonic() + longest_s
        while monotonic() < until and any(ticket.state in ("waiting", "granted") for ticket in self._open()):
            await asyncio.sleep(0.02)

    def _open(self) -> list[Ticket]:
        return [ticket for ticket in self.tickets.values() if ticket.state in OPEN]

    async def _measured_table(self) -> TableLatency:
        """Seconds of a step against the batch, as they are served: message, step, answer; medians."""
        most, repeats = self.engine.facts["max_batch"], self.options.repeats
        sizes = sorted({1, most, *(size for size in TABLE_BATCHES if size <= most)})
        steps = self.engine.facts["num_steps"]
        seconds = []
        for size in sizes:
            names = [f"timing-{size}-{row}" for row in range(size)]
            for name in names:
                self.engine.prepare(name, Job("timing", 0, steps))
            took = []
            for number in range(min(repeats + 2, steps - 1) if steps > 1 else 1):
                began = self.now()
                await self.engine.step(names if number == 0 else [], [])
                took.append(self.now() - began)
            for name in names:
                self.engine.forget(name)
            seconds.append(float(np.median(took[2:] or took)))
        return step_table(sizes, seconds)

    # --- asking ---

    async def ask(
        self, user: str, ask: Ask, key: str | None, digest: str, decode: bool = False, kept: int | None = None
    ) -> Ticket:
        """Accept a request or refuse it.

        Args:
            user: who asks.
            ask: for what.
            key: makes asking twice asking once.
            digest: of the body, to tell whether the second is the first.
            decode: the whole picture here.
            kept: steps that were decided elsewhere; the policy is not asked.

        Raises:
            Refused: 422 for a key that came with another body, 429 or 503 if there is no room.
        """
        known = self.keys.get((user, key)) if key else None
        if known is not None:
            if known.digest != digest:
                raise Refused(422, "Idempotency-Key was used with another body")
            await known.answered.wait()
            return known
        self._room()
        ticket = Ticket(f"{self.mark}{secrets.token_hex(8)}", user, ask, key, digest, self.now(), decode)
        self.tickets[ticket.id] = ticket
        if key:
            self.keys[user, key] = ticket
        kept = self.engine.facts["num_steps"] if decode else kept
        if kept is not None:
            self._carry_out([ticket], kept=[kept])
        elif self.conductor.window_s is not None:
            self._window.append(ticket)
        else:
            self._carry_out([ticket])
        await ticket.answered.wait()
        if ticket.state == "failed":
            raise Refused(503, ticket.error, 1.0)
        return ticket

    def _room(self) -> None:
        if self.draining:
            raise Refused(503, "the edge is closing", 10.0)
        waiting = len(self.conductor.core.waiting) + len(self._window)
        if waiting >= self.options.max_waiting:
            self.metrics.refused.inc()
            raise Refused(429, f"{waiting} requests wait already", self._until_room_s())
        if len(self.tickets) >= self.options.max_live:
            self.metrics.refused.inc()
            raise Refused(503, f"{len(self.tickets)} requests are not over yet", self._until_room_s())

    def _until_room_s(self) -> float:
        members = [member.left for member in self.conductor.core.members.values()] or [1]
        return min(members) * float(self.system.table_s[0, len(members)])

    def _carry_out(self, tickets: list[Ticket], kept: list[int] | None = None, journalled: bool = False) -> None:
        """Decide, write down, then tell the engine and who waits for an answer."""
        now = self.now()
        requests = [Request(t.id, now, t.ask.device_step_s, t.ask.alpha) for t in tickets]
        price_s = self._price_s()
        draws = self._rng.random(len(tickets)).tolist()
        deadlines = [t.ask.deadline_s for t in tickets]
        answers = self.conductor.decide(requests, now, draws, deadlines, kept)
        for ticket, (steps, promise) in zip(tickets, answers):
            ticket.steps, ticket.state, ticket.price_s = steps, "granted" if steps else "home", price_s
            ticket.predicted = self._predicted(ticket, promise)
            if not journalled and not self._write_down(ticket):
                continue
            if steps:
                self.engine.prepare(ticket.id, Job(ticket.ask.prompt, ticket.ask.seed, steps, ticket.decode))
                self._work.set()
            self.metrics.asked.labels("granted" if steps else "home").inc()
            ticket.answered.set()

    def _write_down(self, ticket: Ticket) -> bool:
        if self.journal is None:
            return True
        try:
            self.journal.write(
                dict(
                    kind="accepted",
                    id=ticket.id,
                    user=ticket.user,
                    key=ticket.key,
                    digest=ticket.digest,
                    ask=ticket.ask.model_dump(),
                    steps=ticket.steps,
                    decode=ticket.decode,
                )
            )
            return True
        except OSError as error:
            self.conductor.cancel(ticket.id, self.now())
            self._over(ticket, "failed", f"nothing can be written down: {error.strerror or error}")
            return False

    def _predicted(self, ticket: Ticket, promise: Any) -> dict:
        """Seconds from now to the picture, by part; the longest is for a batch that is full all the time."""
        parameters = self.system.parameters
        device = 0.0 if ticket.decode else (parameters.num_steps - ticket.steps) * ticket.ask.device_step_s
        if not ticket.steps or promise is None:
            return dict(
                edge_s=0.0, transfer_s=0.0, device_s=device, decode_s=self._decode_s, total_s=device + self._decode_s
            )
        transfer = self._transfer_s + self._hand_over_s
        rest = transfer + device + self._decode_s
        return dict(
            edge_s=promise.expected_s,
            transfer_s=transfer,
            device_s=device,
            decode_s=self._decode_s,
            total_s=promise.expected_s + rest,
            longest_s=promise.longest_s + rest,
        )

    async def _windows(self, window_s: float) -> None:
        while True:
            await asyncio.sleep(window_s)
            if self._window:
                tickets, self._window = self._window, []
                self._carry_out([t for t in tickets if t.state == "waiting"])

    def _restore(self, fact: dict) -> None:
        ticket = Ticket(
            fact["id"], fact["user"], Ask(**fact["ask"]), fact["key"], fact["digest"], self.now(), fact["decode"]
        )
        self.tickets[ticket.id] = ticket
        if ticket.key:
            self.keys[ticket.user, ticket.key] = ticket
        self._carry_out([ticket], kept=[fact["steps"]], journalled=True)

    # --- steps ---

    async def _stepping(self) -> None:
        """The loop: begin, one step, end; sleeps while nobody is there."""
        while True:
            await self._work.wait()
            ids = self.conductor.begin(self.now())
            if not ids:
                self._work.clear()
                self._show(at_once=True)
                continue
            joining = [name for name in ids if name not in self._announced]
            self._announced.update(joining)
            leaving, self._leaving = self._leaving, []
            began = self.now()
            for name in joining:
                self.tickets[name].joined_s = began
            try:
                stepped = await self.engine.step(joining, leaving)
            except EngineDied:
                await self._revive()
                continue
            now = self.now()
            self.ticks += 1
            self.metrics.step_s.observe(now - began)
            for departure in self.conductor.end(now, tuple(stepped.failed)):
                self._departed(departure.id, now, stepped.failed.get(departure.id, ""))
            self._show()

    def _departed(self, name: str, now: float, error: str) -> None:
        self._announced.discard(name)
        ticket = self.tickets.get(name)
        if ticket is None or ticket.state != "granted":
            self._leaving.append(name)  # cancelled while the step ran
            return
        ticket.left_s = now if ticket.ready_s is None else ticket.ready_s  # its packet may be here before this word
        if error:
            self._over(ticket, "failed", error)

    def _handed_over(self, done: HandOver) -> None:
        ticket = self.tickets.get(done.id)
        if ticket is None or ticket.state != "granted":
            return
        if done.error:
            self._over(ticket, "failed", done.error)
            return
        ticket.content, ticket.encode_s, ticket.ready_s = done.content, done.encode_s, self.now()
        if ticket.left_s is None:
            ticket.left_s = ticket.ready_s
        self._hand_over_s += 0.1 * (ticket.ready_s - ticket.left_s - self._hand_over_s)
        ticket.ready.set()

    def _engine_died(self) -> None:
        self._work.set()

    async def _revive(self) -> None:
        """A new engine; who was promised steps gets them again, from the seed."""
        self.deaths += 1
        await self.engine.stop()
        await self.engine.start(self._handed_over, self._engine_died)
        self.conductor.restart()
        self._announced.clear()
        self._leaving.clear()
        for ticket in self._open():
            if ticket.steps and ticket.content is None:
                self._carry_out([ticket], kept=[ticket.steps], journalled=True)

    # --- what devices do with their request ---

    def ticket(self, user: str, name: str) -> Ticket:
        """A user's own request.

        Raises:
            Refused: 404 for one that is not there or is another's, in the same words.
        """
        ticket = self.tickets.get(name)
        if ticket is None or ticket.user != user:
            raise Refused(404, "there is no such request")
        return ticket

    async def content(self, ticket: Ticket, wait_s: float) -> bytes | None:
        """The packet, or None if it is not ready within ``wait_s``.

        Raises:
            Refused: 409 for one that runs at home, 410 for one that is over, 500 if it failed.
        """
        if ticket.state == "home":
            raise Refused(409, "this request runs on the device alone")
        if ticket.content is None and ticket.state == "granted":
            try:
                await asyncio.wait_for(ticket.ready.wait(), wait_s)
            except TimeoutError:
                return None
        if ticket.state == "failed":
            raise Refused(500, ticket.error)
        if ticket.content is None:
            raise Refused(410, f"this request is {ticket.state}")
        return ticket.content

    def cancel(self, ticket: Ticket) -> None:
        """Take a request back, wherever it is; twice is once."""
        if ticket.state not in OPEN:
            return
        if ticket in self._window:
            self._window.remove(ticket)
        if ticket.steps and ticket.content is None:
            self.conductor.cancel(ticket.id, self.now())
            if ticket.id not in self._announced:
                self.engine.forget(ticket.id)
            elif not self.conductor.core.running:
                self._announced.discard(ticket.id)
                self._leaving.append(ticket.id)
        self._over(ticket, "cancelled")

    def acknowledge(self, ticket: Ticket, timings: Timings) -> dict:
        """The device has the picture: remember how long everything took, forget the packet.

        Raises:
            Refused: 410 if it is over already in another way.
        """
        if ticket.state == "done":
            return {}
        if ticket.state not in OPEN or (ticket.steps and ticket.content is None):
            raise Refused(410 if ticket.state in SHUT else 409, f"this request is {ticket.state}")
        self._decode_s += 0.1 * (timings.decode_s - self._decode_s)
        if ticket.steps and not ticket.decode:
            self._transfer_s += 0.1 * (timings.transfer_s - self._transfer_s)
        predicted = ticket.predicted.get("total_s", 0.0)
        row = dict(
            id=ticket.id,
            user=ticket.user,
            steps=ticket.steps,
            price_s=ticket.price_s,
            alpha=ticket.ask.alpha,
            device_step_s=ticket.ask.device_step_s,
            accepted_s=ticket.accepted_s,
            **ticket.spans(),
            encode_s=ticket.encode_s,
            **timings.model_dump(),
            **{f"predicted_{name}": value for name, value in ticket.predicted.items()},
            error_share=abs(predicted - timings.total_s) / timings.total_s,
        )
        self.finished.append(row)
        self.metrics.total_s.observe(timings.total_s)
        self.metrics.error_share.observe(row["error_share"])
        self._over(ticket, "done")
        self._show(at_once=True)
        return row

    def show_picture(self, ticket: Ticket, content: bytes) -> None:
        """A picture for the live page; the last 48 are kept."""
        self.pictures[ticket.id] = (ticket.user, ticket.ask.prompt, content)
        while len(self.pictures) > 48:
            self.pictures.pop(next(iter(self.pictures)))
        self._show(at_once=True)

    def _over(self, ticket: Ticket, state: str, error: str = "") -> None:
        ticket.state, ticket.error, ticket.content = state, error, None
        self.metrics.over.labels(state).inc()
        if self.journal is not None:
            try:
                self.journal.write(dict(kind="over", id=ticket.id))
            except OSError:
                pass  # after a restart it is served once more, which hurts nobody
        ticket.answered.set()
        ticket.ready.set()
        over_s = self.now()
        ticket.accepted_s = ticket.accepted_s if state == "done" else over_s
        asyncio.get_running_loop().call_later(min(60.0, self.options.keep_s), self._forget, ticket)

    def _forget(self, ticket: Ticket) -> None:
        self.tickets.pop(ticket.id, None)
        if ticket.key and self.keys.get((ticket.user, ticket.key)) is ticket:
            self.keys.pop((ticket.user, ticket.key))

    async def _sweeping(self) -> None:
        """Packets that nobody fetched expire."""
        while True:
            await asyncio.sleep(min(5.0, self.options.keep_s))
            oldest = self.now() - self.options.keep_s
            for ticket in self._open():
                ready = ticket.ready_s if ticket.steps else ticket.accepted_s
                if ready is not None and ready < oldest:
                    self._over(ticket, "expired")

    # --- what can be seen ---

    def view(self) -> dict:
        """The edge now, for the live page."""
        core = self.conductor.core
        rows = [self._line(member) for member in core.members.values()]
        waiting = [self._line(member) for member in core.waiting.values()]
        last = [row for row in self.finished if row["steps"]][-50:]
        high = lambda name: float(np.percentile([row[name] for row in last], 95)) if last else None
        return dict(
            time_s=round(self.now(), 3),
            tick=self.ticks,
            policy=self.options.policy,
            max_batch=core.max_batch,
            num_steps=self.system.parameters.num_steps,
            batch=rows,
            waiting=waiting,
            price_s=self._price_s(),
            p95_predicted_s=high("predicted_total_s"),
            p95_measured_s=high("total_s"),
            error_share=float(np.mean([row["error_share"] for row in last])) if last else None,
            finished=[
                {name: row[name] for name in ("id", "user", "steps", "price_s", "predicted_total_s", "total_s")}
                for row in list(self.finished)[-12:]
            ],
            pictures=[dict(id=name, user=user, prompt=prompt) for name, (user, prompt, _) in self.pictures.items()],
            served=len(self.finished),
            draining=self.draining,
        )

    def _price_s(self) -> float:
        """Seconds that one more member adds to a step now."""
        return float(self.system.marginal_s(len(self.conductor.core.members))[0])

    def _line(self, member: Any) -> dict:
        ticket = self.tickets.get(member.id)
        return dict(
            id=member.id,
            user=ticket.user if ticket else "",
            prompt=ticket.ask.prompt[:40] if ticket else "",
            steps=member.steps,
            done=member.steps - member.left,
        )

    def _show(self, at_once: bool = False) -> None:
        """Tell the live pages, at most ten times a second."""
        core = self.conductor.core
        self.metrics.batch.set(len(core.members))
        self.metrics.waiting.set(len(core.waiting))
        now = self.now()
        if not self.listeners or (now - self._shown_s < 0.1 and not at_once):
            return
        self._shown_s, view = now, self.view()
        for queue in self.listeners:
            if queue.full():
                queue.get_nowait()  # a slow page skips
            queue.put_nowait(view)

    def log(self) -> list[dict]:
        """What was decided and stepped, for ``conductor.replay``."""
        return [asdict(event) for event in self.conductor.log]


def retry_after(seconds: float | None) -> dict[str, str]:
    """The header, in whole seconds and at least one."""
    return {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}

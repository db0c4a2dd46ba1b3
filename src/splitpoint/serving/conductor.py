"""One edge at work: the core's rules, a policy's decisions and a log of both. No clock, no input or output.

The server drives it with a network and the wall clock, a test with a latency curve and a clock of its own; the log
says what happened, and ``replay`` decides everything again from it.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from splitpoint.checks import finite_number, whole_number
from splitpoint.edge import ArrivalRates, Decision, Departure, EdgeCore, Request, System, observe
from splitpoint.edge.observation import Observation
from splitpoint.edge.simulator import a_decision, is_a_policy
from splitpoint.serving.forecast import Forecast, Promise


@dataclass(frozen=True)
class Event:
    """One line of the log.

    Args:
        kind: ``ask`` (requests decided together), ``begin`` or ``end`` of a step, or ``cancel``.
        time_s: on the edge's clock.
        ids: whom it is about: those who ask, members of the step, who leaves.
        steps: of an ask: what the policy granted each, 0 at home.
        carried: of an ask: what was carried out, if a deadline forbade it or a place was kept; else as ``steps``.
        requests: of an ask: ``device_step_s``, ``alpha`` and ``draw`` of each.
        failed: of an end: members that failed.
    """

    kind: str
    time_s: float
    ids: tuple[Any, ...]
    steps: tuple[int, ...] = ()
    carried: tuple[int, ...] = ()
    requests: tuple[tuple[float, float, float], ...] = ()
    failed: tuple[Any, ...] = ()

    def to_dict(self) -> dict:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> "Event":
        """Of one line of a log that was stored as JSON."""
        tuples = {name: tuple(value) for name, value in line.items() if isinstance(value, list)}
        tuples["requests"] = tuple(tuple(one) for one in line.get("requests", ()))
        return cls(**{**line, **tuples})


class Conductor:
    """Who is served, and for how many steps.

    Args:
        system: one edge.
        policy: ``(Observation) -> Decision``.
        forecast: for promises and deadlines; none are made without one.
        remember: lines of the log that are kept.

    Raises:
        ValueError: for more than one edge, or what is no policy.
    """

    def __init__(self, system: System, policy: Any, forecast: Forecast | None = None, remember: int = 100_000):
        if len(system.edges) != 1:
            raise ValueError(f"system has {len(system.edges)} edges; valid is 1, each edge has a conductor of its own")
        is_a_policy("policy", policy)
        whole_number("remember", remember, 1)
        self.system, self.policy, self.forecast = system, policy, forecast
        self.window_s: float | None = getattr(policy, "window_s", None)
        if hasattr(policy, "reset"):
            policy.reset(1)
        self.core, self.rates = EdgeCore(system.edges[0].max_batch), ArrivalRates()
        self.log: deque[Event] = deque(maxlen=remember)
        self.step_began_s: float | None = None

    # --- who comes ---

    def see(self, requests: Sequence[Request], draws: Sequence[float], now_s: float) -> Observation:
        """What the policy sees; many requests have a leading axis, one has none."""
        views = [
            observe(request, [self.core], [1.0], self.rates.seen(np.float64(now_s)), self.system, draw)
            for request, draw in zip(requests, draws)
        ]
        return views[0] if self.window_s is None else _stacked(views)

    def answer(self, requests: Sequence[Request], draws: Sequence[float], now_s: float) -> list[int]:
        """What the policy says to requests that ask at one moment: steps of each; nothing is carried out."""
        seen = self.see(requests, draws, now_s)
        if getattr(self.policy, "blind", False):
            columns = seen.time_s, seen.device_step_s, seen.alpha, seen.draw
            decision = self.policy.decide(*(np.asarray(column) for column in columns))
        else:
            decision = self.policy(seen)
        return _steps(a_decision(decision), len(requests), self.system.most_steps)

    def decide(
        self,
        requests: Sequence[Request],
        now_s: float,
        draws: Sequence[float] | None = None,
        deadlines_s: Sequence[float | None] | None = None,
        kept: Sequence[int] | None = None,
    ) -> list[tuple[int, Promise | None]]:
        """Answer requests that ask at one moment, and queue those that are granted.

        Args:
            requests: one; several only for a policy that plans a window.
            now_s: moment.
            draws: uniform on [0, 1), one a request, for policies that toss a coin.
            deadlines_s: of each, from now on; one that a grant would miss and the device alone would meet stays home.
            kept: steps that were promised before a restart; the policy is not asked.

        Returns:
            Steps on the edge, 0 at home, and the promise to those who are granted.

        Raises:
            ValueError: for several requests and a policy that answers one by one.
        """
        finite_number("now_s", now_s)
        if self.window_s is None and len(requests) != 1:
            raise ValueError(f"requests are {len(requests)}; valid is 1 for a policy that answers at once")
        draws = [0.5] * len(requests) if draws is None else draws
        steps = self.answer(requests, draws, now_s) if kept is None else [int(one) for one in kept]
        answers = []
        for row, (request, granted) in enumerate(zip(requests, steps)):
            deadline = deadlines_s[row] if deadlines_s else None
            promise = self._promise(request, granted, now_s, deadline) if granted else None
            carried = granted if promise is not None or self.forecast is None else 0
            if carried:
                self.core.submit(request.id, carried)
                if self.forecast is not None:
                    self.forecast.granted(now_s, carried)
            answers.append((carried, promise if carried else None))
        self.log.append(
            Event(
                "ask",
                now_s,
                tuple(request.id for request in requests),
                tuple(steps),
                tuple(carried for carried, _ in answers),
                tuple((r.device_step_s, r.alpha, float(draw)) for r, draw in zip(requests, draws)),
            )
        )
        return answers

    def _promise(self, request: Request, steps: int, now_s: float, deadline_s: float | None) -> Promise | None:
        """What to expect of a grant; None if a deadline speaks against it."""
        if self.forecast is None:
            return None
        promise = self.forecast.promise(self.core, steps, now_s, self.step_began_s)
        if deadline_s is None:
            return promise
        most, device = self.system.parameters.num_steps, request.device_step_s
        with_edge = promise.expected_s + self.system.edges[0].transfer_s + (most - steps) * device
        return None if with_edge > deadline_s >= most * device else promise

    # --- steps ---

    def begin(self, now_s: float) -> tuple[Any, ...]:
        """Begin a step; the members, none if nobody is there."""
        ids = self.core.next_batch(now_s)
        if ids:
            self.step_began_s = now_s
            self.log.append(Event("begin", now_s, ids))
        return ids

    def end(self, now_s: float, failed: Sequence[Any] = ()) -> list[Departure]:
        """End the step; who leaves."""
        if self.forecast is not None and self.step_began_s is not None:
            self.forecast.stepped(len(self.core.members), now_s - self.step_began_s)
        leaving = self.core.step_done(now_s, tuple(failed))
        self.step_began_s = None
        self.log.append(Event("end", now_s, tuple(d.id for d in leaving), failed=tuple(failed)))
        return leaving

    def cancel(self, request_id: Any, now_s: float) -> Departure | None:
        """See ``EdgeCore.cancel``."""
        self.log.append(Event("cancel", now_s, (request_id,)))
        return self.core.cancel(request_id, now_s)

    def restart(self) -> None:
        """The engine is new: nobody is in."""
        self.core, self.step_began_s = EdgeCore(self.system.edges[0].max_batch), None
        self.log.clear()


def _stacked(views: Sequence[Observation]) -> Observation:
    """Observations of one moment, with a leading axis."""
    names = [name for name in Observation.__dataclass_fields__ if name != "system"]
    return Observation(
        **{name: np.stack([getattr(view, name) for view in views]) for name in names}, system=views[0].system
    )


def _steps(decision: Decision, count: int, most: int) -> list[int]:
    """Steps of each request; refuses an answer that is none."""
    edge, steps = (np.broadcast_to(np.asarray(part), (count,)) for part in (decision.edge, decision.steps))
    granted = [int(m) if e >= 0 else 0 for e, m in zip(edge, steps)]
    if max(granted) > most or min(granted) < 0:
        raise ValueError(f"policy grants {granted}; valid are steps in [0, {most}]")
    return granted


def replay(log: Sequence[Event], system: System, policy: Any) -> list[tuple[Any, int, int]]:
    """Decide everything again: the same requests, the same times of steps, the simulator's core and policy.

    Args:
        log: from ``Conductor.log``, from its first line on.
        system: the edge.
        policy: a fresh one.

    Returns:
        ``(id, steps then, steps now)`` of every request.

    Raises:
        ValueError: if a step has other members than in the log.
    """
    again, answers = Conductor(system, policy), []
    for event in log:
        if event.kind == "ask":
            given = [
                Request(name, event.time_s, step_s, alpha)
                for name, (step_s, alpha, _) in zip(event.ids, event.requests)
            ]
            now = again.answer(given, [draw for *_, draw in event.requests], event.time_s)
            answers += list(zip(event.ids, event.steps, now))
            for name, carried in zip(event.ids, event.carried):
                if carried:
                    again.core.submit(name, carried)
        elif event.kind == "begin":
            if (ids := again.begin(event.time_s)) != event.ids:
                raise ValueError(f"a step at {event.time_s:.3f} s has members {ids}; the log has {event.ids}")
        elif event.kind == "end":
            again.end(event.time_s, event.failed)
        else:
            again.cancel(event.ids[0], event.time_s)
    return answers

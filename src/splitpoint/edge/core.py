"""The edge's rules and nothing else: who is in, who may join, who leaves. No clock, no input or output.

A test drives it with a latency curve, and it is the simulator event by event; a server could drive it with a network
and the wall clock.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from splitpoint.checks import finite_number, whole_number
from splitpoint.edge.request import Departure


@dataclass
class Member:
    """A request on the edge.

    Args:
        id: of the request.
        steps: granted.
        left: still to do.
        joined_s: when its first step began; None while it waits.
    """

    id: Any
    steps: int
    left: int
    joined_s: float | None = None


class EdgeCore:
    """One edge: a batch whose members all advance a step at a time.

    Newcomers wait, first come first served, and join at the next step boundary while there is room; who has done its
    steps leaves at the end of the last. A cancelled one leaves at once, or at the end of the step that it is in.

    Args:
        max_batch: most members of a step.

    Raises:
        ValueError: if ``max_batch`` is below 1.
    """

    def __init__(self, max_batch: int = 18):
        whole_number("max_batch", max_batch, 1)
        self.max_batch = max_batch
        self.members: OrderedDict[Any, Member] = OrderedDict()
        self.waiting: OrderedDict[Any, Member] = OrderedDict()
        self._cancelled: set[Any] = set()
        self._running = False

    @property
    def running(self) -> bool:
        """Whether a step is under way."""
        return self._running

    def submit(self, request_id: Any, steps: int) -> None:
        """Queue a request for so many steps.

        Args:
            request_id: hashable, not yet here.
            steps: at least 1.

        Raises:
            ValueError: for a request that is here already, or fewer than one step.
        """
        whole_number("steps", steps, 1)
        if not isinstance(request_id, Hashable):
            raise ValueError(f"request_id={request_id!r} cannot be told from others; valid is a number or a name")
        if request_id in self.members or request_id in self.waiting:
            raise ValueError(f"request_id={request_id!r} is on the edge already; valid is a new one")
        self.waiting[request_id] = Member(request_id, int(steps), int(steps))

    def next_batch(self, now_s: float) -> tuple[Any, ...]:
        """Let in who waits, while there is room, and begin a step.

        Args:
            now_s: moment, any clock that rises.

        Returns:
            The members of the step; none if nobody is here, and then no step begins.

        Raises:
            ValueError: if a step is under way.
        """
        finite_number("now_s", now_s)
        if self._running:
            raise ValueError("a step is under way; call step_done first")
        while self.waiting and len(self.members) < self.max_batch:
            name, member = self.waiting.popitem(last=False)
            member.joined_s = now_s
            self.members[name] = member
        self._running = bool(self.members)
        return tuple(self.members)

    def step_done(self, now_s: float, failed: tuple[Any, ...] = ()) -> list[Departure]:
        """End the step: everyone advances, who is done or cancelled leaves.

        Args:
            now_s: moment.
            failed: members whose step came to nothing; they leave without it.

        Returns:
            Who leaves, in order of joining.

        Raises:
            ValueError: if no step is under way.
        """
        finite_number("now_s", now_s)
        if not self._running:
            raise ValueError("no step is under way; call next_batch first")
        self._running, leaving = False, []
        for member in list(self.members.values()):
            member.left -= member.id not in failed
            if member.left == 0 or member.id in self._cancelled or member.id in failed:
                leaving.append(self._leave(self.members, member.id, now_s))
        self._cancelled.clear()
        return leaving

    def cancel(self, request_id: Any, now_s: float) -> Departure | None:
        """Take a request off the edge.

        Returns:
            Its departure if it left at once; None if it is unknown, or in a step whose end it leaves at.
        """
        finite_number("now_s", now_s)
        if request_id in self.waiting:
            return self._leave(self.waiting, request_id, now_s)
        if request_id in self.members:
            if not self._running:
                return self._leave(self.members, request_id, now_s)
            self._cancelled.add(request_id)
        return None

    def close(self, now_s: float) -> list[Departure]:
        """Everyone leaves with the steps that are done; a step under way is lost."""
        finite_number("now_s", now_s)
        self._running = False
        self._cancelled.clear()
        inside = [self._leave(self.members, name, now_s) for name in list(self.members)]
        return inside + [self._leave(self.waiting, name, now_s) for name in list(self.waiting)]

    def _leave(self, place, name, now_s) -> Departure:
        member = place.pop(name)
        return Departure(name, member.joined_s, now_s, member.steps - member.left)

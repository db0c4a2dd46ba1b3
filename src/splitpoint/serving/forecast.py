"""How long a request will take, said when it is admitted: from a table of step times and who is there already."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitpoint.checks import a_row, finite_number, whole_number
from splitpoint.edge import EdgeCore


@dataclass(frozen=True)
class Promise:
    """Seconds until a request's last step on the edge.

    Args:
        expected_s: if others go on coming as they did lately.
        longest_s: if every step were one of a full batch.
    """

    expected_s: float
    longest_s: float


class Forecast:
    """Walks the batch forward, step by step, with the newcomers to be expected.

    Newcomers are counted in fractions: in a step of s seconds, ``rate * s`` of them join and stay as many steps as
    grants had on average lately, so that the forecast is a mean and not a draw. The table was measured on a machine
    that did nothing else: steps are taken to be as much longer than it says as the last ones were.

    Args:
        table_s: seconds of a step at batch 1, 2, … max_batch, shape (max_batch,), measured as they are served.
        memory_s: over how long grants are remembered.

    Raises:
        ValueError: for a table that is empty or not above zero.
    """

    def __init__(self, table_s: ArrayLike, memory_s: float = 20.0):
        self.table_s = np.append(0.0, a_row("table_s", table_s, 0.0, open_end=True))
        finite_number("memory_s", memory_s, 0.0, open_end=True)
        self.memory_s = memory_s
        self._grants: deque[tuple[float, int]] = deque()
        self._since_s: float | None = None
        self._paces: deque[float] = deque([1.0] * 5, maxlen=25)  # of the last steps; a few to begin with

    def stepped(self, members: int, seconds: float) -> None:
        """Remember how long a step of so many members took."""
        self._paces.append(seconds / float(self.table_s[members]))

    def pace(self) -> tuple[float, float]:
        """How many times the table's time a step takes now: in the middle, and at the slow end (at least 1)."""
        middle, slow = np.quantile(self._paces, (0.5, 0.9))
        return float(middle), max(1.0, float(slow))

    def granted(self, now_s: float, steps: int) -> None:
        """Remember a grant, for the rate of those to come."""
        self._since_s = now_s if self._since_s is None else self._since_s
        self._grants.append((now_s, steps))
        self._forget(now_s)

    def newcomers(self, now_s: float) -> tuple[float, float]:
        """Grants a second and their mean steps, over the last ``memory_s``."""
        self._forget(now_s)
        if not self._grants or self._since_s is None:
            return 0.0, 0.0
        seen_s = min(self.memory_s, now_s - self._since_s + 1.0)  # a second more: the first is no flood
        return len(self._grants) / seen_s, float(np.mean([steps for _, steps in self._grants]))

    def _forget(self, now_s: float) -> None:
        while self._grants and self._grants[0][0] < now_s - self.memory_s:
            self._grants.popleft()

    def promise(self, core: EdgeCore, steps: int, now_s: float, step_began_s: float | None) -> Promise:
        """For a request that would be the last to wait.

        Args:
            core: the edge as it stands, without the request.
            steps: it would get.
            now_s: moment.
            step_began_s: when the step under way began; None between two steps.
        """
        whole_number("steps", steps, 1)
        rate, mean_steps = self.newcomers(now_s)
        members = [member.left for member in core.members.values()]
        waiting = [member.left for member in core.waiting.values()]
        pace, slow = self.pace()
        passed_s = longest_s = 0.0
        if core.running and step_began_s is not None:
            whole, since_s = float(self.table_s[len(members)]), now_s - step_began_s
            passed_s, longest_s = max(0.0, pace * whole - since_s), max(0.0, slow * whole - since_s)
            members = [left - 1 for left in members]
        walk_s, walked = self._walk(members, [*waiting, int(steps)], core.max_batch, rate * pace, mean_steps)
        return Promise(passed_s + pace * walk_s, longest_s + slow * walked * float(self.table_s[core.max_batch]))

    def _walk(
        self, members: Sequence[int], queue: Sequence[int], most: int, rate: float, mean_steps: float
    ) -> tuple[float, int]:
        """Seconds and steps until the last of the queue is done."""
        left = sorted(step for step in members if step > 0)
        waiting = deque(queue)
        passed_s, walked, mine = 0.0, 0, None
        joined: deque[float] = deque()  # newcomers by the step that they came in, as long as they stay
        stay = max(1, round(mean_steps))
        while mine is None or mine > 0:
            while waiting and len(left) < most:
                steps = waiting.popleft()
                left.append(steps)
                mine = steps if not waiting else mine
            size = min(len(left) + sum(joined), float(most))
            step_s = self._step_s(size)
            passed_s += step_s
            walked += 1
            left = [steps - 1 for steps in left if steps > 1]
            mine = None if mine is None else mine - 1
            joined.append(rate * step_s)
            if len(joined) > stay:
                joined.popleft()
        return passed_s, walked

    def _step_s(self, size: float) -> float:
        """Straight between two batch sizes."""
        below = min(int(size), len(self.table_s) - 2)
        part = size - below
        return float(self.table_s[below] * (1 - part) + self.table_s[below + 1] * part)


def error_shares(predicted_s: ArrayLike, measured_s: ArrayLike) -> NDArray[np.float64]:
    """``|predicted - measured| / measured``, shape (n,).

    Raises:
        ValueError: for rows of different length, or times that are not above zero.
    """
    predicted = a_row("predicted_s", predicted_s, 0.0)
    measured = a_row("measured_s", measured_s, 0.0, open_end=True)
    if predicted.shape != measured.shape:
        raise ValueError(f"predicted_s has {len(predicted)} numbers and measured_s {len(measured)}; valid is one each")
    return np.abs(predicted - measured) / measured

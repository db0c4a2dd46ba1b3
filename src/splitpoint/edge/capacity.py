"""How much of an edge's compute is free: constant, a Markov chain in seconds, or recorded.

A step of ``b`` members needs ``k b + h`` seconds of the whole machine. With the share ``c(t)`` free it ends when the
integral of ``c`` has grown by that much; so a capacity path is a clock, on which every step has a fixed length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitpoint.checks import a_generator, a_row, finite_array, finite_number


@dataclass(frozen=True, eq=False)
class CapacityPath:
    """A share of compute that is free, constant between moments; the last one goes on for ever.

    Args:
        start_s: moments from which each share holds, shape (p,), rising from 0.
        share: shape (p,), positive.
    """

    start_s: NDArray[np.float64]
    share: NDArray[np.float64]

    def __post_init__(self):
        start, share = finite_array("start_s", self.start_s, 0.0), finite_array("share", self.share, 0.0)
        if start.ndim != 1 or start.shape != share.shape or len(start) == 0 or start[0] != 0:
            raise ValueError(f"start_s has shape {start.shape}, share {share.shape}; valid is (p,) each, from 0 s on")
        if np.any(np.diff(start) <= 0) or np.any(share == 0):
            raise ValueError("start_s must rise and share be positive everywhere")
        work = np.append(0.0, np.cumsum(np.diff(start) * share[:-1]))
        for name, values in (("start_s", start), ("share", share), ("_work", work)):
            object.__setattr__(self, name, values)

    def at(self, time_s: ArrayLike) -> NDArray[np.float64]:
        """Share that is free at each moment, any shape."""
        return self.share[np.searchsorted(self.start_s, finite_array("time_s", time_s, 0.0), side="right") - 1]

    def work(self, time_s: ArrayLike) -> NDArray[np.float64]:
        """Machine-seconds that were free up to each moment, any shape."""
        time_s = finite_array("time_s", time_s, 0.0)
        piece = np.searchsorted(self.start_s, time_s, side="right") - 1
        return self._work[piece] + (time_s - self.start_s[piece]) * self.share[piece]

    def seconds(self, work: ArrayLike) -> NDArray[np.float64]:
        """Moment at which so many machine-seconds were free, any shape; inverse of ``work``. NaN (never) stays so."""
        work = np.asarray(work)
        if work.dtype.kind not in "iuf" or np.any(work < 0):
            raise ValueError(f"work holds {work.dtype} or numbers below 0; valid are machine-seconds from 0 up")
        piece = np.clip(np.searchsorted(self._work, work, side="right") - 1, 0, None)
        return self.start_s[piece] + (work - self._work[piece]) / self.share[piece]

    def pieces(self, horizon_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lengths in seconds and shares of the pieces before a horizon, shape (q,) each."""
        finite_number("horizon_s", horizon_s, 0.0, open_end=True)
        inside = self.start_s < horizon_s
        return np.diff(np.append(self.start_s[inside], horizon_s)), self.share[inside]


@runtime_checkable
class Capacity(Protocol):
    """Anything that draws a path of free compute."""

    def draw(self, rng: np.random.Generator, horizon_s: float) -> CapacityPath:
        """A path up to a horizon."""
        ...


def _may_draw(rng: np.random.Generator, horizon_s: float) -> None:
    a_generator("rng", rng)
    finite_number("horizon_s", horizon_s, 0.0, open_end=True)


def _odds(name: str, odds: Sequence[Sequence[float]], states: int) -> None:
    """Refuse what is not a row of probabilities for each state."""
    rows = finite_array(name, odds, 0.0)
    if rows.shape != (states, states) or not np.allclose(rows.sum(axis=1), 1):
        raise ValueError(f"{name}={odds!r} is not one row of probabilities for each of {states} states")


@dataclass(frozen=True)
class ConstantCapacity:
    """The same share all the time."""

    share: float = 1.0

    def __post_init__(self):
        finite_number("share", self.share, 0.0, open_end=True)

    def draw(self, rng: np.random.Generator, horizon_s: float) -> CapacityPath:
        """See ``Capacity``."""
        _may_draw(rng, horizon_s)
        return CapacityPath(np.zeros(1), np.array([self.share]))


@dataclass(frozen=True)
class MarkovCapacity:
    """Shares that come and go as a Markov chain in seconds.

    Args:
        shares: of each state.
        mean_stay_s: how long the chain stays in a state.
        odds: shape (states, states), where it goes from each when it leaves; any other state alike if left out.
    """

    shares: tuple[float, ...] = (1.0, 0.5, 0.25)
    mean_stay_s: float = 5.0
    odds: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self):
        a_row("shares", self.shares, 0.0, open_end=True)
        finite_number("mean_stay_s", self.mean_stay_s, 0.0, open_end=True)
        if self.odds is not None:
            _odds("odds", self.odds, len(self.shares))

    def moves(self) -> NDArray[np.float64]:
        """Where the chain goes when it leaves a state, shape (states, states)."""
        states = len(self.shares)
        if self.odds is not None:
            return np.array(self.odds)
        return (np.ones((states, states)) - np.eye(states)) / max(states - 1, 1)

    def draw(self, rng: np.random.Generator, horizon_s: float) -> CapacityPath:
        """See ``Capacity``; the chain begins in any state alike."""
        _may_draw(rng, horizon_s)
        moves, state, now = self.moves(), int(rng.integers(len(self.shares))), 0.0
        start, visited = [], []
        while now < horizon_s:
            start.append(now)
            visited.append(state)
            now += rng.exponential(self.mean_stay_s)
            state = int(rng.choice(len(self.shares), p=moves[state])) if moves[state].sum() else state
        return CapacityPath(np.array(start), np.array(self.shares)[visited])


#: share of a GPU that others leave free, by the minute: busy cycles of GPUs that serve Stable Diffusion with adapters
#: (Alibaba GenTD26, 15 November to 8 December 2024), fitted as a chain of idle, middle and busy; only these numbers
#: are used. A minute's chain that stays with probability q becomes one that leaves after 60/(1 - q) s.
FITTED_DUTY_CYCLE = ((0.858, 0.134, 0.008), (0.380, 0.587, 0.033), (0.260, 0.418, 0.322))


@dataclass(frozen=True)
class DutyCycleCapacity:
    """Free compute beside other work on the same GPU, minute by minute.

    Args:
        shares: free in an idle (< 5 % used), a middle and a busy (> 50 %) minute.
        minute_odds: from each state to each in a minute.

    Source: numbers fitted to Alibaba's GenTD26 trace.
    """

    shares: tuple[float, ...] = (1.0, 0.7, 0.3)
    minute_odds: tuple[tuple[float, ...], ...] = FITTED_DUTY_CYCLE

    def __post_init__(self):
        a_row("shares", self.shares, 0.0, open_end=True)
        _odds("minute_odds", self.minute_odds, len(self.shares))

    def draw(self, rng: np.random.Generator, horizon_s: float) -> CapacityPath:
        """See ``Capacity``."""
        _may_draw(rng, horizon_s)
        odds, states = np.array(self.minute_odds), [0]
        for _ in range(int(horizon_s // 60)):
            states.append(int(rng.choice(len(odds), p=odds[states[-1]] / odds[states[-1]].sum())))
        return CapacityPath(60.0 * np.arange(len(states)), np.array(self.shares)[states])


@dataclass(frozen=True)
class RecordedCapacity:
    """A recorded path: moments in seconds from 0 on, and the share from each."""

    start_s: Sequence[float]
    share: Sequence[float]

    def __post_init__(self):
        CapacityPath(self.start_s, self.share)  # says what is wrong with it

    def draw(self, rng: np.random.Generator, horizon_s: float) -> CapacityPath:
        """See ``Capacity``; nothing is drawn."""
        return CapacityPath(np.array(self.start_s, dtype=float), np.array(self.share, dtype=float))

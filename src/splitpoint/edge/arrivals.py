"""Where requests come from, and a path: everything random of a run, drawn before it begins."""

import csv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path as FilePath
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from splitpoint.checks import (
    a_generator,
    a_path,
    a_row,
    a_sequence,
    finite_array,
    finite_number,
    instance_of,
    one_of,
    whole_number,
)
from splitpoint.edge.capacity import CapacityPath
from splitpoint.edge.request import Edge, some_edges
from splitpoint.offloading import Profiles, StepLatency, published_profiles
from splitpoint.offloading.problem import alpha_range


@dataclass(frozen=True)
class Users:
    """Who asks: devices and preferences by the released sampling rules.

    Args:
        profiles: devices and how likely each is; the published lines if left out.
        reference: the edge that preferences are drawn against; 16 GPUs of the profiles' if left out.

    Source: authors' released code, PERDQN/per_DQN_main.py and PERDQN/utils.py.
    """

    profiles: Profiles | None = None
    reference: StepLatency | None = None

    def __post_init__(self):
        for name, kind in (("profiles", Profiles), ("reference", StepLatency)):
            if getattr(self, name) is not None:
                instance_of(name, getattr(self, name), kind)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Device steps (seconds) and preferences (seconds a unit of accuracy), shape (count,) each."""
        a_generator("rng", rng)
        whole_number("count", count, 0)
        profiles = self.profiles or published_profiles()
        device_step_s = profiles.device_steps_s[rng.choice(len(profiles.devices), size=count, p=profiles.weights)]
        low, high = alpha_range(device_step_s, self.reference or profiles.edge_gpu.shared_by(16))
        return device_step_s, rng.uniform(np.minimum(low, high), high)


#: the released crowd
RELEASED_USERS = Users()


@runtime_checkable
class Arrivals(Protocol):
    """Anything that draws request moments: a horizon in seconds, users, and ``times``."""

    horizon_s: float
    users: Users

    def times(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Rising moments within the horizon, shape (n,), seconds."""
        ...


@dataclass(frozen=True)
class Poisson:
    """Requests at a constant rate.

    Args:
        rate_hz: requests a second.
        horizon_s: when the edge closes.
        users: who asks.
    """

    rate_hz: float
    horizon_s: float = 60.0
    users: Users = field(default_factory=Users)

    def __post_init__(self):
        finite_number("rate_hz", self.rate_hz, 0.0)
        _horizon_and_users(self)

    def times(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """See ``Arrivals``."""
        a_generator("rng", rng)
        return _thinned(rng, self.horizon_s, self.rate_hz, lambda t: np.full(t.shape, self.rate_hz))


@dataclass(frozen=True)
class Ramp:
    """A rate that rises or falls along a line, or jumps.

    Args:
        first_hz, last_hz: requests a second at the beginning and at the end.
        horizon_s, users: see ``Poisson``.
        jump_s: change at this moment instead of along a line.
    """

    first_hz: float
    last_hz: float
    horizon_s: float = 60.0
    users: Users = field(default_factory=Users)
    jump_s: float | None = None

    def __post_init__(self):
        finite_number("first_hz", self.first_hz, 0.0)
        finite_number("last_hz", self.last_hz, 0.0)
        _horizon_and_users(self)
        if self.jump_s is not None:
            finite_number("jump_s", self.jump_s)

    def rate(self, time_s: NDArray) -> NDArray[np.float64]:
        """Requests a second at each moment."""
        if self.jump_s is not None:
            return np.where(time_s < self.jump_s, self.first_hz, self.last_hz)
        return self.first_hz + (self.last_hz - self.first_hz) * time_s / self.horizon_s

    def times(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """See ``Arrivals``."""
        a_generator("rng", rng)
        return _thinned(rng, self.horizon_s, max(self.first_hz, self.last_hz), self.rate)


@dataclass(frozen=True)
class HiddenRegimes:
    """Rates that come and go unseen.

    Args:
        rates_hz: requests a second in each regime.
        mean_stay_s: how long a regime lasts on average.
        horizon_s, users: see ``Poisson``.
    """

    rates_hz: tuple[float, ...] = (4.0, 16.0)
    mean_stay_s: float = 20.0
    horizon_s: float = 60.0
    users: Users = field(default_factory=Users)

    def __post_init__(self):
        a_row("rates_hz", self.rates_hz, 0.0)
        finite_number("mean_stay_s", self.mean_stay_s, 0.0, open_end=True)
        _horizon_and_users(self)

    def times(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """See ``Arrivals``."""
        start, rates = self.regimes(rng)
        return _thinned(
            rng, self.horizon_s, max(self.rates_hz), lambda t: rates[np.searchsorted(start, t, side="right") - 1]
        )

    def regimes(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What stays hidden: the moments at which regimes begin, and their rates; ``times`` draws the same first."""
        a_generator("rng", rng)
        regime, now, start, rates = int(rng.integers(len(self.rates_hz))), 0.0, [], []
        while now < self.horizon_s:
            start.append(now)
            rates.append(self.rates_hz[regime])
            now += rng.exponential(self.mean_stay_s)
            regime = (regime + int(rng.integers(1, max(len(self.rates_hz), 2)))) % len(self.rates_hz)
        return np.array(start), np.array(rates)


@dataclass(frozen=True)
class FittedTrace:
    """A public trace's rate and burstiness: gamma gaps, and a gamma factor on every minute's rate.

    Args:
        rate_hz: requests a second on average.
        gap_cv: standard deviation of a gap between requests over its mean.
        minute_cv: the same of the factor of a minute; 0 leaves all minutes alike.
        horizon_s, users: see ``Poisson``.
    """

    rate_hz: float
    gap_cv: float = 1.0
    minute_cv: float = 0.0
    horizon_s: float = 600.0
    users: Users = field(default_factory=Users)

    def __post_init__(self):
        finite_number("rate_hz", self.rate_hz, 0.0, open_end=True)
        finite_number("gap_cv", self.gap_cv, 0.0, open_end=True)
        finite_number("minute_cv", self.minute_cv, 0.0)
        _horizon_and_users(self)

    def times(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """See ``Arrivals``."""
        a_generator("rng", rng)
        minutes = int(np.ceil(self.horizon_s / 60))
        factor = np.ones(minutes)
        if self.minute_cv:
            factor = rng.gamma(self.minute_cv**-2, self.minute_cv**2, size=minutes)
        passed = np.append(0.0, np.cumsum(60 * self.rate_hz * np.maximum(factor, 1e-9)))  # expected requests so far
        shape, gaps, total = self.gap_cv**-2, [], 0.0
        while total < passed[-1]:
            block = rng.gamma(shape, 1 / shape, size=1024)
            gaps.append(block)
            total += block.sum()
        times = np.interp(np.cumsum(np.concatenate(gaps)), passed, 60.0 * np.arange(minutes + 1), right=np.inf)
        return times[times < self.horizon_s]


#: fitted to the conversation and the code trace of Azure's LLM inference, 11 November 2023 (AzurePublicDataset, CC BY
#: 4.0): 19 366 and 8 819 requests in 58 minutes. Only these numbers are used.
FITTED_TRACES = {
    "azure_conversation": dict(rate_hz=5.5, gap_cv=1.09, minute_cv=0.27),
    "azure_code": dict(rate_hz=2.5, gap_cv=13.0, minute_cv=0.0),
}


def fitted_trace(name: str, horizon_s: float = 600.0, users: Users = RELEASED_USERS) -> FittedTrace:
    """Requests as bursty as a public trace's; ``name`` is a key of ``FITTED_TRACES``.

    Raises:
        ValueError: for an unknown name.
    """
    one_of("name", name, FITTED_TRACES)
    return FittedTrace(**FITTED_TRACES[name], horizon_s=horizon_s, users=users)


@dataclass(frozen=True)
class Recorded:
    """Requests at given moments.

    Args:
        moments_s: rising, seconds.
        horizon_s, users: see ``Poisson``; later moments are left out.
    """

    moments_s: Sequence[float]
    horizon_s: float = 60.0
    users: Users = field(default_factory=Users)

    def __post_init__(self):
        moments = finite_array("moments_s", self.moments_s, 0.0)
        if moments.ndim != 1:
            raise ValueError(f"moments_s has shape {moments.shape}; valid is (n,)")
        _horizon_and_users(self)

    def times(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """See ``Arrivals``; nothing is drawn."""
        moments = np.sort(np.asarray(self.moments_s, dtype=float))
        return moments[moments < self.horizon_s]


def read_trace(path: str | FilePath, column: str = "TIMESTAMP", horizon_s: float = 3600.0) -> Recorded:
    """Request moments of a CSV file, counted from its first row.

    Args:
        path: the file; AzurePublicDataset's LLM inference traces are read as they are.
        column: with date and time, or with seconds.
        horizon_s: later requests are left out.

    Raises:
        ValueError: if there is no such file, the column is missing, or holds neither dates nor seconds.
    """
    a_path("path", path)
    finite_number("horizon_s", horizon_s, 0.0, open_end=True)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"path={FilePath(path).name!r} cannot be read: {error}") from error
    if not rows or column not in rows[0]:
        raise ValueError(f"column={column!r} is not in the file; there are: {', '.join(rows[0]) if rows else 'none'}")
    moments = np.sort([_moment(column, row[column]) for row in rows])
    return Recorded(tuple(moments - moments[0]), horizon_s)


def _moment(column: str, text: str) -> float:
    for read in (float, lambda text: datetime.fromisoformat(text.strip()[:26]).timestamp()):
        with suppress(ValueError, TypeError):
            moment = read(text)
            if np.isfinite(moment):
                return moment
    raise ValueError(f"column={column!r} holds {text!r}; valid are date and time, or seconds")


_COLUMNS = ("arrival_s", "device_step_s", "alpha", "draw")


@dataclass(frozen=True, eq=False)
class Path:
    """Everything random of one run, so that every policy meets the same.

    Args:
        arrival_s: rising, shape (n,), seconds.
        device_step_s: shape (n,), seconds.
        alpha: shape (n,), seconds worth one unit of accuracy.
        draw: shape (n,), uniform on [0, 1), for policies that toss a coin.
        capacity: free compute, one path an edge.
        horizon_s: when the edge closes.
    """

    arrival_s: NDArray[np.float64]
    device_step_s: NDArray[np.float64]
    alpha: NDArray[np.float64]
    draw: NDArray[np.float64]
    capacity: tuple[CapacityPath, ...]
    horizon_s: float

    def __post_init__(self):
        lengths = {len(a_sequence(name, getattr(self, name), empty=True)) for name in _COLUMNS}
        for name in _COLUMNS:
            values = finite_array(name, getattr(self, name), 0.0)
            if values.ndim != 1 or len(lengths) != 1:
                raise ValueError(f"{name} has shape {values.shape}; valid is (n,), one number a request in each column")
            object.__setattr__(self, name, values)
        if np.any(np.diff(self.arrival_s) < 0):
            raise ValueError("arrival_s falls; valid are moments that rise")
        for path in a_sequence("capacity", self.capacity):
            instance_of("capacity", path, CapacityPath)
        finite_number("horizon_s", self.horizon_s, 0.0, open_end=True)

    def __len__(self) -> int:
        return len(self.arrival_s)


def draw_paths(edges: Sequence[Edge], arrivals: Arrivals, seed: int = 0, replications: int = 1) -> list[Path]:
    """Independent paths; the same seed gives the same ones.

    Args:
        edges: at least one.
        arrivals: Poisson, Ramp, HiddenRegimes, FittedTrace, Recorded, or a class of one's own.
        seed: of everything random, at least 0.
        replications: paths, at least 1.

    Raises:
        ValueError: for no edges, or a number outside its range.
    """
    whole_number("seed", seed, 0)
    whole_number("replications", replications, 1)
    edges = some_edges(edges)
    instance_of("arrivals", arrivals, Arrivals)
    return [_draw_path(edges, arrivals, np.random.default_rng([seed, number])) for number in range(replications)]


def _draw_path(edges, arrivals, rng) -> Path:
    times = arrivals.times(rng)
    device_step_s, alpha = arrivals.users.draw(rng, len(times))
    draw = rng.random(len(times))
    capacity = tuple(edge.capacity.draw(rng, arrivals.horizon_s) for edge in edges)
    return Path(times, device_step_s, alpha, draw, capacity, arrivals.horizon_s)


def _horizon_and_users(arrivals) -> None:
    finite_number("horizon_s", arrivals.horizon_s, 0.0, open_end=True)
    instance_of("users", arrivals.users, Users)


def _thinned(rng, horizon_s, most_hz, rate) -> NDArray[np.float64]:
    """Poisson moments at a varying rate: draw at the highest, keep each with the share of it that holds then."""
    times = np.sort(rng.uniform(0, horizon_s, rng.poisson(most_hz * horizon_s)))
    return times[rng.random(len(times)) * most_hz < rate(times)]

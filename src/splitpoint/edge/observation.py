"""What a policy may see when somebody asks: the same from the simulator's arrays and from running cores."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitpoint.checks import a_sequence, finite_array, finite_number, instance_of, one_of
from splitpoint.edge.core import EdgeCore
from splitpoint.edge.request import PARAMETERS, Edge, Request, some_edges
from splitpoint.offloading import SystemParameters

#: seconds over which arrivals are counted
RATE_SCALES_S = (1.0, 10.0, 100.0)
#: numbers of an edge that a learned curve may see
FEATURES = (
    "free", "batch", "waiting", "work_left", "next_step_s", "rate_1", "rate_10", "rate_100",
    "load_1", "load_10", "load_100", "stay_20", "stay_40", "stay_60", "stay_80", "stay_100", "stay_120",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class System:
    """What does not change during a run.

    Args:
        edges: at least one.
        parameters: SystemParameters.
    """

    edges: tuple[Edge, ...]
    parameters: SystemParameters = PARAMETERS

    def __post_init__(self):
        object.__setattr__(self, "edges", some_edges(self.edges))
        instance_of("parameters", self.parameters, SystemParameters)

    @cached_property
    def limits(self) -> NDArray[np.int64]:
        """Most members of each edge's step, shape (E,)."""
        return np.array([edge.max_batch for edge in self.edges])

    @cached_property
    def table_s(self) -> NDArray[np.float64]:
        """Seconds of a step at each batch, shape (E, widest + 1); level beyond an edge's own limit."""
        table = np.zeros((len(self.edges), self.limits.max() + 1))
        for row, edge in zip(table, self.edges):
            row[:] = edge.step_table_s()[-1]
            row[: edge.max_batch + 1] = edge.step_table_s()
        return table

    def marginal_s(self, batch: ArrayLike) -> NDArray[np.float64]:
        """What one more member costs all in a step, itself included, with all compute free: ``k (2 b + 1) + h``.

        Args:
            batch: members of each edge's step, shape (…, E); a full one is charged as its last member was.
        """
        at = np.arange(len(self.limits))
        batch = np.minimum(batch, self.limits - 1)
        return (batch + 1) * self.table_s[at, batch + 1] - batch * self.table_s[at, batch]

    @cached_property
    def transfer_s(self) -> NDArray[np.float64]:
        """Hand-over to each edge, shape (E,), seconds."""
        return np.array([edge.transfer_s for edge in self.edges])

    @property
    def most_steps(self) -> int:
        """Most steps that an edge may run of one request, ``N - n_min``."""
        return self.parameters.num_steps - self.parameters.min_split


@dataclass(frozen=True, eq=False)
class Observation:
    """What is known at an arrival. Shapes are for one request; many at once have a leading axis.

    Args:
        time_s: moment, shape ().
        device_step_s: one step on the user's device, shape (), seconds.
        alpha: seconds worth one unit of accuracy, shape ().
        draw: a number uniform on [0, 1) for policies that toss a coin, shape ().
        free: share of each edge's compute that is free now, shape (E,).
        batch: members of each edge's step, shape (E,).
        waiting: who waits for each edge's next boundary or for room, shape (E,).
        work_left: steps still to do of all of them, shape (E,).
        remaining: the same one by one, members first, 0 where nobody is, shape (E, W).
        rates_hz: arrivals a second over 1, 10 and 100 s, shape (3,).
        run: number of the replication, shape (); 0 where there is but one.
        system: the edges.
    """

    time_s: NDArray[np.float64]
    device_step_s: NDArray[np.float64]
    alpha: NDArray[np.float64]
    draw: NDArray[np.float64]
    free: NDArray[np.float64]
    batch: NDArray[np.int64]
    waiting: NDArray[np.int64]
    work_left: NDArray[np.int64]
    remaining: NDArray[np.int64]
    rates_hz: NDArray[np.float64]
    run: NDArray[np.int64]
    system: System

    @property
    def inside(self) -> NDArray[np.int64]:
        """Members and waiting, shape (E,)."""
        return self.batch + self.waiting

    @property
    def full_step_s(self) -> NDArray[np.float64]:
        """Seconds of a step with all members that there is room for, as the compute is now, shape (E,)."""
        return self.system.table_s[np.arange(len(self.system.limits)), self.system.limits] / self.free

    def __getitem__(self, row) -> "Observation":
        """One request of many."""
        fields = {name: getattr(self, name)[row] for name in self.__dataclass_fields__ if name != "system"}
        return Observation(**fields, system=self.system)

    def features(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Numbers for a learned curve, one row an edge, shape (E, len(names)).

        Args:
            names: of ``FEATURES``; compute, batch and waiting as shares, work in hundreds of steps, the next step in
                hundredths of a second, rates in tens a second; ``load_1``: arrivals in the time in
                which all edges together make one full step; and
                ``stay_40``: those with 40 steps left or more, as a share of the most members.

        Raises:
            ValueError: for an unknown name.
        """
        table = self.system.table_s
        rates = np.broadcast_to(self.rates_hz[..., None, :], (*self.free.shape, 3)) / 10
        step_s = table[np.arange(len(table)), np.minimum(self.batch + 1, self.system.limits)] / self.free
        known = {
            "free": self.free,
            "batch": self.batch / self.system.limits,
            "waiting": self.waiting / self.system.limits,
            "work_left": self.work_left / 100,
            "next_step_s": 100 * step_s,
            "rate_1": rates[..., 0],
            "rate_10": rates[..., 1],
            "rate_100": rates[..., 2],
        }
        for name in a_sequence("names", names):
            one_of("names", name, FEATURES)
        for scale, name in enumerate(("load_1", "load_10", "load_100")):
            known[name] = 10 * rates[..., scale] / (1 / self.full_step_s).sum(axis=-1, keepdims=True)
        for name in set(names) - set(known):
            still = (self.remaining >= int(name.removeprefix("stay_"))).sum(axis=-1)
            known[name] = still / self.system.limits
        return np.stack([known[name] for name in names], axis=-1)


class ArrivalRates:
    """Requests a second over several time scales, forgotten exponentially.

    Args:
        shape: of what is counted apart; () for one stream.
    """

    def __init__(self, shape: tuple[int, ...] = ()):
        self._count = np.zeros((*shape, len(RATE_SCALES_S)))
        self._last_s = np.zeros(shape)

    def seen(self, time_s, rows=...) -> NDArray[np.float64]:
        """Count an arrival and return the rates, this one included, shape (…, 3); ``rows`` picks the streams."""
        scales, time_s = np.array(RATE_SCALES_S), np.asarray(time_s, dtype=float)
        passed = (time_s - self._last_s[rows])[..., None]
        self._count[rows] = self._count[rows] * np.exp(-passed / scales) + 1
        self._last_s[rows] = time_s
        # a second is added to the time seen, so that the first arrival does not look like a flood
        return self._count[rows] / (scales * -np.expm1(-(time_s[..., None] + 1) / scales))


@dataclass(frozen=True)
class Inside:
    """Who is on an edge, as it can be told to another machine.

    Args:
        members: steps that each member of the batch still has to do.
        waiting: the same of those who wait, first come first.
    """

    members: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()

    @classmethod
    def of(cls, core: EdgeCore) -> "Inside":
        """Of a core as it stands."""
        return cls(*(tuple(member.left for member in place.values()) for place in (core.members, core.waiting)))

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.members) + len(self.waiting)


def observe(
    request: Request,
    cores: Sequence[EdgeCore | Inside],
    free: Sequence[float],
    rates_hz: NDArray[np.float64],
    system: System,
    draw: float = 0.0,
) -> Observation:
    """The observation of running cores.

    Args:
        request: who asks.
        cores: one an edge; of a core elsewhere, who is on it.
        free: share of each edge's compute that is free now.
        rates_hz: from ``ArrivalRates.seen``.
        system: the same edges.
        draw: uniform on [0, 1).

    Raises:
        ValueError: if the numbers of cores, shares and edges differ.
    """
    instance_of("request", request, Request)
    instance_of("system", system, System)
    for core in a_sequence("cores", cores):
        instance_of("cores", core, EdgeCore | Inside)
    inside = [core if isinstance(core, Inside) else Inside.of(core) for core in cores]
    shares, rates = finite_array("free", free, 0.0), finite_array("rates_hz", rates_hz, 0.0)
    if not (len(inside),) == shares.shape == (len(system.edges),):
        raise ValueError(f"cores are {len(cores)} and free has shape {shares.shape}; valid is {len(system.edges)} each")
    if rates.shape != (len(RATE_SCALES_S),):
        raise ValueError(f"rates_hz has shape {rates.shape}; valid is ({len(RATE_SCALES_S)},)")
    finite_number("draw", draw, 0.0, 1.0)
    left = [[*one.members, *one.waiting] for one in inside]
    remaining = np.zeros((len(inside), max(1, *map(len, left))), dtype=np.int64)
    for row, steps in zip(remaining, left):
        row[: len(steps)] = steps
    return Observation(
        time_s=np.float64(request.arrival_s),
        device_step_s=np.float64(request.device_step_s),
        alpha=np.float64(request.alpha),
        draw=np.float64(draw),
        free=shares,
        batch=np.array([len(one.members) for one in inside]),
        waiting=np.array([len(one.waiting) for one in inside]),
        work_left=remaining.sum(axis=1),
        remaining=remaining,
        rates_hz=rates,
        run=np.int64(0),
        system=system,
    )

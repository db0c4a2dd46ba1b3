"""What is asked of an edge, what is answered, and what leaves it again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitpoint.checks import a_sequence, finite_array, finite_number, instance_of, whole_number
from splitpoint.edge.capacity import Capacity, ConstantCapacity
from splitpoint.offloading import StepLatency, SystemParameters

#: one hand-over a request over the whole band, divided (not multiplied) by the spectral efficiency
PARAMETERS = SystemParameters(transmission="corrected")
#: edge number of a request that stays at home
HOME = -1


@dataclass(frozen=True)
class Request:
    """One image that somebody wants.

    Args:
        id: unique within a run.
        arrival_s: moment of the request.
        device_step_s: one denoising step on the user's own device.
        alpha: seconds worth one unit of accuracy.
    """

    id: Any
    arrival_s: float
    device_step_s: float
    alpha: float

    def __post_init__(self):
        finite_number("arrival_s", self.arrival_s, 0.0)
        finite_number("device_step_s", self.device_step_s, 0.0, open_end=True)
        finite_number("alpha", self.alpha, 0.0)


@dataclass(frozen=True)
class Decision:
    """Which edge runs how many steps; ``edge=-1`` and ``steps=0`` keep the request at home.

    Args:
        edge: number of the edge, or an array of them, one a request.
        steps: first steps that the edge runs, ``m = N - n``, alike.
    """

    edge: Any = HOME
    steps: Any = 0


@dataclass(frozen=True)
class Departure:
    """A request that leaves an edge: all its steps are done, or it was cancelled.

    Args:
        id: of the request.
        joined_s: when its first step began; None if it never did.
        left_s: when it left.
        steps: steps that were done.
    """

    id: Any
    joined_s: float | None
    left_s: float
    steps: int


@dataclass(frozen=True)
class Edge:
    """One machine that runs a step of all its members at a time.

    Args:
        latency: seconds of a step against the batch, with all of the machine's compute free.
        capacity: share of it that is free over time.
        max_batch: most members of a step.
        transfer_s: hand-over of one request, ``tau``; grows with the distance.
    """

    latency: StepLatency
    capacity: Capacity = field(default_factory=ConstantCapacity)
    max_batch: int = PARAMETERS.max_batch
    transfer_s: float = PARAMETERS.transfer_s_per_user

    def __post_init__(self):
        instance_of("latency", self.latency, StepLatency)
        instance_of("capacity", self.capacity, Capacity)
        whole_number("max_batch", self.max_batch, 1)
        finite_number("transfer_s", self.transfer_s, 0.0)

    def step_table_s(self) -> NDArray[np.float64]:
        """Seconds of a step at batch 0 … max_batch, shape (max_batch + 1,); zero for an empty one."""
        return np.append(0.0, np.asarray(self.latency.step_latency_s(np.arange(1, self.max_batch + 1)), dtype=float))


def some_edges(edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """The edges; refuses what is no sequence of at least one Edge."""
    for edge in a_sequence("edges", edges):
        instance_of("edges", edge, Edge)
    return tuple(edges)


def grant_value_s(
    alpha: ArrayLike,
    device_step_s: ArrayLike,
    steps: ArrayLike,
    transfer_s: ArrayLike,
    parameters: SystemParameters = PARAMETERS,
) -> NDArray[np.float64]:
    """What ``m`` edge steps are worth without the time they take there, ``f(m)``; zero for none.

    ``f(m) = alpha (A(N - m) - A(N)) + m d - tau``

    Args:
        alpha: seconds worth one unit of accuracy, any shape.
        device_step_s: one step on the device, seconds, any shape that broadcasts with it, as all below.
        steps: edge steps.
        transfer_s: hand-over, seconds.
        parameters: SystemParameters.

    Returns:
        Seconds, of the broadcast shape.

    Raises:
        ValueError: for numbers that are negative or not finite.
    """
    instance_of("parameters", parameters, SystemParameters)
    alpha, device = finite_array("alpha", alpha, 0.0), finite_array("device_step_s", device_step_s, 0.0)
    steps, transfer = finite_array("steps", steps, 0.0), finite_array("transfer_s", transfer_s, 0.0)
    curve = parameters.accuracy
    lost = alpha * (curve.pai(parameters.num_steps - steps) - curve.pai(parameters.num_steps))
    return np.where(steps > 0, lost + steps * device - transfer, 0.0)

"""The two curves the optimiser needs: step latency against batch size, accuracy against split point."""

from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from splitpoint.checks import finite_array, finite_number


@runtime_checkable
class StepLatency(Protocol):
    """Seconds of one denoising step of a batch: a line, a bent line, a table, or a class of one's own."""

    def step_latency_s(self, batch_size: ArrayLike) -> NDArray[np.float64]:
        """Seconds of one denoising step; ``batch_size`` of any shape, in requests."""
        ...

    def shared_by(self, num_gpus: float) -> Self:
        """The same work spread evenly over several GPUs."""
        ...


@runtime_checkable
class AccuracyCurve(Protocol):
    """Personalized accuracy index against split point: ``AccuracyModel``, or a class of one's own."""

    def pai(self, split_point: ArrayLike) -> NDArray[np.float64]:
        """Accuracy index; ``split_point`` of any shape, in steps."""
        ...


@dataclass(frozen=True)
class LatencyModel:
    """One denoising step of a batch of ``b`` requests takes ``slope_s * b + intercept_s`` seconds.

    Args:
        slope_s: seconds per request, ``k``; mostly arithmetic.
        intercept_s: seconds per step whatever the batch, ``h``; mostly launch overhead. A fitted line may have a
            negative one; it is then no model of an empty batch, and only of use inside the measured range.

    Raises:
        ValueError: if a number is not finite, the slope is negative, or one step of batch 1 takes no time.
    """

    slope_s: float
    intercept_s: float

    def __post_init__(self):
        finite_number("slope_s", self.slope_s, minimum=0.0)
        finite_number("intercept_s", self.intercept_s)
        if self.slope_s + self.intercept_s <= 0:
            raise ValueError(
                f"slope_s + intercept_s = {self.slope_s + self.intercept_s} s: a step of batch 1 must "
                "take a positive time"
            )

    def step_latency_s(self, batch_size: ArrayLike) -> NDArray[np.float64]:
        """Seconds of one denoising step; ``batch_size`` of any shape, in requests."""
        return self.slope_s * np.asarray(batch_size, dtype=float) + self.intercept_s

    def shared_by(self, num_gpus: float) -> "LatencyModel":
        """The same work spread evenly over several GPUs (authors' released code, PERDQN/per_DQN_main.py)."""
        finite_number("num_gpus", num_gpus, minimum=1)
        return LatencyModel(self.slope_s / num_gpus, self.intercept_s / num_gpus)


@dataclass(frozen=True)
class TwoPieceLatency:
    """A continuous line with one bend.

    Args:
        bend: batch size where the slope changes.
        at_bend_s: seconds of one step there.
        slope_below_s, slope_above_s: seconds per request on either side.
    """

    bend: float
    at_bend_s: float
    slope_below_s: float
    slope_above_s: float

    def step_latency_s(self, batch_size: ArrayLike) -> NDArray[np.float64]:
        """Seconds of one denoising step; ``batch_size`` of any shape."""
        beyond = np.asarray(batch_size, dtype=float) - self.bend
        return self.at_bend_s + np.where(beyond < 0, self.slope_below_s, self.slope_above_s) * beyond

    def shared_by(self, num_gpus: float) -> "TwoPieceLatency":
        """The same work spread evenly over several GPUs."""
        finite_number("num_gpus", num_gpus, minimum=1)
        return TwoPieceLatency(
            self.bend, *(value / num_gpus for value in (self.at_bend_s, self.slope_below_s, self.slope_above_s))
        )


@dataclass(frozen=True)
class TableLatency:
    """Step latencies as published, batch size by batch size; straight between two of them and on from the last two.

    Args:
        batch: batch sizes, ascending, at least two.
        seconds: of one step, one a batch size.

    Raises:
        ValueError: for fewer than two sizes, sizes that do not rise, or seconds that are not positive.
    """

    batch: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self):
        batch, seconds = finite_array("batch", self.batch), finite_array("seconds", self.seconds)
        if batch.ndim != 1 or len(batch) < 2 or batch.shape != seconds.shape or np.any(np.diff(batch) <= 0):
            raise ValueError(f"batch={self.batch} must hold two sizes or more that rise, one for each of the seconds")
        if np.any(seconds <= 0):
            raise ValueError(f"seconds={self.seconds} must be positive")

    def step_latency_s(self, batch_size: ArrayLike) -> NDArray[np.float64]:
        """Seconds of one denoising step; ``batch_size`` of any shape."""
        batch, seconds = np.array(self.batch), np.array(self.seconds)
        size = np.asarray(batch_size, dtype=float)
        piece = np.clip(np.searchsorted(batch, size) - 1, 0, len(batch) - 2)
        slope = np.diff(seconds) / np.diff(batch)
        return seconds[piece] + slope[piece] * (size - batch[piece])

    def shared_by(self, num_gpus: float) -> "TableLatency":
        """The same work spread evenly over several GPUs."""
        finite_number("num_gpus", num_gpus, minimum=1)
        return TableLatency(self.batch, tuple(s / num_gpus for s in self.seconds))


@dataclass(frozen=True)
class AccuracyModel:
    """Personalized accuracy index of an image whose last ``n`` steps ran on the personal model.

    ``pai(n) = ceiling / (1 + exp(-steepness * (n - midpoint)))``

    Args:
        steepness: ``a``, per step.
        midpoint: ``b``, in steps; concave from here on.
        ceiling: ``c``, where the curve levels off; the released one ends at 1.
    """

    steepness: float
    midpoint: float
    ceiling: float = 1.0

    def __post_init__(self):
        finite_number("steepness", self.steepness, minimum=0.0, open_end=True)
        finite_number("midpoint", self.midpoint)
        finite_number("ceiling", self.ceiling, minimum=0.0, open_end=True)

    def pai(self, split_point: ArrayLike) -> NDArray[np.float64]:
        """Accuracy index in (0, ceiling); ``split_point`` of any shape, in steps."""
        return self.ceiling * special.expit(self.steepness * (np.asarray(split_point, dtype=float) - self.midpoint))

    def rescaled(self, num_steps: float, of: float = 200) -> "AccuracyModel":
        """The same curve for runs of ``num_steps`` steps, where this one counts steps of a run of ``of``.

        A step of a shorter run spans more noise levels, so that a *share* of the steps means what it meant. That holds
        while the spacing of the noise levels is the same (notebook 04).
        """
        finite_number("num_steps", num_steps, minimum=0.0, open_end=True)
        finite_number("of", of, minimum=0.0, open_end=True)
        share = num_steps / of
        return AccuracyModel(self.steepness / share, self.midpoint * share, self.ceiling)


#: authors' released code, PERDQN/utils.py
RELEASED_ACCURACY = AccuracyModel(steepness=0.0413, midpoint=71.44)

"""The two curves the optimiser needs, and their fits: step latency against batch size, accuracy against split point."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from splitpoint.checks import finite_array, finite_number

CONFIDENCE = 0.95


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

    def shared_by(self, num_gpus: int) -> "LatencyModel":
        """The same work spread evenly over several GPUs (authors' released code, PERDQN/per_DQN_main.py)."""
        finite_number("num_gpus", num_gpus, minimum=1)
        return LatencyModel(self.slope_s / num_gpus, self.intercept_s / num_gpus)


@dataclass(frozen=True)
class AccuracyModel:
    """Personalized accuracy index of an image whose last ``n`` steps ran on the personal model.

    ``pai(n) = 1 / (1 + exp(-steepness * (n - midpoint)))``

    Args:
        steepness: ``a``, per step.
        midpoint: ``b``, in steps; concave from here on.
    """

    steepness: float
    midpoint: float

    def __post_init__(self):
        finite_number("steepness", self.steepness, minimum=0.0, open_end=True)
        finite_number("midpoint", self.midpoint)

    def pai(self, split_point: ArrayLike) -> NDArray[np.float64]:
        """Accuracy index in (0, 1); ``split_point`` of any shape, in steps."""
        return special.expit(self.steepness * (np.asarray(split_point, dtype=float) - self.midpoint))


#: authors' released code, PERDQN/utils.py
RELEASED_ACCURACY = AccuracyModel(steepness=0.0413, midpoint=71.44)


@dataclass(frozen=True)
class Fit:
    """A fitted curve with its uncertainty.

    Args:
        model: the fitted LatencyModel or AccuracyModel.
        intervals: 95 % confidence interval of each parameter, ``{name: (low, high)}``.
        residuals: measured minus fitted, in the unit of the measurements, shape (n,).
        r_squared: share of the variance that the curve explains.
        covariance: of the two parameters, shape (2, 2), in the order of the model's fields.
    """

    model: LatencyModel | AccuracyModel
    intervals: dict[str, tuple[float, float]]
    residuals: NDArray[np.float64]
    r_squared: float
    covariance: NDArray[np.float64]


def fit_latency(batch: ArrayLike, seconds: ArrayLike, nonnegative: bool = False) -> Fit:
    """Least-squares line through step latencies; one that would fall with the batch is held level.

    Args:
        batch: batch sizes, shape (n,), at least two different ones.
        seconds: seconds of one step, shape (n,); repeats may all be given.
        nonnegative: hold the intercept at zero where the plain line's would be negative, so that an empty batch
            takes no negative time; the slope is then that of a line through the origin.

    Returns:
        The fit. Where a bound holds, that number's interval begins at zero: the intercept's with ``nonnegative``, the
        slope's where times only scatter around a constant (a GPU that a small network leaves idle).

    Raises:
        ValueError: for fewer than three points, mismatched lengths, a single batch size, or a number that is not
            finite and positive.

    Source: ordinary least squares with Student's t; https://en.wikipedia.org/wiki/Simple_linear_regression
    """
    batch, seconds = _paired("batch", batch, "seconds", seconds, at_least=3)
    if np.any(batch <= 0) or np.any(seconds <= 0):
        raise ValueError("batch and seconds must be positive")
    if np.ptp(batch) == 0:
        raise ValueError(f"batch holds a single size, {batch[0]:g}; a line needs at least two")
    design = np.column_stack([batch, np.ones_like(batch)])
    (slope, intercept), covariance = _least_squares(design, seconds)
    intervals = _intervals(("slope_s", "intercept_s"), (slope, intercept), covariance, len(batch) - 2)
    if nonnegative and intercept < 0:
        (slope,), variance = _least_squares(design[:, :1], seconds)
        upper = max(0.0, intervals["intercept_s"][1])
        intercept, covariance = 0.0, np.diag([variance[0, 0], 0.0])
        intervals = _intervals(("slope_s",), (slope,), variance, len(batch) - 1) | {"intercept_s": (0.0, upper)}
    if slope < 0:
        (intercept,), variance = _least_squares(design[:, 1:], seconds)
        upper = max(0.0, intervals["slope_s"][1])
        slope, covariance = 0.0, np.diag([0.0, variance[0, 0]])
        intervals = {"slope_s": (0.0, upper)} | _intervals(("intercept_s",), (intercept,), variance, len(batch) - 1)
    residuals = seconds - (slope * batch + intercept)
    return Fit(
        LatencyModel(float(slope), float(intercept)), intervals, residuals, _r_squared(seconds, residuals), covariance
    )


def fit_accuracy(split: ArrayLike, pai: ArrayLike) -> Fit:
    """Least-squares logistic curve through accuracy measurements.

    Args:
        split: split points in steps, shape (n,).
        pai: personalized accuracy index, shape (n,), within [0, 1] up to noise.

    Returns:
        The fit; its intervals assume independent errors (for repeated prompts, resample whole prompts instead).

    Raises:
        ValueError: for fewer than three points, mismatched lengths, fewer than two split points, a number that is not
            finite, or a curve that does not rise.
    """
    split, pai = _paired("split", split, "pai", pai, at_least=3)
    if np.ptp(split) == 0:
        raise ValueError(f"split holds a single split point, {split[0]:g}; a curve needs at least two")
    start = (4 / np.ptp(split), split.min() + np.ptp(split) / 2)
    try:
        (steepness, midpoint), covariance = optimize.curve_fit(
            lambda n, a, b: special.expit(a * (n - b)), split, pai, p0=start, maxfev=10_000
        )
    except RuntimeError as error:
        raise ValueError("pai does not follow a logistic curve in split: the fit did not converge") from error
    if not steepness > 0:
        raise ValueError(f"pai does not rise with split (fitted steepness {steepness:g} per step)")
    intervals = _intervals(("steepness", "midpoint"), (steepness, midpoint), covariance, len(split) - 2)
    model = AccuracyModel(float(steepness), float(midpoint))
    residuals = pai - model.pai(split)
    return Fit(model, intervals, residuals, _r_squared(pai, residuals), covariance)


def confidence_band(fit: Fit, batch: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % confidence band of a fitted latency line.

    Args:
        fit: from ``fit_latency``.
        batch: batch sizes, shape (m,), in requests.

    Returns:
        Lower and upper end at each batch size, shape (m,) each, in seconds.

    Raises:
        ValueError: if ``batch`` holds a number that is not finite.
    """
    batch = finite_array("batch", batch)
    design = np.column_stack([batch, np.ones_like(batch)])
    error = np.sqrt(np.einsum("ni,ij,nj->n", design, fit.covariance, design))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(fit.residuals) - 2) * error
    line = fit.model.step_latency_s(batch)
    return line - half, line + half


def _paired(name_x: str, x: ArrayLike, name_y: str, y: ArrayLike, at_least: int):
    x, y = finite_array(name_x, x), finite_array(name_y, y)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"{name_x} and {name_y} must be one-dimensional and of one length, not {x.shape} and {y.shape}"
        )
    if len(x) < at_least:
        raise ValueError(f"{name_x} has {len(x)} points; at least {at_least} are needed")
    return x, y


def _least_squares(design: NDArray, target: NDArray) -> tuple[NDArray, NDArray]:
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    residuals = target - design @ solution
    variance = residuals @ residuals / (len(target) - design.shape[1])
    return solution, variance * np.linalg.inv(design.T @ design)


def _intervals(names, values, covariance, degrees_of_freedom) -> dict[str, tuple[float, float]]:
    half = stats.t.ppf((1 + CONFIDENCE) / 2, max(degrees_of_freedom, 1)) * np.sqrt(np.diag(covariance))
    return {name: (float(v - w), float(v + w)) for name, v, w in zip(names, values, half)}


def _r_squared(target: NDArray, residuals: NDArray) -> float:
    spread = np.sum((target - target.mean()) ** 2)
    return float(1 - residuals @ residuals / spread) if spread > 0 else 1.0

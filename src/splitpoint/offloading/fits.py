"""Fits of the two curves, with their uncertainty: least squares and intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from splitpoint.checks import finite_array
from splitpoint.offloading.curves import AccuracyModel, LatencyModel, StepLatency, TwoPieceLatency

CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted curve with its uncertainty.

    Args:
        model: the fitted LatencyModel or AccuracyModel.
        intervals: 95 % confidence interval of each parameter, ``{name: (low, high)}``.
        residuals: measured minus fitted, in the unit of the measurements, shape (n,).
        r_squared: share of the variance that the curve explains.
        covariance: of the fitted parameters, shape (p, p), in the order of the model's fields.
    """

    model: LatencyModel | AccuracyModel
    intervals: dict[str, tuple[float, float]]
    residuals: NDArray[np.float64]
    r_squared: float
    covariance: NDArray[np.float64]

    @property
    def line(self) -> LatencyModel:
        """The model of a latency fit."""
        assert isinstance(self.model, LatencyModel)
        return self.model


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


def fit_accuracy(split: ArrayLike, pai: ArrayLike, free_ceiling: bool = False) -> Fit:
    """Least-squares logistic curve through accuracy measurements.

    Args:
        split: split points in steps, shape (n,).
        pai: personalized accuracy index, shape (n,), within [0, 1] up to noise; at most 1.5.
        free_ceiling: fit where the curve levels off, too; else it ends at 1.

    Returns:
        The fit; its intervals assume independent errors (for repeated prompts, resample whole prompts instead).

    Raises:
        ValueError: for fewer than three points (four with a free ceiling), mismatched lengths, fewer than two split
            points, a number that is not finite or no index, or a curve that does not rise.
    """
    split, pai = _paired("split", split, "pai", pai, at_least=4 if free_ceiling else 3)
    if np.ptp(split) == 0:
        raise ValueError(f"split holds a single split point, {split[0]:g}; a curve needs at least two")
    if not np.all((pai >= -0.5) & (pai <= 1.5)):
        odd = pai[(pai < -0.5) | (pai > 1.5)][0]
        raise ValueError(f"pai holds {odd:g}; valid is [0, 1] up to noise, so at most 1.5 (percentages?)")
    if np.ptp(pai) == 0:
        raise ValueError(f"pai does not rise with split: it is {pai[0]:g} everywhere")
    start = (4 / np.ptp(split), split.min() + np.ptp(split) / 2, max(float(pai.max()), 0.1))[: 2 + free_ceiling]

    def curve(n, a, b, c=1.0):
        return c * special.expit(a * (n - b))

    try:
        found, covariance = optimize.curve_fit(curve, split, pai, p0=start, maxfev=10_000)
    except RuntimeError as error:
        raise ValueError("pai does not follow a logistic curve in split: the fit did not converge") from error
    if not found[0] > 0:
        raise ValueError(f"pai does not rise with split (fitted steepness {found[0]:g} per step)")
    names = ("steepness", "midpoint", "ceiling")[: len(found)]
    intervals = _intervals(names, found, covariance, len(split) - len(found))
    model = AccuracyModel(*(float(value) for value in found))
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
    line = fit.line.step_latency_s(batch)
    return line - half, line + half


def fit_two_piece(batch: ArrayLike, seconds: ArrayLike) -> TwoPieceLatency:
    """Least-squares line with one bend at a measured batch size, at least two sizes on either side of it.

    Args:
        batch: batch sizes, shape (n,), in requests.
        seconds: of one step, shape (n,).

    Raises:
        ValueError: for fewer than four batch sizes or numbers that are not finite.
    """
    batch, seconds = finite_array("batch", batch, minimum=1), finite_array("seconds", seconds, minimum=0)
    sizes = np.unique(batch)
    if len(sizes) < 4:
        raise ValueError(f"batch holds {len(sizes)} sizes; a line with a bend needs at least 4")
    best: tuple[float, TwoPieceLatency] | None = None
    for bend in sizes[1:-1]:
        design = np.column_stack([np.ones_like(batch), np.minimum(batch - bend, 0), np.maximum(batch - bend, 0)])
        solution, *_ = np.linalg.lstsq(design, seconds, rcond=None)
        error = np.sum((design @ solution - seconds) ** 2)
        if best is None or error < best[0]:
            best = error, TwoPieceLatency(float(bend), *(float(v) for v in solution))
    assert best is not None  # there is an inner size
    return best[1]


def line_error(line: StepLatency, batch: ArrayLike, seconds: ArrayLike) -> NDArray[np.float64]:
    """How far a line is off, relative to what was measured.

    Args:
        line: fitted to some of the measurements.
        batch: batch sizes, shape (n,), in requests.
        seconds: measured, shape (n,).

    Returns:
        Line over measured, minus 1, shape (n,).

    Raises:
        ValueError: if ``seconds`` holds a number that is negative or not finite.
    """
    seconds = finite_array("seconds", seconds, minimum=0)
    return line.step_latency_s(batch) / seconds - 1


def fit_floor(batch: ArrayLike, seconds: ArrayLike) -> LatencyModel | TwoPieceLatency:
    """``max(floor, k·b + h)``: a machine that cannot start work faster than it does at batch 1 or 2.

    On a fast card the smallest batches wait for the host to launch kernels, not for arithmetic. The floor is the mean
    of the first one or two sizes and the line goes through the others; whichever is off by less, relative to what was
    published, is kept, and the plain line where the floor would not lie a tenth above it. Such a line passes through
    three sizes exactly, so its error says nothing there.

    Args:
        batch: batch sizes, shape (n,), ascending, at least three.
        seconds: of one step, shape (n,).

    Returns:
        A bent line, level up to where the line passes the floor; a LatencyModel where nothing is bound by launches.

    Raises:
        ValueError: for fewer than three sizes or numbers that are not finite and positive.
    """
    best: LatencyModel | TwoPieceLatency = fit_latency(batch, seconds, nonnegative=True).line
    batch, seconds = finite_array("batch", batch), finite_array("seconds", seconds)
    for level in (1, 2):
        if len(batch) - level < 2:
            break
        k, h = np.polyfit(batch[level:], seconds[level:], 1)
        if h < 0:  # as fit_latency does: an empty batch takes no negative time
            k, h = np.sum(batch[level:] * seconds[level:]) / np.sum(batch[level:] ** 2), 0.0
        floor = float(np.mean(seconds[:level]))
        if k <= 0 or floor < max(1.1 * (k * batch[0] + h), k * batch[level - 1] + h):
            continue
        bent = TwoPieceLatency(float((floor - h) / k), floor, 0.0, float(k))
        if np.abs(line_error(bent, batch, seconds)).max() < np.abs(line_error(best, batch, seconds)).max():
            best = bent
    return best


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

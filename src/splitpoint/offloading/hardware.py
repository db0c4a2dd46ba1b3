"""Measured latency profiles: reading, checking, fitting, and drawing instances from them."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitpoint.checks import finite_array, finite_number
from splitpoint.offloading.curves import Fit, LatencyModel, fit_latency
from splitpoint.offloading.problem import Profiles, published_profiles

KEY = ("device", "architecture", "dtype", "mode", "guidance")
REQUIRED = (*KEY, "batch_size", "repeat", "status", "step_s")
RATE = "matrix_rate_flop_per_s"  # of a large matrix product on the same machine; a file may lack it
STATUSES = ("ok", "out_of_memory")
#: lines are fitted up to the largest batch that the released edge admits
LARGEST_BATCH = 18


@dataclass(frozen=True)
class Curve:
    """Measured step latencies of one configuration.

    Args:
        batch: batch size of every repeat, shape (n,).
        seconds: of one step, shape (n,).
        ends_at: the batch size that did not fit in memory, or None.
    """

    batch: NDArray[np.float64]
    seconds: NDArray[np.float64]
    ends_at: int | None = None

    def medians(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Batch sizes and the median seconds of each, shape (m,) both."""
        sizes = np.unique(self.batch)
        return sizes, np.array([np.median(self.seconds[self.batch == size]) for size in sizes])

    def fit(self, max_batch: float = LARGEST_BATCH, nonnegative: bool = False) -> Fit:
        """The line through the medians up to ``max_batch``.

        Medians, not repeats: repeats of one size share its deviation from the line, and counting each of them would
        make the interval too narrow.

        Args:
            max_batch: largest batch size that counts, in requests.
            nonnegative: see ``fit_latency``.

        Raises:
            ValueError: for fewer than three batch sizes up to ``max_batch``.
        """
        sizes, medians = self.medians()
        return fit_latency(sizes[sizes <= max_batch], medians[sizes <= max_batch], nonnegative)


def read_profile(path: Path) -> dict[tuple[str, str, str, str, str], Curve]:
    """Read and check a profile file written by ``python -m splitpoint.diffusion.profile``.

    Args:
        path: CSV with one row a repeat; times in seconds in a column ``step_s``.

    Returns:
        ``{(device, architecture, dtype, mode, guidance): Curve}``.

    Raises:
        ValueError: naming file, column and value, for a missing column, another unit, a time that is not positive, a
            batch size that is not a whole number from 1 up, or an unknown status.
    """
    path = Path(path)
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        for column in REQUIRED:
            if column in columns:
                continue
            other = [c for c in columns if column.endswith("_s") and c.startswith(column[:-1])]
            unit = f"; column {other[0]!r} has another unit, valid is seconds" if other else ""
            raise ValueError(f"{path.name}: column {column!r} is missing{unit}; valid are {', '.join(REQUIRED)}")
        rows = list(reader)
    if not rows:
        raise ValueError(f"{path.name}: no rows")
    groups: dict[tuple, dict] = {}
    for line, row in enumerate(rows, 2):
        group = groups.setdefault(tuple(row[c] for c in KEY), {"batch": [], "seconds": [], "ends_at": None})
        if row["status"] not in STATUSES:
            raise ValueError(f"{path.name}, line {line}: status={row['status']!r} is not one of {', '.join(STATUSES)}")
        batch = _number(path, line, row, "batch_size")
        if batch < 1 or batch != int(batch):
            raise ValueError(
                f"{path.name}, line {line}: batch_size={row['batch_size']!r} must be a whole number in [1, inf)"
            )
        if row["status"] == "out_of_memory":
            group["ends_at"] = int(batch)
            continue
        seconds = _number(path, line, row, "step_s")
        if seconds <= 0:
            raise ValueError(f"{path.name}, line {line}: step_s={row['step_s']!r} is outside (0, inf)")
        group["batch"].append(batch)
        group["seconds"].append(seconds)
    return {key: Curve(np.array(g["batch"]), np.array(g["seconds"]), g["ends_at"]) for key, g in groups.items()}


def _number(path: Path, line: int, row: dict, column: str) -> float:
    try:
        value = float(row[column])
        finite_number(column, value)
    except (TypeError, ValueError) as error:  # a row cut short holds None
        raise ValueError(f"{path.name}, line {line}: {column}={row[column]!r} is not a finite number") from error
    return value


def latency_fits(path: Path, max_batch: float = np.inf) -> dict[tuple[str, str, str, str, str], Fit]:
    """The line of each curve with at least three batch sizes up to ``max_batch``."""
    return {
        key: curve.fit(max_batch)
        for key, curve in read_profile(path).items()
        if np.sum(curve.medians()[0] <= max_batch) >= 3
    }


@dataclass(frozen=True)
class TwoPieceLatency:
    """A continuous line with one bend; stands in for LatencyModel where an edge is evaluated under static batching.

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

    def shared_by(self, num_gpus: int) -> "TwoPieceLatency":
        """The same work spread evenly over several GPUs."""
        finite_number("num_gpus", num_gpus, minimum=1)
        return TwoPieceLatency(
            self.bend, *(value / num_gpus for value in (self.at_bend_s, self.slope_below_s, self.slope_above_s))
        )


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
    best = None
    for bend in sizes[1:-1]:
        design = np.column_stack([np.ones_like(batch), np.minimum(batch - bend, 0), np.maximum(batch - bend, 0)])
        solution, *_ = np.linalg.lstsq(design, seconds, rcond=None)
        error = np.sum((design @ solution - seconds) ** 2)
        if best is None or error < best[0]:
            best = error, TwoPieceLatency(float(bend), *(float(v) for v in solution))
    return best[1]


def line_error(line: LatencyModel, batch: ArrayLike, seconds: ArrayLike) -> NDArray[np.float64]:
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


def measured_profiles(edge_gpu: LatencyModel) -> Profiles:
    """An edge of measured machines and users whose devices are slower by the published ratios.

    The published devices' steps at batch 1 are divided by the published edge GPU's and multiplied by the measured
    machine's; nobody's intercept is known, so a device's line is all slope.
    """
    published = published_profiles()
    ratios = published.device_steps_s / published.edge_gpu.step_latency_s(1)
    step_s = float(edge_gpu.step_latency_s(1))
    return Profiles(edge_gpu, tuple(LatencyModel(float(ratio * step_s), 0.0) for ratio in ratios))

"""Hardware: measured latency profiles, published ones of machines with names, and instances drawn from them."""

import csv
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitpoint.checks import finite_number, one_of, whole_number
from splitpoint.files import data_path, read_meta
from splitpoint.offloading.curves import RELEASED_ACCURACY, LatencyModel, StepLatency, TableLatency, TwoPieceLatency
from splitpoint.offloading.fits import Fit, fit_floor, fit_latency
from splitpoint.offloading.problem import Instance, Profiles, SystemParameters, published_profiles, sample_instance

KEY = ("device", "architecture", "dtype", "mode", "guidance")
REQUIRED = (*KEY, "batch_size", "repeat", "status", "step_s")
RATE = "matrix_rate_flop_per_s"  # of a large matrix product on the same machine; a file may lack it
STATUSES = ("ok", "out_of_memory")
#: lines are fitted up to the largest batch that the released edge admits
LARGEST_BATCH = 18


@dataclass(frozen=True, eq=False)
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
    """Read and check a profile file written by ``splitpoint profile``.

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


def measured_profiles(edge_gpu: LatencyModel) -> Profiles:
    """An edge of measured machines and users whose devices are slower by the published ratios.

    The published devices' steps at batch 1 are divided by the published edge GPU's and multiplied by the measured
    machine's; nobody's intercept is known, so a device's line is all slope.
    """
    published = published_profiles()
    ratios = published.device_steps_s / published.edge_gpu.step_latency_s(1)
    step_s = float(edge_gpu.step_latency_s(1))
    return Profiles(edge_gpu, tuple(LatencyModel(float(ratio * step_s), 0.0) for ratio in ratios))


#: networks whose steps cost about the same: Stable Diffusion 1.x and 2.1-base at 512 × 512; the first that was measured
FAMILIES = {"sd": ("sd-1.5", "sd-1.4", "sd-1.x", "sd-2.1"), "sdxl": ("sdxl",)}
SERIES = ("device", "architecture", "resolution_px", "dtype", "software", "software_detail", "source")
#: of the released run, authors' released code, fitting/image_generation.py
RELEASED_STEPS = 200
#: a latent of 4 × 64 × 64 in fp16; the device encodes the prompt itself
LATENT_BITS = 4 * 64 * 64 * 16


@dataclass(frozen=True, eq=False)
class Machine:
    """Published step times of one machine with one software, with where they were published.

    Args:
        rows: as in ``data/latency_profiles/named.csv``, one a published number.
        batch: batch sizes, shape (n,), ascending, in guided images.
        seconds: of one step of the whole batch, shape (n,).
        scope: what the seconds hold: ``denoise_loop`` and ``unet_only`` steps alone, ``end_to_end`` also a share of
            text encoder and decoder, ``difference`` what 50 steps took longer than 25, so steps alone.
    """

    rows: tuple[dict[str, str], ...]
    batch: NDArray[np.float64]
    seconds: NDArray[np.float64]
    scope: str

    @property
    def name(self) -> str:
        """Without the maker: ``A100``, ``RTX 4090``, ``iPhone 14 Pro Max``."""
        return _short(self.rows[0]["device"])

    @property
    def software(self) -> str:
        """Short name of the software, for instance ``compiled``."""
        return self.rows[0]["software"]

    @property
    def largest_batch(self) -> int:
        """The largest batch that was published, which is also the largest that is planned with."""
        return int(self.batch[-1])

    @property
    def step_s(self) -> float:
        """Seconds of one step at batch 1."""
        if self.batch[0] != 1:
            raise ValueError(f"batch 1 of {self.name}, {self.software}, was not published; there are {self.batch}")
        return float(self.seconds[0])

    @property
    def rounding_s(self) -> tuple[float, float]:
        """Where the step at batch 1 lies, as far as the digits of the published number say, in seconds."""
        value, unit = self.rows[0]["published_value"], self.rows[0]["published_unit"]
        half = 0.5 * 10.0 ** -len(value.partition(".")[2])
        ends = 1 - half / float(value), 1 + half / float(value)
        low, high = (1 / ends[1], 1 / ends[0]) if unit.startswith("it") else ends
        return self.step_s * low, self.step_s * high

    def fit(self) -> Fit:
        """The least-squares line with its 95 % intervals, its intercept held at zero if it would be negative."""
        return fit_latency(self.batch, self.seconds, nonnegative=True)

    def line(self) -> LatencyModel:
        """``k·b + h``."""
        return self.fit().line

    def floor(self) -> LatencyModel | TwoPieceLatency:
        """``max(floor, k·b + h)``, see ``fit_floor``."""
        return fit_floor(self.batch, self.seconds)

    def table(self) -> TableLatency:
        """The published numbers themselves."""
        return TableLatency(tuple(map(float, self.batch)), tuple(map(float, self.seconds)))


def _short(device: str) -> str:
    return re.sub(r"(?i)^(NVIDIA|AMD Instinct) (GeForce )?", "", device)


@cache
def machines() -> tuple[Machine, ...]:
    """Every named machine with every software, as published (``data/latency_profiles/named.csv``).

    Two runs that differ in their number of steps alone (AITemplate, 25 and 50) become one machine: what the longer run
    took more, divided by the steps it had more, holds neither text encoder nor decoder.

    Raises:
        ValueError: if the file or its sidecar is missing or damaged.
    """
    path, groups = data_path("latency_profiles", "named.csv"), {}
    read_meta(path)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            runs = groups.setdefault(tuple(row[name] for name in (*SERIES, "scope")), {})
            runs.setdefault(row["num_steps"], []).append(row)
    return tuple(_machine(runs) for runs in groups.values())


def _machine(runs: dict[str, list[dict[str, str]]]) -> Machine:
    rows = [row for run in runs.values() for row in run]
    seconds = {steps: np.array([float(row["step_s"]) for row in run]) for steps, run in runs.items()}
    batch = np.array([float(row["batch_size"]) for row in next(iter(runs.values()))])
    if len(runs) == 1:
        return Machine(tuple(rows), batch, next(iter(seconds.values())), rows[0]["scope"])
    few, many = sorted(seconds, key=int)
    more = int(many) * seconds[many] - int(few) * seconds[few]
    return Machine(tuple(rows), batch, more / (int(many) - int(few)), "difference")


def edge(name: str, software: str = "eager", *, model: str = "sd", dtype: str = "fp16") -> Machine:
    """A named GPU with published steps at three batch sizes or more.

    Args:
        name: with or without the maker, for instance ``"A100"`` or ``"NVIDIA GeForce RTX 4090"``.
        software: for instance ``"eager"``, ``"compiled"``, ``"xformers"``, ``"vanilla"``, ``"onnxruntime"``.
        model: ``"sd"`` (Stable Diffusion 1.x, 512 × 512) or ``"sdxl"``.
        dtype: ``"fp16"`` or ``"fp32"``.

    Returns:
        The machine; of several series the one whose seconds hold steps alone, then the one with most batch sizes.

    Raises:
        ValueError: with the names or software there are, for one that was not published.
    """
    found = [m for m in _family(model) if len(m.batch) >= 3 and m.rows[0]["dtype"] == dtype]
    found = _named(found, name, software)
    return min(found, key=lambda m: (m.scope == "end_to_end", -len(m.batch)))


def device(name: str, software: str | None = None, *, model: str = "sd") -> Machine:
    """A named machine as a user's device: its published step at batch 1.

    Args:
        name: for instance ``"iPhone 14 Pro Max"``.
        software: left out, the fastest that was published for the first network of the family that was.
        model: ``"sd"`` (Stable Diffusion 1.x or 2.1-base, 512 × 512) or ``"sdxl"``.

    Returns:
        The machine; where steps alone and whole runs were published, the steps.

    Raises:
        ValueError: with the names or software there are, for one that was not published.
    """
    found = _named([m for m in _family(model) if m.batch[0] == 1], name, software)
    networks = FAMILIES[model]
    return min(found, key=lambda m: (m.scope == "end_to_end", networks.index(m.rows[0]["architecture"]), m.step_s))


def _family(model: str) -> list[Machine]:
    one_of("model", model, FAMILIES)
    return [m for m in machines() if m.rows[0]["architecture"] in FAMILIES[model]]


def _named(found: list[Machine], name: str, software: str | None) -> list[Machine]:
    names = list(dict.fromkeys(m.name for m in found))
    short = {each.lower(): each for each in names}.get(_short(name).lower(), name)
    one_of("name", short, names)
    found = [m for m in found if m.name == short]
    if software is not None:
        one_of("software", software, dict.fromkeys(m.software for m in found))
        found = [m for m in found if m.software == software]
    return found


#: ``{population: {device: weight}}``. No weight is a market share: those are not in the data.
POPULATIONS = {
    # each year weighs the same, and so do the models of a year; the last two of 2025 are makers' reference designs
    "phones of 2021–2025": {
        "iPhone 13": 3, "iPhone 13 Pro Max": 3, "iPhone 14": 3, "iPhone 14 Pro Max": 3, "vivo iQOO 12": 6,
        "Samsung Galaxy S24": 3, "OnePlus 13": 3,
        "Samsung Galaxy S25": 2, "Snapdragon 8 Elite Gen 5 QRD": 2, "Snapdragon 7 Gen 4 QRD": 2,
    },
    # an assumption: six users, one of whom draws on an old processor
    "a lab's laptops": {
        "MacBook Pro (M1)": 1, "MacBook Pro (M2)": 1, "MacBook Pro (M1 Pro, 16-core GPU)": 1,
        "MacBook Pro (M1 Max, 24-core GPU)": 1, "Snapdragon X Elite CRD": 1, "Intel Core i7-8750H": 1,
    },
}  # fmt: skip
RELEASED_DEVICES = "the released devices"


def population(name: str) -> tuple[tuple[StepLatency, ...], tuple[float, ...]]:
    """Devices of a population, fastest first, and how likely each is.

    Args:
        name: of ``POPULATIONS``, or ``"the released devices"`` (published lines 3 to 10, weights rising 1 to 2).

    Returns:
        The devices, each as a line with the published step at batch 1 and no intercept; their weights, which add up
        to one.

    Raises:
        ValueError: for an unknown name.
    """
    one_of("name", name, (*POPULATIONS, RELEASED_DEVICES))
    if name == RELEASED_DEVICES:
        released = published_profiles()
        return released.devices, tuple(map(float, released.weights))
    weighted = sorted((device(each).step_s, weight) for each, weight in POPULATIONS[name].items())
    total = sum(weight for _, weight in weighted)
    return tuple(LatencyModel(s, 0.0) for s, _ in weighted), tuple(weight / total for _, weight in weighted)


@dataclass(frozen=True)
class Scenario:
    """A named edge and the users who hold named devices.

    The released curve and range of split points are in steps of 200. A run with fewer steps is taken for the same run
    in larger steps: a share of the steps means what it meant, and so does a second. That holds while the spacing of the
    noise levels is the same (notebook 04); nothing was measured at other numbers of steps.

    Args:
        edge: step latency of the edge as one machine.
        max_batch: most users it admits.
        population: see ``population``.
        num_steps: denoising steps of one image, ``N``; all of them with guidance, as all published numbers here are.
        packet_bits: hand-over of one intermediate result.
        transmission: see ``SystemParameters``.
    """

    edge: StepLatency
    max_batch: int
    population: str
    num_steps: int = RELEASED_STEPS
    packet_bits: float = LATENT_BITS
    transmission: Literal["released", "corrected"] = "corrected"

    def __post_init__(self):
        whole_number("num_steps", self.num_steps, 2)
        population(self.population)

    @property
    def parameters(self) -> SystemParameters:
        """The released parameters with this scenario's steps, packet and batch limit."""
        released, share = SystemParameters(), self.num_steps / RELEASED_STEPS
        accuracy = RELEASED_ACCURACY.rescaled(self.num_steps, of=RELEASED_STEPS)
        return SystemParameters(
            num_steps=self.num_steps,
            min_split=round(released.min_split * share),
            max_batch=self.max_batch,
            intermediate_bits=self.packet_bits,
            transmission=self.transmission,
            accuracy=accuracy,
        )

    @property
    def profiles(self) -> Profiles:
        """Edge and devices to draw windows from."""
        devices, weights = population(self.population)
        return Profiles(self.edge, devices, weights)

    def sample(self, num_users: int, rng: np.random.Generator) -> Instance:
        """One window by the released sampling rules, see ``sample_instance``.

        The released preferences are seconds of a run of 200 steps; those of a shorter run are smaller in proportion.
        """
        drawn = sample_instance(num_users, 1, rng, self.parameters, self.profiles)
        return replace(drawn, alpha=drawn.alpha * self.num_steps / RELEASED_STEPS)


def scenario(
    edge_name: str = "A100",
    software: str = "compiled",
    users: str = "phones of 2021–2025",
    num_steps: int = RELEASED_STEPS,
    **more,
) -> Scenario:
    """A named edge, planned with its published table, and a population of named devices.

    Args:
        edge_name, software: see ``edge``.
        users: see ``population``.
        num_steps: denoising steps of one image.
        more: further fields of ``Scenario``.

    Raises:
        ValueError: for a name that was not published.
    """
    machine = edge(edge_name, software)
    return Scenario(machine.table(), machine.largest_batch, users, num_steps, **more)

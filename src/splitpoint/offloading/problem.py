"""The offloading problem: parameters, instances, plans and what a plan is worth."""

import csv
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitpoint.checks import a_generator, finite_array, finite_number, instance_of, one_of, whole_number
from splitpoint.files import data_path, read_meta
from splitpoint.offloading.curves import RELEASED_ACCURACY, AccuracyCurve, LatencyModel, StepLatency

TRANSMISSIONS = ("released", "corrected")
BATCHINGS = ("static", "early_exit")
RELEASED_STEPS = 200
#: a step on a device that takes longer was probably given in milliseconds
SLOWEST_STEP_S = 100.0


@dataclass(frozen=True)
class SystemParameters:
    """Everything that is the same for all users. Defaults: authors' released code, PERDQN/.

    Args:
        num_steps: denoising steps of one image, ``N``.
        min_split: fewest steps that stay on the device, ``n_min``.
        max_batch: most users one edge batch admits, ``B_max``.
        bandwidth_hz: shared by all granted users.
        spectral_efficiency: bit/s per Hz.
        prompt_bits: upload of one prompt, in bits.
        intermediate_bits: hand-over of one intermediate result, in bits.
        window_s: length of the decision window, ``K``.
        transmission: ``released`` multiplies by the spectral efficiency as the released code does; ``corrected``
            divides by it.
        accuracy: personalized accuracy index against split point, in steps of a run of ``num_steps``; any curve with
            a method ``pai``. The released one counts steps of a run of 200: ``rescaled(num_steps)`` makes it another's.
        edge_step_cost_s, device_step_cost_s: other costs than time of a request's step on the edge and on the device,
            in seconds of utility, for instance energy times its price; no part of a latency.
        handover_cost_s: other costs than time of one hand-over, in seconds of utility.
    """

    num_steps: int = 200
    min_split: int = 80
    max_batch: int = 18
    bandwidth_hz: float = 100e6
    spectral_efficiency: float = 10.0
    prompt_bits: float = 216
    intermediate_bits: float = 4.4e6
    window_s: float = 1.0
    transmission: Literal["released", "corrected"] = "released"
    accuracy: AccuracyCurve = RELEASED_ACCURACY
    edge_step_cost_s: float = 0.0
    device_step_cost_s: float = 0.0
    handover_cost_s: float = 0.0

    def __post_init__(self):
        whole_number("num_steps", self.num_steps, 1)
        whole_number("min_split", self.min_split, 0, self.num_steps)
        whole_number("max_batch", self.max_batch, 0)
        finite_number("bandwidth_hz", self.bandwidth_hz, 0.0, open_end=True)
        finite_number("spectral_efficiency", self.spectral_efficiency, 0.0, open_end=True)
        finite_number("prompt_bits", self.prompt_bits, 0.0)
        finite_number("intermediate_bits", self.intermediate_bits, 0.0)
        finite_number("window_s", self.window_s, 0.0)
        one_of("transmission", self.transmission, TRANSMISSIONS)
        for name in ("edge_step_cost_s", "device_step_cost_s", "handover_cost_s"):
            finite_number(name, getattr(self, name))
        if not isinstance(self.accuracy, AccuracyCurve):
            raise ValueError(f"accuracy={self.accuracy!r} has no method pai(split_point); valid is such a curve")
        if self.accuracy == RELEASED_ACCURACY and self.num_steps != RELEASED_STEPS:
            warnings.warn(
                f"num_steps={self.num_steps} with the released accuracy curve, whose midpoint is in steps of a run of "
                f"{RELEASED_STEPS}; pass accuracy=RELEASED_ACCURACY.rescaled({self.num_steps}) if a share is meant",
                stacklevel=3,
            )

    @property
    def transfer_s_per_user(self) -> float:
        """Seconds of hand-over that each granted user adds to every granted user, ``tau``."""
        seconds = (self.prompt_bits + self.intermediate_bits) / self.bandwidth_hz
        if self.transmission == "released":
            return seconds * self.spectral_efficiency
        return seconds / self.spectral_efficiency


@dataclass(frozen=True, eq=False)
class Instance:
    """One decision window: an edge and the users who ask for an image.

    Args:
        edge: latency of one edge step, all edge GPUs together.
        device_step_s: one step on each user's own device, shape (U,), seconds.
        alpha: seconds worth one unit of accuracy, shape (U,).
        arrival_s: request moments in ``[0, window_s]``, shape (U,).
        parameters: SystemParameters.

    Raises:
        ValueError: for zero users, mismatched lengths, or numbers outside their range.
    """

    edge: StepLatency
    device_step_s: NDArray[np.float64]
    alpha: NDArray[np.float64]
    arrival_s: NDArray[np.float64]
    parameters: SystemParameters = field(default_factory=SystemParameters)

    def __post_init__(self):
        if not isinstance(self.edge, StepLatency):
            raise ValueError(
                f"edge={self.edge!r} is no step latency; valid is LatencyModel or another with its methods"
            )
        instance_of("parameters", self.parameters, SystemParameters)
        for name in ("device_step_s", "alpha", "arrival_s"):
            values = np.array(finite_array(name, getattr(self, name), minimum=0.0))  # a copy, so that it stays as it is
            values.flags.writeable = False
            if values.ndim != 1 or len(values) == 0:
                raise ValueError(f"{name} has shape {values.shape}; valid is (U,) with at least one user")
            object.__setattr__(self, name, values)
        if not len(self.device_step_s) == len(self.alpha) == len(self.arrival_s):
            raise ValueError(
                f"device_step_s, alpha and arrival_s have lengths {len(self.device_step_s)}, "
                f"{len(self.alpha)} and {len(self.arrival_s)}; they must be one a user"
            )
        if np.any(self.device_step_s == 0):
            raise ValueError("device_step_s holds 0.0; valid are positive seconds")
        if np.any(self.device_step_s > SLOWEST_STEP_S):
            raise ValueError(
                f"device_step_s holds {self.device_step_s.max():g}; valid are seconds in (0, {SLOWEST_STEP_S:g}] "
                "(milliseconds?)"
            )
        if np.any(self.arrival_s > self.parameters.window_s):
            raise ValueError(
                f"arrival_s holds {self.arrival_s.max()}; valid is [0, {self.parameters.window_s}], one window"
            )

    @property
    def num_users(self) -> int:
        """Number of users, ``U``."""
        return len(self.alpha)

    @property
    def largest_batch(self) -> int:
        """Most users that can be granted here."""
        return min(self.num_users, self.parameters.max_batch)


@dataclass(frozen=True, eq=False)
class Plan:
    """Who is granted, and where each image is split.

    Args:
        granted: shape (U,), bool.
        split_points: shape (U,), steps on the user's device; ``num_steps`` for a denied user.
        status: ``optimal`` if proven so, ``heuristic``, or ``time_limit`` if a solver was stopped.
        gap: relative gap to the solver's bound, NaN where it gives none.
    """

    granted: NDArray[np.bool_]
    split_points: NDArray[np.float64]
    status: str = "heuristic"
    gap: float = float("nan")

    def __post_init__(self):
        object.__setattr__(self, "granted", np.asarray(self.granted))
        object.__setattr__(self, "split_points", np.asarray(self.split_points))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a plan is worth.

    Args:
        accuracy: personalized accuracy index of each user, shape (U,).
        latency_s: from request to finished image, shape (U,), seconds.
        utility: ``sum(alpha * accuracy - latency_s)``, seconds.
    """

    accuracy: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    utility: float

    @property
    def reward(self) -> float:
        """The released code's reward, ``0.1 * utility / U`` (authors' released code, PERDQN/environment.py)."""
        return float(reward(self.utility, len(self.accuracy)))


def reward(utility_s: ArrayLike, num_users: ArrayLike) -> NDArray[np.float64]:
    """A tenth of the utility per user (authors' released code, PERDQN/environment.py), shapes that broadcast."""
    return 0.1 * np.asarray(utility_s, dtype=float) / np.asarray(num_users)


def check_plan(instance: Instance, plan: Plan) -> None:
    """Raise ValueError if a plan is not feasible: lengths, batch limit, range of the split points."""
    instance_of("instance", instance, Instance)
    instance_of("plan", plan, Plan)
    parameters, granted = instance.parameters, np.asarray(plan.granted)
    splits = finite_array("split_points", plan.split_points)
    if granted.dtype != bool or granted.shape != (instance.num_users,) or splits.shape != granted.shape:
        raise ValueError(
            f"granted ({granted.dtype}) and split_points have shapes {granted.shape} and {splits.shape}; "
            f"valid is bool and float of shape ({instance.num_users},)"
        )
    if granted.sum() > parameters.max_batch:
        raise ValueError(f"granted holds {granted.sum()} users; the edge admits [0, {parameters.max_batch}]")
    low, high = parameters.min_split, parameters.num_steps
    outside = granted & ((splits < low) | (splits > high))
    if outside.any():
        raise ValueError(f"split_points holds {splits[outside][0]:g} for a granted user; valid is [{low}, {high}]")
    if np.any(splits[~granted] != high):
        raise ValueError(f"split_points must be num_steps={high} for denied users")


def evaluate(instance: Instance, plan: Plan, batching: Literal["static", "early_exit"] = "static") -> Outcome:
    """What a plan is worth.

    Args:
        instance: the window.
        plan: a feasible plan.
        batching: ``static`` charges every edge step for the whole batch, as the released code does; ``early_exit``
            charges each step for those still in the batch, as a request leaves when its edge steps are done.

    Returns:
        Outcome, utilities and latencies in seconds.

    Raises:
        ValueError: for an infeasible plan or an unknown batching.
    """
    one_of("batching", batching, BATCHINGS)
    check_plan(instance, plan)
    parameters, granted, splits = instance.parameters, plan.granted, plan.split_points
    edge_steps, batch = parameters.num_steps - splits, granted.sum()
    if batching == "static":
        edge_s = edge_steps * instance.edge.step_latency_s(batch)
    else:
        edge_s = early_exit_s(instance.edge, edge_steps, granted)
    waiting = parameters.window_s - instance.arrival_s
    accuracy, latency, utility = user_outcomes(
        granted, splits, edge_s, batch, instance.device_step_s, instance.alpha, waiting, parameters
    )
    return Outcome(accuracy, latency, float(np.sum(utility)))


def early_exit_s(edge: StepLatency, edge_steps: NDArray[np.float64], granted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Seconds that each user's edge steps take when users leave as soon as theirs are done; zero for denied users.

    Args:
        edge: latency of one edge step against the batch.
        edge_steps: shape (U,).
        granted: shape (U,), bool.
    """
    steps = np.asarray(edge_steps, dtype=float)[granted]
    order = np.argsort(steps, kind="stable")
    present = np.arange(len(steps), 0, -1)  # members while the next to leave is still there
    seconds, leaving = np.zeros(len(edge_steps)), np.empty(len(steps))
    leaving[order] = np.cumsum(np.diff(steps[order], prepend=0.0) * edge.step_latency_s(present))
    seconds[granted] = leaving
    return seconds


def user_outcomes(granted, splits, edge_s, batch, device_step_s, alpha, waiting_s, parameters: SystemParameters):
    """Accuracy, latency and utility of each user of one window or of many: the physics, written once.

    Args:
        granted, splits: of a plan, shape (…, U).
        edge_s: seconds of a granted user's edge steps, shape (…, U).
        batch: number of granted users, a number or shape (…, 1).
        device_step_s, alpha, waiting_s: of the users, shape (…, U).
        parameters: SystemParameters.

    Returns:
        Index, seconds and seconds, shape (…, U) each.
    """
    on_edge = np.where(granted, edge_s + parameters.transfer_s_per_user * batch, 0.0)
    latency = on_edge + splits * device_step_s + waiting_s
    accuracy = parameters.accuracy.pai(splits)
    edge_cost = (parameters.num_steps - splits) * parameters.edge_step_cost_s + parameters.handover_cost_s
    other = np.where(granted, edge_cost, 0.0) + splits * parameters.device_step_cost_s
    return accuracy, latency, alpha * accuracy - latency - other


def share_of_gain(reached_s: ArrayLike, possible_s: ArrayLike, scale_s: ArrayLike) -> NDArray[np.float64]:
    """Share of the possible gain over all-local that is reached.

    Args:
        reached_s: gain of some plan, seconds, any shape.
        possible_s: gain of the best plan, seconds, any shape that broadcasts with it.
        scale_s: a utility of the window, seconds; gains below ``1e-12`` of it are rounding errors.

    Returns:
        Shares, of the broadcast shape; where nothing can be gained, 1 if nothing is lost and minus infinity if
        something is.
    """
    tiny = 1e-12 * (1 + np.abs(scale_s))
    reached, possible, tiny = np.broadcast_arrays(np.asarray(reached_s, float), np.asarray(possible_s, float), tiny)
    nothing = possible <= tiny
    share = np.divide(reached, possible, out=np.ones(reached.shape), where=~nothing)
    return np.where(nothing & (reached < -tiny), -np.inf, share)


@dataclass(frozen=True)
class Profiles:
    """The hardware that instances are drawn from.

    Args:
        edge_gpu: latency of one edge GPU.
        devices: latencies of the users' devices, fastest first.
        odds: how likely each device is, adding up to one; left out, slow ones are likelier, weights rising linearly
            1 to 2.
    """

    edge_gpu: StepLatency
    devices: tuple[StepLatency, ...]
    odds: tuple[float, ...] | None = None

    @property
    def device_steps_s(self) -> NDArray[np.float64]:
        """One step at batch 1 on each device, shape (D,), seconds."""
        return np.array([device.step_latency_s(1) for device in self.devices])

    @property
    def weights(self) -> NDArray[np.float64]:
        """Probability of each device, shape (D,)."""
        if self.odds is not None:
            return np.array(self.odds)
        weights = np.linspace(1, 2, len(self.devices))
        return weights / weights.sum()


@cache
def published_latency() -> tuple[LatencyModel, ...]:
    """The 11 fitted lines of the authors' released code (PERDQN/computing_power_profile.npy), fastest first.

    Raises:
        ValueError: if the file or its sidecar is missing or damaged.
    """
    path = data_path("latency_profiles", "published.csv")
    read_meta(path)
    with path.open() as file:
        rows = [(float(row["slope_ms_per_request"]), float(row["intercept_ms"])) for row in csv.DictReader(file)]
    return tuple(LatencyModel(slope / 1000, intercept / 1000) for slope, intercept in rows)


def published_profiles() -> Profiles:
    """Edge: the fastest published line; devices: lines 3 to 10 (authors' released code, PERDQN/per_DQN_main.py)."""
    lines = published_latency()
    return Profiles(edge_gpu=lines[0], devices=lines[3:])


def sample_instance(
    num_users: int,
    num_edge_gpus: int,
    rng: np.random.Generator,
    parameters: SystemParameters = SystemParameters(),
    profiles: Profiles | None = None,
) -> Instance:
    """Draw one window by the released sampling rules.

    Args:
        num_users: ``U``, at least 1.
        num_edge_gpus: ``C``, at least 1; the edge's latency is one GPU's divided by it.
        rng: NumPy generator.
        parameters: SystemParameters.
        profiles: hardware; the published lines if left out.

    Returns:
        Instance with devices sorted by speed and request moments sorted, as in the released code.

    Raises:
        ValueError: if a number is below 1 or no whole number, or ``rng`` is no generator.

    Source: authors' released code, PERDQN/per_DQN_main.py and PERDQN/utils.py.
    """
    a_generator("rng", rng)
    return _draw(num_users, num_edge_gpus, rng, parameters, profiles or published_profiles())


def released_instance(
    num_users: int, num_edge_gpus: int, seed: int, parameters: SystemParameters = SystemParameters()
) -> Instance:
    """The instance that the released code draws for a seed: same rules, same order, NumPy's legacy generator.

    Args:
        num_users, num_edge_gpus, parameters: see ``sample_instance``.
        seed: of the legacy generator.

    Raises:
        ValueError: if a number is below 1 or no whole number.
    """
    whole_number("seed", seed, 0, 2**32 - 1)
    return _draw(num_users, num_edge_gpus, np.random.RandomState(seed), parameters, published_profiles())


def _draw(num_users, num_edge_gpus, random, parameters, profiles) -> Instance:
    whole_number("num_users", num_users, 1)
    whole_number("num_edge_gpus", num_edge_gpus, 1)
    instance_of("parameters", parameters, SystemParameters)
    present = np.ones((1, num_users), dtype=bool)
    gpus = np.array([num_edge_gpus])
    device_step_s, alpha, arrival_s = draw_users(random, profiles, gpus, present, parameters.window_s)
    edge = profiles.edge_gpu.shared_by(num_edge_gpus)
    return Instance(edge, device_step_s[0], alpha[0], arrival_s[0], parameters)


def draw_users(
    random: np.random.Generator | np.random.RandomState,
    profiles: Profiles,
    num_edge_gpus: NDArray[np.int64],
    present: NDArray[np.bool_],
    window_s: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Users of many windows by the released sampling rules: devices first, then preferences, then request moments.

    Args:
        random: NumPy's generator, or the legacy one that the released code seeds.
        profiles: hardware.
        num_edge_gpus: of each window, shape (n,).
        present: which places are users, shape (n, U), the first ones of each row.
        window_s: length of a window.

    Returns:
        Devices' steps (sorted; 1 in the padding), preferences (0 there) and request moments (sorted; infinite there),
        shape (n, U) each, seconds.

    Source: authors' released code, PERDQN/per_DQN_main.py and PERDQN/utils.py.
    """
    devices = len(profiles.devices)
    index = random.choice(devices, size=present.shape, p=profiles.weights)
    index = np.sort(np.where(present, index, devices), axis=1)
    device_step_s = np.append(profiles.device_steps_s, 1.0)[index]  # (n, U)
    alpha = np.zeros(present.shape)
    for count in np.unique(num_edge_gpus):
        rows = num_edge_gpus == count
        edge = profiles.edge_gpu.shared_by(int(count))
        alpha[rows] = random.uniform(*alpha_range(device_step_s[rows], edge))
    arrival_s = np.where(present, random.uniform(0, window_s, present.shape), np.inf)
    return device_step_s, np.where(present, alpha, 0.0), np.sort(arrival_s, axis=1)


def alpha_range(device_step_s: ArrayLike, edge: StepLatency) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds that preferences are drawn between, shape (U,) each (authors' released code, PERDQN/utils.py)."""
    device_step_s = np.asarray(device_step_s, dtype=float)
    low = np.maximum((device_step_s - edge.step_latency_s(20)) / 0.01, 0)
    high = 0.05 * np.maximum((device_step_s - edge.step_latency_s(1)) / 0.0002, 0)
    return low, high

"""Many decision windows at once, as padded arrays: sampling, gains, outcomes, the exact optimum of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from splitpoint.checks import a_generator, finite_array, instance_of, whole_number
from splitpoint.offloading.curves import LatencyModel, StepLatency, TableLatency
from splitpoint.offloading.problem import (
    Instance,
    SystemParameters,
    draw_users,
    published_latency,
    published_profiles,
    reward,
    share_of_gain,
    user_outcomes,
)
from splitpoint.offloading.split import gains_at, optimal_split, step_saving_s, top_sums, top_users


@dataclass(frozen=True, eq=False)
class Windows:
    """``n`` windows of up to ``U`` users each; rows of users that are not there are padding.

    Args:
        slope_s, intercept_s: latency of one edge step, shape (n,), seconds per request and seconds.
        device_step_s: one step on each user's device, shape (n, U), seconds; 1 in the padding.
        alpha: seconds worth one unit of accuracy, shape (n, U); 0 in the padding.
        waiting_s: from request to the end of the window, shape (n, U), seconds; 0 in the padding.
        num_users: shape (n,).
        parameters: SystemParameters, the same for all.
        gains: see below; made from the rest if left out.
        edge_step_s: seconds of one edge step in a batch of 0 … U, shape (n, U + 1), where the edge is no line;
            ``slope_s`` and ``intercept_s`` are then the line through batch 1 and the largest, which an agent sees.

    ``gains[w, B, i]`` is what granting user i in a batch of B is worth, with its own optimal split point (seconds).
    """

    slope_s: NDArray[np.float64]
    intercept_s: NDArray[np.float64]
    device_step_s: NDArray[np.float64]
    alpha: NDArray[np.float64]
    waiting_s: NDArray[np.float64]
    num_users: NDArray[np.int64]
    parameters: SystemParameters = field(default_factory=SystemParameters)
    gains: NDArray[np.float64] = None  # type: ignore[assignment]  # made from the rest if left out, as the next
    edge_step_s: NDArray[np.float64] = None  # type: ignore[assignment]

    def __post_init__(self):
        if self.edge_step_s is None:
            batch = np.arange(max(self.alpha.shape[1], 2) + 1)
            lines = self.slope_s[:, None] * batch + self.intercept_s[:, None]
            object.__setattr__(self, "edge_step_s", lines)
        if self.gains is None:
            object.__setattr__(self, "gains", self._gains())

    def __len__(self) -> int:
        return len(self.num_users)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which rows are users, shape (n, U)."""
        return np.arange(self.alpha.shape[1]) < self.num_users[:, None]

    @property
    def largest_batch(self) -> NDArray[np.int64]:
        """Most users that can be granted, shape (n,)."""
        return np.minimum(self.num_users, self.parameters.max_batch)

    def __getitem__(self, rows) -> "Windows":
        return Windows(
            self.slope_s[rows],
            self.intercept_s[rows],
            self.device_step_s[rows],
            self.alpha[rows],
            self.waiting_s[rows],
            self.num_users[rows],
            self.parameters,
            self.gains[rows],
            self.edge_step_s[rows],
        )

    def instance(self, row: int) -> Instance:
        """One window as an Instance."""
        users, parameters = slice(self.num_users[row]), self.parameters
        edge: StepLatency = LatencyModel(float(self.slope_s[row]), float(self.intercept_s[row]))
        table = self.edge_step_s[row]
        if not np.array_equal(table, edge.step_latency_s(np.arange(len(table)))):
            edge = TableLatency(tuple(range(1, len(table))), tuple(table[1:].tolist()))
        return Instance(
            edge,
            self.device_step_s[row, users],
            self.alpha[row, users],
            parameters.window_s - self.waiting_s[row, users],
            parameters,
        )

    def step_s(self, batch: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds of one edge step for given batch sizes, shape (n,) -> (n,)."""
        return np.take_along_axis(self.edge_step_s, np.asarray(batch)[:, None], axis=1)[:, 0]

    def splits(self, batch: NDArray[np.int64]) -> NDArray[np.float64]:
        """Optimal split points for given batch sizes, shape (n,) -> (n, U)."""
        saving = step_saving_s(self.device_step_s, self.step_s(batch)[:, None], self.parameters)
        return optimal_split(self.alpha, saving, self.parameters)

    @property
    def local_s(self) -> NDArray[np.float64]:
        """Utility of serving nobody, shape (n,), seconds."""
        all_steps = float(self.parameters.num_steps)
        *_, utility = user_outcomes(
            False, all_steps, 0.0, 0, self.device_step_s, self.alpha, self.waiting_s, self.parameters
        )
        return np.sum(utility, axis=1, where=self.present)

    def outcomes(self, granted: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
        """What granting these users is worth, split points being optimal.

        Args:
            granted: shape (n, U).

        Returns:
            ``utility_s, reward, accuracy, latency_s, share_granted``, shape (n,) each; means are over users.
        """
        parameters, present = self.parameters, self.present
        granted = self._chosen(granted)
        granted = granted & present
        batch = granted.sum(axis=1)
        split = np.where(granted, self.splits(batch), float(parameters.num_steps))
        edge_s = (parameters.num_steps - split) * self.step_s(batch)[:, None]
        accuracy, latency, utility = user_outcomes(
            granted, split, edge_s, batch[:, None], self.device_step_s, self.alpha, self.waiting_s, parameters
        )
        utility = np.sum(utility, axis=1, where=present)
        return {
            "utility_s": utility,
            "reward": reward(utility, self.num_users),
            "accuracy": np.sum(accuracy, axis=1, where=present) / self.num_users,
            "latency_s": np.sum(latency, axis=1, where=present) / self.num_users,
            "share_granted": batch / self.num_users,
        }

    def gain(self, granted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Utility above all-local of granting these users, shape (n,), seconds."""
        granted = self._chosen(granted) & self.present
        return np.sum(self.gains[np.arange(len(self)), granted.sum(axis=1)], axis=1, where=granted)

    def exact(self) -> NDArray[np.bool_]:
        """The users of each window's exact optimum, shape (n, U): the best set of every size, the best size."""
        gains, sizes = np.where(self.present[:, None], self.gains, -np.inf), np.arange(self.gains.shape[1])
        totals = np.where(sizes <= self.largest_batch[:, None], top_sums(gains, sizes), -np.inf)
        best = np.argmax(totals, axis=1)
        return top_users(gains[np.arange(len(self)), best], best)

    def optimality(self, granted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Share of the exact optimum's gain over all-local that granting these users reaches, shape (n,).

        Where the optimum itself gains nothing, 1 if nothing is lost and minus infinity if something is.
        """
        return share_of_gain(self.gain(granted), self.gain(self.exact()), self.local_s)

    def _chosen(self, granted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whom to grant; refuses what is not one true or false for each user of each window."""
        chosen = np.asarray(granted)
        if chosen.dtype != bool or chosen.shape != self.alpha.shape:
            raise ValueError(f"granted has shape {chosen.shape} of {chosen.dtype}; valid is {self.alpha.shape} of bool")
        return chosen

    def _gains(self) -> NDArray[np.float64]:
        largest = min(self.parameters.max_batch, self.alpha.shape[1])
        if largest == 0:
            return np.zeros((len(self), 1, self.alpha.shape[1]))
        batch = np.arange(1, largest + 1)
        edge_step_s = self.edge_step_s[:, batch, None]  # (n, B, 1)
        gains, _ = gains_at(
            self.alpha[:, None], self.device_step_s[:, None], edge_step_s, batch[:, None], self.parameters
        )
        return np.concatenate([np.zeros_like(gains[:, :1]), np.where(self.present[:, None], gains, 0.0)], axis=1)


def stack_windows(instances: Sequence[Instance], max_users: int | None = None) -> Windows:
    """Instances that share their SystemParameters, as padded arrays.

    Args:
        instances: at least one.
        max_users: width of the arrays; the most users of any instance if left out.

    Raises:
        ValueError: for no instances, different parameters, more users than ``max_users``, or NaN.
    """
    if not isinstance(instances, Sequence) or not all(isinstance(i, Instance) for i in instances):
        raise ValueError("instances must be a list of Instance")
    if len(instances) == 0:
        raise ValueError("instances is empty; at least one is needed")
    parameters = instances[0].parameters
    if any(instance.parameters != parameters for instance in instances):
        raise ValueError("instances have different SystemParameters; stack equal ones")
    counts = np.array([instance.num_users for instance in instances])
    if max_users is not None:
        whole_number("max_users", max_users, 1)
    width = int(counts.max() if max_users is None else max_users)
    if counts.max() > width:
        raise ValueError(f"num_users={counts.max()} is outside [1, {width}] (max_users)")
    padded = {
        "device_step_s": np.ones((len(counts), width)),
        "alpha": np.zeros((len(counts), width)),
        "waiting_s": np.zeros((len(counts), width)),
    }
    for row, instance in enumerate(instances):
        users = slice(instance.num_users)
        padded["device_step_s"][row, users] = instance.device_step_s
        padded["alpha"][row, users] = instance.alpha
        padded["waiting_s"][row, users] = parameters.window_s - instance.arrival_s
    for name, values in padded.items():
        finite_array(name, values)
    lines = np.array([_line_of(instance.edge, width) for instance in instances])
    return Windows(
        lines[:, 0],
        lines[:, 1],
        num_users=counts,
        parameters=parameters,
        edge_step_s=np.array([instance.edge.step_latency_s(np.arange(max(width, 2) + 1)) for instance in instances]),
        **padded,
    )


def _line_of(edge: StepLatency, width: int) -> tuple[float, float]:
    """Slope and intercept of a line; of another curve those of the line through batch 1 and the largest."""
    if isinstance(edge, LatencyModel):
        return edge.slope_s, edge.intercept_s
    alone, full = edge.step_latency_s(np.array([1, max(width, 2)]))
    slope = float(full - alone) / (max(width, 2) - 1)
    return slope, float(alone) - slope


@dataclass(frozen=True)
class Scenario:
    """What windows are drawn: the released sampling rules, for ranges of users and edge GPUs.

    Args:
        num_users: fewest and most users, both included.
        num_edge_gpus: fewest and most GPUs of the edge, both included; different ends are a dynamic edge.
        devices: which of the published profiles' device lines users have, slowest last; all if left out.
        parameters: SystemParameters.
    """

    num_users: tuple[int, int] = (1, 20)
    num_edge_gpus: tuple[int, int] = (4, 16)
    devices: tuple[int, ...] | None = None
    parameters: SystemParameters = field(default_factory=SystemParameters)

    def __post_init__(self):
        for name in ("num_users", "num_edge_gpus"):
            ends = getattr(self, name)
            if not isinstance(ends, (tuple, list)) or len(ends) != 2:
                raise ValueError(f"{name}={ends!r} must be two whole numbers, the fewest and the most")
            low, high = ends
            whole_number(f"{name}[0]", low, 1)
            whole_number(f"{name}[1]", high, low)
            object.__setattr__(self, name, (int(low), int(high)))
        instance_of("parameters", self.parameters, SystemParameters)
        known = len(published_profiles().devices)
        if self.devices is not None:
            if not self.devices:
                raise ValueError(f"devices is empty; valid are indices in [0, {known - 1}]")
            for index in self.devices:
                whole_number("devices", index, 0, known - 1)
            object.__setattr__(self, "devices", tuple(int(index) for index in self.devices))

    def width(self, max_users: int | None = None) -> int:
        """Width of arrays for these windows: ``max_users``, which may not be fewer than the scenario's, or those."""
        if max_users is None:
            return self.num_users[1]
        whole_number("max_users", max_users, self.num_users[1])
        return int(max_users)

    def sample(self, n: int, rng: np.random.Generator, max_users: int | None = None) -> Windows:
        """Draw ``n`` windows.

        Args:
            n: how many, at least 1.
            rng: NumPy generator.
            max_users: width of the arrays, see ``width``.

        Raises:
            ValueError: if ``n`` or ``max_users`` is outside its range.

        Source: authors' released code, PERDQN/per_DQN_main.py; as ``sample_instance``, for many windows at once.
        """
        whole_number("n", n, 1)
        a_generator("rng", rng)
        width = self.width(max_users)
        profiles = published_profiles()
        if self.devices is not None:
            chosen = sorted(self.devices)
            weights = profiles.weights[chosen] / profiles.weights[chosen].sum()
            profiles = replace(profiles, devices=tuple(profiles.devices[i] for i in chosen), odds=tuple(weights))
        num_users = rng.integers(self.num_users[0], self.num_users[1] + 1, size=n)
        gpus = rng.integers(self.num_edge_gpus[0], self.num_edge_gpus[1] + 1, size=n)
        present = np.arange(width) < num_users[:, None]
        device_step_s, alpha, arrival_s = draw_users(rng, profiles, gpus, present, self.parameters.window_s)
        waiting_s = np.where(present, self.parameters.window_s - arrival_s, 0.0)
        edge = published_latency()[0]
        return Windows(
            edge.slope_s / gpus,
            edge.intercept_s / gpus,
            device_step_s,
            alpha,
            waiting_s,
            num_users,
            self.parameters,
        )

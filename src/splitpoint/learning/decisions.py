"""The decision process: one user at a time is granted or denied; split points follow when the batch is known.

A window is an episode. All its users are known from the start (as in the authors' released code, whose state shows
them all); they are decided one after another, and an episode ends when everyone is decided or the batch is full. Then
the convex inner problem gives every granted user its split point. Arrays only: an agent decides with it, and the
environments that it is trained in step it.
"""

import numpy as np
from numpy.typing import NDArray

from splitpoint.checks import one_of, whole_number
from splitpoint.offloading import Plan, optimal_split
from splitpoint.offloading.problem import reward as reward_of
from splitpoint.offloading.solvers import plan_for
from splitpoint.offloading.split import step_saving_s
from splitpoint.offloading.windows import Windows

FEATURES = ("released", "current", "gains", "cut")
REWARDS = ("released", "difference", "share")
ORDERS = ("given", "gain")
PADDING, UNDECIDED, GRANTED, DENIED = range(4)
_FRACTIONS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


def num_features(features: str, max_users: int = 20) -> int:
    """Length of an observation; only the released features grow with ``max_users``."""
    one_of("features", features, FEATURES)
    whole_number("max_users", max_users, 1)
    return {
        "released": 7 * max_users + 6,
        "current": 10,
        "gains": 10 + 6 * len(_FRACTIONS),
        "cut": 12 + 6 * len(_FRACTIONS),
    }[features]


def feature_names(features: str, max_users: int = 20) -> tuple[str, ...]:
    """What each number of an observation is, in order."""
    one_of("features", features, FEATURES)
    whole_number("max_users", max_users, 1)
    if features == "released":
        rows = ("padding", "undecided", "granted", "denied", "0.01 alpha", "d_i", "waiting")
        return (
            *(f"user +{i}: {row}" for i in range(max_users) for row in rows),
            "room / 10",
            "undecided / 10",
            "granted / 10",
            "denied / 10",
            "100 k_e",
            "100 h_e",
        )
    names = (
        "granted / 20",
        "undecided / 20",
        "room / 20",
        "users / 20",
        "100 k_e",
        "100 h_e",
        "gain if granted now",
        "what the granted lose",
        "marginal gain now",
        "gain so far",
    )
    if features == "cut":
        names += ("marginal gain at the cut", "batch at the cut / 20")
    blocks = (
        "own gain",
        "gain of the granted",
        "places left above own rank / 5",
        "gain of the better",
        "all undecided gains",
        "undecided with a gain / 20",
    )
    sizes = () if features == "current" else tuple(f"{name} @{share:.0%}" for name in blocks for share in _FRACTIONS)
    return names + sizes


class Decisions:
    """``n`` windows in the middle of being decided: states, observations, rewards.

    Args:
        n: number of windows at a time.
        max_users: width of the arrays.
        parameters: SystemParameters.
        features: ``released``: per user status (one-hot), 0.01 alpha, d_i and waiting time, the user being decided
            first, and six global numbers, all padded to ``max_users``. ``current``: counts, the edge, and the gain of
            granting now, at the batch as it stands. ``gains``: also the gain of granting, the granted users' sum, the
            user's rank among the undecided and what the undecided could gain, at six batch sizes between the
            smallest and the largest that can still come. ``cut``: also the gain of granting if just those undecided
            users join who would gain more; it all but gives the answer away and is there to show that.
        reward: ``released``: alpha * A at a user's own step (at the batch so far), the rest at the last step.
            ``difference``: what each decision changes in the reward of granting those granted so far. Both sum to
            ``0.1 * utility / U``. ``share``: the difference without the all-local constant, in units of the window's
            own scale.
        order: ``given``: as the window lists its users (by device speed when sampled, as released); ``gain``:
            descending gain at half the largest batch.
    """

    def __init__(self, n: int, max_users: int, parameters, features: str, reward: str, order: str):
        one_of("features", features, FEATURES)
        one_of("reward", reward, REWARDS)
        one_of("order", order, ORDERS)
        whole_number("max_users", max_users, 1)
        self.max_users, self.parameters = max_users, parameters
        self.features, self.reward, self.order = features, reward, order
        largest = min(parameters.max_batch, max_users)
        self.rows = np.arange(n)
        self.arrays = {
            "slope_s": np.zeros(n),
            "intercept_s": np.zeros(n),
            "num_users": np.zeros(n, np.int64),
            "device_step_s": np.ones((n, max_users)),
            "alpha": np.zeros((n, max_users)),
            "waiting_s": np.zeros((n, max_users)),
            "gains": np.zeros((n, largest + 1, max_users)),
            "edge_step_s": np.zeros((n, max(max_users, 2) + 1)),
            "sequence": np.zeros((n, max_users), np.int64),
            "status": np.zeros((n, max_users), np.int8),
            "sums": np.zeros((n, largest + 1)),
            "turn": np.zeros(n, np.int64),
            "batch": np.zeros(n, np.int64),
            "scale": np.ones(n),
            "local_s": np.zeros(n),
            "paid": np.zeros(n),
            "total": np.zeros(n),
        }

    def __getattr__(self, name: str) -> NDArray:
        try:
            return self.__dict__["arrays"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def width(self) -> int:
        """Length of an observation."""
        return num_features(self.features, self.max_users)

    @property
    def done(self) -> NDArray[np.bool_]:
        """Which windows are decided, shape (n,)."""
        return (self.turn >= self.num_users) | (self.batch >= np.minimum(self.num_users, self.parameters.max_batch))

    @property
    def granted(self) -> NDArray[np.bool_]:
        """Users granted so far, shape (n, U)."""
        return self.status == GRANTED

    def load(self, rows: NDArray, windows: Windows) -> None:
        """Begin new windows in the given rows."""
        a = self.arrays
        for name in (
            "slope_s",
            "intercept_s",
            "num_users",
            "device_step_s",
            "alpha",
            "waiting_s",
            "gains",
            "edge_step_s",
        ):
            a[name][rows] = getattr(windows, name)
        present = windows.present
        a["status"][rows] = np.where(present, UNDECIDED, PADDING)
        for name in ("sums", "turn", "batch", "paid", "total"):
            a[name][rows] = 0
        alone = windows.gains[:, min(1, windows.gains.shape[1] - 1)]
        a["scale"][rows] = np.maximum(np.maximum(np.maximum(alone, 0).sum(1), 0.05 * np.abs(alone).sum(1)), 1e-9)
        a["local_s"][rows] = windows.local_s
        if self.order == "gain":
            half = windows.gains[np.arange(len(windows)), (windows.largest_batch + 1) // 2]
            a["sequence"][rows] = np.argsort(np.where(present, -half, np.inf), axis=1, kind="stable")
        else:
            a["sequence"][rows] = np.arange(self.max_users)

    def step(self, actions: NDArray) -> NDArray[np.float64]:
        """Deny (0) or grant (1) the user whose turn it is; windows that are decided stay so.

        Args:
            actions: shape (n,).

        Returns:
            Rewards, shape (n,); see Decisions.
        """
        a, rows, running = self.arrays, self.rows, ~self.done
        user = a["sequence"][rows, np.minimum(a["turn"], self.max_users - 1)]
        grant = np.asarray(actions).astype(bool) & running
        before = a["sums"][rows, a["batch"]]
        a["status"][rows, user] = np.where(running, np.where(grant, GRANTED, DENIED), a["status"][rows, user])
        a["sums"] += np.where(grant[:, None], a["gains"][rows, :, user], 0.0)
        a["batch"] += grant
        first = a["turn"] == 0
        a["turn"] += running
        change = a["sums"][rows, a["batch"]] - before
        a["total"] += change
        if self.reward == "share":
            return change / a["scale"]
        if self.reward == "difference":
            return reward_of(change + np.where(first & running, a["local_s"], 0.0), a["num_users"])
        return self._released_reward(user, grant)

    def _released_reward(self, user, grant):
        a, rows, parameters = self.arrays, self.rows, self.parameters
        saving = step_saving_s(a["device_step_s"][rows, user], a["edge_step_s"][rows, a["batch"]], parameters)
        split = np.where(grant, optimal_split(a["alpha"][rows, user], saving, parameters), parameters.num_steps)
        own = a["alpha"][rows, user] * parameters.accuracy.pai(split)
        own = np.where(self.done, a["local_s"] + a["total"] - a["paid"], own)  # nothing more once all is paid
        a["paid"] += own
        return reward_of(own, a["num_users"])

    def observe(self) -> NDArray[np.float32]:
        """Observations, shape (n, width); zeros for windows that are decided."""
        observation = self._released() if self.features == "released" else self._gains()
        observation[self.done] = 0
        return np.clip(observation, -10, 10).astype(np.float32)

    def _released(self):
        a = self.arrays
        turn = np.minimum(a["turn"], self.max_users - 1)
        seat = (np.arange(self.max_users) + turn[:, None]) % self.max_users
        user = np.take_along_axis(a["sequence"], seat, axis=1)
        status = np.take_along_axis(a["status"], user, axis=1)
        one_hot = status[:, :, None] == np.arange(4)
        values = [
            np.take_along_axis(a[name], user, axis=1) * (status != PADDING)
            for name in ("alpha", "device_step_s", "waiting_s")
        ]
        decided = a["turn"] - a["batch"]
        shared = [
            0.1 * (self.parameters.max_batch - a["batch"]),
            0.1 * (a["num_users"] - a["turn"]),
            0.1 * a["batch"],
            0.1 * decided,
            100 * a["slope_s"],
            100 * a["intercept_s"],
        ]
        users = np.concatenate([one_hot, (0.01 * values[0])[:, :, None], np.stack(values[1:], axis=2)], axis=2)
        return np.concatenate([users.reshape(len(turn), -1), np.stack(shared, axis=1)], axis=1)

    def _gains(self):
        a, rows = self.arrays, self.rows
        highest = a["gains"].shape[1] - 1
        user = a["sequence"][rows, np.minimum(a["turn"], self.max_users - 1)]
        batch, left = a["batch"], a["num_users"] - a["turn"]
        room = np.minimum(a["num_users"], self.parameters.max_batch) - batch
        next_batch = np.minimum(batch + 1, highest)
        scale, mean = a["scale"], a["scale"] / a["num_users"]
        now = a["gains"][rows, next_batch, user]
        slowed = a["sums"][rows, next_batch] - a["sums"][rows, batch]
        columns = [
            batch / 20,
            left / 20,
            room / 20,
            a["num_users"] / 20,
            100 * a["slope_s"],
            100 * a["intercept_s"],
            now / mean,
            slowed / mean,
            (now + slowed) / mean,
            a["sums"][rows, batch] / scale,
        ]
        if self.features == "current":
            return np.stack(columns, axis=1)
        span = np.maximum(np.minimum(left, room) - 1, 0)
        sizes = np.minimum(next_batch[:, None] + np.rint(_FRACTIONS * span[:, None]).astype(np.int64), highest)
        gains = a["gains"][rows[:, None], sizes]
        own = np.take_along_axis(gains, user[:, None, None], axis=2)
        undecided = (a["status"] == UNDECIDED)[:, None]
        better = (gains > own) & undecided
        count = better.sum(axis=2)
        positive = np.maximum(gains, 0) * undecided
        blocks = [
            own[:, :, 0] / mean[:, None],
            np.take_along_axis(a["sums"], sizes, axis=1) / scale[:, None],
            (sizes - batch[:, None] - count - 0.5) / 5,
            (gains * better).sum(axis=2) / scale[:, None],
            positive.sum(axis=2) / scale[:, None],
            (positive > 0).sum(axis=2) / 20,
        ]
        if self.features == "cut":
            columns += self._cut(user, mean)
        return np.concatenate([np.stack(columns, axis=1), *blocks], axis=1)

    def _cut(self, user, mean):
        a, rows = self.arrays, self.rows
        highest = np.minimum(np.minimum(a["num_users"], self.parameters.max_batch), a["gains"].shape[1] - 1)
        reference = a["gains"][rows, np.minimum(a["batch"] + 1, highest)]
        better = (reference > reference[rows, user][:, None]) & (a["status"] == UNDECIDED)
        with_user = np.minimum(a["batch"] + better.sum(axis=1) + 1, highest)
        fits = a["batch"] + better.sum(axis=1) < highest
        joined = [
            np.sum(a["gains"][rows, size], axis=1, where=better) + a["sums"][rows, size]
            for size in (with_user, np.maximum(with_user - 1, 0))
        ]
        marginal = a["gains"][rows, with_user, user] + joined[0] - joined[1]
        return [np.where(fits, marginal, -mean) / mean, with_user / 20]


def plan_of(instance, granted: NDArray[np.bool_], whole_steps: bool = False) -> Plan:
    """The plan that grants the first ``instance.num_users`` of these, split points optimal."""
    return plan_for(instance, granted[: instance.num_users], whole_steps)

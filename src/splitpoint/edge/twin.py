"""A twin of the edge that is small enough to be solved: the exact online optimum, and what any rule reaches of it.

A request has 0 … M coarse steps, the batch few members, the machine a few levels of compute that move in seconds. Time
goes from step to step; who came during a step is decided at its end, one by one. A state is (how many members have
1 … M steps left, level of compute, number still to be decided): a semi-Markov decision process, solved by policy
iteration.
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, gmres
from scipy.stats import poisson

from splitpoint.checks import a_row, finite_array, finite_number, instance_of, one_of, whole_number
from splitpoint.edge.arrivals import RELEASED_USERS, Users
from splitpoint.edge.request import grant_value_s
from splitpoint.offloading import LatencyModel, SystemParameters, published_latency

#: rules by name, and how many numbers each has
_NUMBERS_OF = {"first_come": 0, "selfish": 0, "myopic": 0, "price": 1, "state_price": 2}


@dataclass(frozen=True, eq=False)
class Twin:
    """The small edge.

    Args:
        rate_hz: requests a second.
        levels: how much faster than one GPU each level of compute is.
        mean_stay_s: how long a level lasts; it then goes to any other alike.
        gpu: step latency of one GPU.
        coarse: steps that one coarse step stands for.
        most_steps: coarse steps that the edge may run of one request, M.
        max_batch: most members.
        num_types: kinds of users, drawn from the crowd and equally likely.
        most_waiting: requests that may come during one step; more are counted as so many.
        users: the crowd.
        seed: of the kinds.

    Arrays are indexed ``[histogram, level]`` or ``[kind, histogram, level, waiting - 1]``.
    """

    rate_hz: float = 1.0
    levels: tuple[float, ...] = (2.0, 4.0, 8.0)
    mean_stay_s: float = 10.0
    gpu: LatencyModel = field(default_factory=lambda: published_latency()[0])
    coarse: int = 20
    most_steps: int = 6
    max_batch: int = 6
    num_types: int = 24
    most_waiting: int = 10
    users: Users = RELEASED_USERS
    seed: int = 0

    def __post_init__(self):
        finite_number("rate_hz", self.rate_hz, 0.0, open_end=True)
        finite_number("mean_stay_s", self.mean_stay_s, 0.0, open_end=True)
        for name in ("coarse", "most_steps", "max_batch", "num_types", "most_waiting"):
            whole_number(name, getattr(self, name), 1)
        a_row("levels", self.levels, 0.0, open_end=True)
        instance_of("gpu", self.gpu, LatencyModel)
        instance_of("users", self.users, Users)
        whole_number("seed", self.seed, 0)

    @property
    def parameters(self) -> SystemParameters:
        """Of an image whose first ``coarse * most_steps`` steps may run on the edge, 80 on the device at least."""
        return SystemParameters(num_steps=80 + self.coarse * self.most_steps, transmission="corrected")

    @cached_property
    def worth_s(self) -> NDArray[np.float64]:
        """``f(m)`` of each kind of user, shape (num_types, M + 1), seconds."""
        device, alpha = self.users.draw(np.random.default_rng(self.seed), self.num_types)
        steps = self.coarse * np.arange(self.most_steps + 1)
        transfer = self.parameters.transfer_s_per_user
        return grant_value_s(alpha[:, None], device[:, None], steps, transfer, self.parameters)

    @cached_property
    def left(self) -> NDArray[np.int64]:
        """Coarse steps left of each member, shape (histograms, max_batch), most first, 0 for none."""
        lists = combinations_with_replacement(range(self.most_steps, -1, -1), self.max_batch)
        return np.array(list(lists))

    @cached_property
    def _number(self) -> dict:
        return {tuple(row): number for number, row in enumerate(self.left)}

    @cached_property
    def batch(self) -> NDArray[np.int64]:
        """Members, shape (histograms,)."""
        return (self.left > 0).sum(axis=1)

    @cached_property
    def after_grant(self) -> NDArray[np.int64]:
        """Histogram once m steps were granted, shape (histograms, M + 1); -1 where there is no room."""
        out = np.full((len(self.left), self.most_steps + 1), -1)
        out[:, 0] = np.arange(len(self.left))
        for number, row in enumerate(self.left):
            if row[-1] == 0:
                for steps in range(1, self.most_steps + 1):
                    out[number, steps] = self._number[tuple(sorted([*row[:-1], steps], reverse=True))]
        return out

    @cached_property
    def after_step(self) -> NDArray[np.int64]:
        """Histogram after a step, shape (histograms,)."""
        return np.array([self._number[tuple(np.maximum(row - 1, 0))] for row in self.left])

    @cached_property
    def step_s(self) -> NDArray[np.float64]:
        """Seconds of a coarse step, shape (histograms, levels); of waiting for anything at all where nobody is."""
        seconds = self.coarse * self.gpu.step_latency_s(np.maximum(self.batch, 1))[:, None] / np.array(self.levels)
        anything = 1 / (self.rate_hz + (1 / self.mean_stay_s if len(self.levels) > 1 else 0.0))
        return np.where(self.batch[:, None] > 0, seconds, anything)

    @cached_property
    def _moves(self) -> tuple[NDArray, NDArray]:
        """Odds of the next level, (hist, levels, levels), and of so many arrivals, (hist, levels, W + 1)."""
        count = len(self.levels)
        leave = (np.ones((count, count)) - count * np.eye(count)) / max(count - 1, 1) / self.mean_stay_s
        leave = leave if count > 1 else np.zeros((1, 1))
        level = np.zeros((len(self.left), count, count))
        arrivals = np.zeros((len(self.left), count, self.most_waiting + 1))
        for size in range(self.max_batch + 1):
            here = self.batch == size
            for c in range(count):
                seconds = self.step_s[here][0, c]
                if size == 0:  # either somebody comes or the level changes
                    stays = self.rate_hz * seconds
                    level[here, c] = np.where(np.arange(count) == c, stays, (1 - stays) / max(count - 1, 1))
                    continue
                level[here, c] = linalg.expm(leave * seconds)[c]
                odds = poisson.pmf(np.arange(self.most_waiting + 1), self.rate_hz * seconds)
                odds[-1] = 1 - odds[:-1].sum()
                arrivals[here, c] = odds
        return level, arrivals

    def decide(self, value: NDArray[np.float64]) -> NDArray[np.int64]:
        """The best steps of each kind in each state, given what beginning a step is worth.

        Args:
            value: of beginning a step, shape (histograms, levels), seconds.

        Returns:
            Steps, shape (kinds, histograms, levels, W).
        """
        value = finite_array("value", value)
        if value.shape != self.step_s.shape:
            raise ValueError(f"value has shape {value.shape}; valid is {self.step_s.shape}")
        choice = np.zeros((self.num_types, *value.shape, self.most_waiting), dtype=np.int64)
        for waiting in range(self.most_waiting):
            after = np.where(
                self.after_grant[..., None] >= 0, value[self.after_grant], -np.inf
            )  # (hist, M + 1, levels)
            worth = self.worth_s[:, None, :, None] + after
            choice[..., waiting] = np.argmax(worth, axis=2)
            value = np.max(worth, axis=2).mean(axis=0)
        return choice

    def _layers(self, choice: NDArray[np.int64]) -> tuple[list[sparse.csr_array], list[NDArray]]:
        """Of each number waiting: where one decision leads (sparse), and what it is worth on average."""
        size, levels = len(self.left), len(self.levels)
        state = np.arange(size * levels).reshape(size, levels)
        matrices, gains = [], []
        for waiting in range(self.most_waiting):
            steps = choice[..., waiting]
            hist = self.after_grant[np.arange(size)[:, None], steps]
            if np.any(hist < 0):
                raise ValueError("choice grants where there is no room; valid is 0 there")
            to = hist * levels + np.arange(levels)
            rows = np.broadcast_to(state, to.shape)
            odds = np.full(to.size, 1 / self.num_types)
            matrices.append(sparse.csr_array((odds, (rows.ravel(), to.ravel())), shape=(state.size, state.size)))
            gains.append(self.worth_s[np.arange(self.num_types)[:, None, None], steps].mean(axis=0).ravel())
        return matrices, gains

    def evaluate(
        self, choice: NDArray[np.int64], start: NDArray[np.float64] | None = None
    ) -> tuple[float, NDArray[np.float64]]:
        """Seconds gained a second by a rule, exactly.

        Args:
            choice: steps of each kind in each state, shape (kinds, histograms, levels, W).
            start: values near the answer, to begin with.

        Returns:
            The gain, and the relative value of beginning a step in each state, shape (histograms, levels).

        Raises:
            ValueError: for a choice that is not possible, or if the equations are not solved.
        """
        valid = (self.num_types, *self.step_s.shape, self.most_waiting)
        finite_array("choice", choice, 0.0)
        steps = np.asarray(choice)
        if steps.shape != valid or steps.dtype.kind not in "iu" or steps.max() > self.most_steps:
            raise ValueError(f"choice has shape {steps.shape}; valid is {valid}, whole numbers to {self.most_steps}")
        if start is not None and finite_array("start", start).shape != self.step_s.shape:
            raise ValueError(f"start has shape {np.shape(start)}; valid is {self.step_s.shape}")
        matrices, gains = self._layers(steps)
        level, arrivals = self._moves
        shape = self.step_s.shape
        idle = (self.batch == 0)[:, None, None]

        def onwards(value, with_gains):
            """What follows a step, (hist, levels) -> the same."""
            layer, total = value.ravel(), np.zeros(shape)
            for waiting in range(self.most_waiting + 1):
                if waiting:
                    layer = matrices[waiting - 1] @ layer + (gains[waiting - 1] if with_gains else 0.0)
                to = layer.reshape(shape)[self.after_step]  # (hist, next level)
                share = arrivals[..., waiting]
                total += share * np.einsum("xcd,xd->xc", np.where(idle, 0.0, level), to)
                if waiting <= 1:  # nobody inside: either one arrives at this level, or the level changes
                    stay = np.eye(len(self.levels)) * level if waiting else level * (1 - np.eye(len(self.levels)))
                    total += np.einsum("xcd,xd->xc", np.where(idle, stay, 0.0), to)
            return total

        reward = -self.batch[:, None] * self.step_s + onwards(np.zeros(shape), True)
        size = reward.size

        def equations(unknown):
            gain, value = unknown[0], np.append(0.0, unknown[1:]).reshape(shape)
            return (value - onwards(value, False) + gain * self.step_s).ravel()

        first = None if start is None else np.append(0.0, (start - start.flat[0]).ravel()[1:])
        found, failed = gmres(
            LinearOperator((size, size), matvec=equations), reward.ravel(), x0=first, rtol=1e-11, restart=80, maxiter=40
        )
        if failed:
            raise ValueError("choice leads to equations that were not solved")
        return float(found[0]), np.append(0.0, found[1:]).reshape(shape)

    def optimum(self) -> tuple[float, NDArray[np.int64], NDArray[np.float64]]:
        """The exact online optimum by policy iteration: gain (seconds a second), choice, values."""
        value = -self.left.sum(axis=1)[:, None] * self.step_s
        choice, best = self.decide(value), -np.inf
        while True:
            gain, value = self.evaluate(choice, value)
            if gain <= best + 1e-9:
                return gain, choice, value
            best, choice = gain, self.decide(value)

    def choose(self, cost_s: ArrayLike) -> NDArray[np.int64]:
        """A rule by what m steps cost it.

        Args:
            cost_s: of m = 0 … M, an array that broadcasts to (kinds, histograms, M + 1, levels, W), seconds.

        Returns:
            Steps of each kind in each state, shape (kinds, histograms, levels, W).
        """
        shape = (self.num_types, len(self.left), self.most_steps + 1, len(self.levels), self.most_waiting)
        cost = finite_array("cost_s", cost_s)
        try:
            cost = np.broadcast_to(cost, shape)
        except ValueError as error:
            raise ValueError(f"cost_s has shape {cost.shape}; valid is what broadcasts to {shape}") from error
        net = self.worth_s[:, None, :, None, None] - cost
        net = np.where(self.after_grant[None, :, :, None, None] >= 0, net, -np.inf)
        return np.argmax(net, axis=2)

    def costs(self, choice: NDArray[np.int64], value: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a grant of m steps costs everybody, exactly, under a rule: ``V(x) - V(x + m)``.

        Args:
            choice: the rule, shape (kinds, histograms, levels, W).
            value: of beginning a step under it, from ``evaluate``, shape (histograms, levels).

        Returns:
            Seconds, shape (histograms, M + 1, levels, W); infinite where there is no room.
        """
        value = finite_array("value", value)
        if value.shape != self.step_s.shape:
            raise ValueError(f"value has shape {value.shape}; valid is {self.step_s.shape}")
        matrices, gains = self._layers(np.asarray(choice))
        cost = np.full((len(self.left), self.most_steps + 1, len(self.levels), self.most_waiting), np.inf)
        there = self.after_grant >= 0
        for waiting in range(self.most_waiting):
            after = value[self.after_grant]  # (histograms, M + 1, levels)
            cost[..., waiting] = np.where(there[..., None], value[:, None] - after, np.inf)
            value = (matrices[waiting] @ value.ravel() + gains[waiting]).reshape(value.shape)
        return cost

    def improve(self, value: NDArray[np.float64]) -> NDArray[np.int64]:
        """One policy improvement on a rule's values."""
        return self.decide(value)

    def rule(self, name: str, numbers: ArrayLike = ()) -> NDArray[np.int64]:
        """Rules by name: ``first_come``, ``selfish``, ``myopic``, ``price`` (one number), ``state_price`` (two).

        Raises:
            ValueError: for an unknown name.
        """
        one_of("name", name, _NUMBERS_OF)
        numbers = finite_array("numbers", numbers)
        if numbers.size != _NUMBERS_OF[name]:
            raise ValueError(f"numbers are {numbers.size}; {name} needs {_NUMBERS_OF[name]}")
        steps = np.arange(self.most_steps + 1)
        counts = (self.left[:, None, :] >= np.maximum(steps, 1)[:, None]).sum(axis=2)  # others that share step s
        k, h = self.coarse * self.gpu.slope_s, self.coarse * self.gpu.intercept_s
        speed = np.array(self.levels)
        own = np.cumsum(np.where(steps > 0, k * (counts + 1) + h, 0.0), axis=1)
        others = np.cumsum(np.where(steps > 0, k * counts, 0.0), axis=1)
        numbers = np.atleast_1d(numbers)
        marginal = (k * (2 * self.batch + 1) + h)[:, None, None] * steps[:, None] / speed
        costs = {
            "first_come": lambda: (k * (self.batch + 1) + h)[:, None, None] * steps[:, None] / speed,
            "selfish": lambda: own[..., None] / speed,
            "myopic": lambda: (own + others)[..., None] / speed,
            "price": lambda: numbers[0] * steps[:, None],
            "state_price": lambda: numbers[0] * steps[:, None] + numbers[1] * marginal,
        }
        return self.choose(costs[name]()[..., None])

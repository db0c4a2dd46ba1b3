"""What a grant costs everybody else, by playing on twice: coupled rollouts.

``c(x, m) = V(x) - V(x + m)``: from state x, once without and once with a member of m steps more, play the same policy
on the same arrivals and the same compute; the difference of what is gained from there on is an unbiased sample of what
the grant costs. Nobody has to know V. Two grounds to play on: the simulator at full size, and the twin, whose exact
costs judge the samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitpoint.checks import a_row, a_sequence, finite_number, instance_of, one_of, whole_number
from splitpoint.edge import (
    HOME,
    Arrivals,
    Decision,
    Edge,
    Observation,
    Path,
    Simulation,
    System,
    Twin,
    draw_paths,
    grant_value_s,
    load_curve,
    make_policy,
)
from splitpoint.edge.observation import FEATURES
from splitpoint.edge.policies import LearnedCurve, Policy, marginal_step_s

#: steps at which a cost curve is learned; straight between them
KNOTS = (20.0, 40.0, 60.0, 80.0, 100.0, 120.0)
#: whose cost is sampled
COSTS = ("everybody", "own", "price")


@dataclass(frozen=True, eq=False)
class Samples:
    """States that a policy met, and what a grant would have cost there.

    Args:
        x: features of the state, shape (n, F).
        base_s: what one step costs all as the batch is, shape (n,), seconds.
        unit_s: a full step as the compute is, shape (n,), seconds.
        cost_s: of a grant of so many steps, shape (n, K), seconds; noisy, right on average.
    """

    x: NDArray[np.float64]
    base_s: NDArray[np.float64]
    unit_s: NDArray[np.float64]
    cost_s: NDArray[np.float64]

    @staticmethod
    def together(parts: Sequence["Samples"]) -> "Samples":
        """All rows of several."""
        names = ("x", "base_s", "unit_s", "cost_s")
        return Samples(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __len__(self) -> int:
        return len(self.x)


class Forced:
    """A policy whose answer to one request of every run is given: this many steps on this edge.

    Args:
        policy: for everybody else.
        moment_s: of that request, shape (runs,).
        edge, steps: the answer, shape (runs,) each.
        features: names; what the request saw is kept in ``x`` (runs, F), ``base_s``, ``unit_s`` and ``room`` (runs,).
        imitated: a rule with ``prices``; what it would have charged a step is kept in ``price_s`` (runs,).
    """

    many = True

    def __init__(
        self,
        policy: Policy,
        moment_s: NDArray,
        edge: NDArray,
        steps: NDArray,
        features: Sequence[str],
        imitated: Any = None,
    ):
        self.policy, self.moment_s, self.edge, self.steps, self.features = policy, moment_s, edge, steps, features
        self.imitated = imitated
        self.x = np.full((len(moment_s), len(features)), np.nan)
        self.base_s, self.unit_s, self.room, self.price_s = (np.zeros(len(moment_s)) for _ in range(4))

    def reset(self, runs: int) -> None:
        """Before a run."""
        if hasattr(self.policy, "reset"):
            self.policy.reset(runs)

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        decision = self.policy(observation)
        edge, steps = np.array(decision.edge), np.array(decision.steps)
        run = observation.run
        here = np.flatnonzero(observation.time_s == self.moment_s[run])
        if len(here):
            run, at = run[here], (here, self.edge[run[here]])
            self.x[run] = observation.features(self.features)[at]
            self.base_s[run] = marginal_step_s(observation)[at]
            self.unit_s[run] = observation.full_step_s[at]
            self.room[run] = (observation.inside < observation.system.limits)[at]
            if self.imitated is not None:
                self.price_s[run] = self.imitated.prices(observation)[at]
            edge[here] = np.where(self.steps[run] > 0, self.edge[run], HOME)
            steps[here] = self.steps[run]
        return Decision(edge, steps)


@dataclass(frozen=True, eq=False)
class EdgeGround:
    """Edges at full size, and the arrivals that are expected there.

    Args:
        system: the edges.
        arrivals: their horizon holds warm-up, the request that is asked about, and what follows.
        base: policy that is improved first, or its name.
        warm_up_s: before a request may be asked about.
        after_s: that must follow; whoever was delayed by the grant has left by then.
        cost_of: whose time a grant costs: ``everybody``; ``own`` only, which is what a contextual bandit can learn from
            the reward of its own decision; or ``price``, no time at all but what ``fluid_resolving`` charges.
    """

    system: System
    arrivals: Arrivals
    base: Any = "state_price"
    warm_up_s: float = 8.0
    after_s: float = 16.0
    cost_of: str = "everybody"

    def __post_init__(self):
        instance_of("system", self.system, System)
        instance_of("arrivals", self.arrivals, Arrivals)
        one_of("cost_of", self.cost_of, COSTS)
        finite_number("warm_up_s", self.warm_up_s, 0.0)
        finite_number("after_s", self.after_s, 0.0, self.arrivals.horizon_s - self.warm_up_s, open_end=True)

    @cached_property
    def first(self) -> Any:
        """The policy that is improved first."""
        return (
            self.base
            if callable(self.base)
            else make_policy(self.base, self.system.edges, self.arrivals, self.system.parameters)
        )

    def sample(
        self, policy: Policy | None, features: Sequence[str], knots: Sequence[float], count: int, seed: int
    ) -> Samples:
        """Coupled rollouts from states that the policy meets; each path is played once without and once for each knot.

        Args:
            policy: that is played before and after; ``first`` if None.
            features: names for ``Observation.features``.
            knots: steps.
            count: paths.
            seed: of everything random.
        """
        whole_number("count", count, 1)
        whole_number("seed", seed, 0)
        a_row("knots", knots, 0.0, open_end=True)
        for name in a_sequence("features", features):
            one_of("features", name, FEATURES)
        rng = np.random.default_rng([seed, 1])
        paths = draw_paths(self.system.edges, self.arrivals, seed, count)
        number, paths = self._asked(paths, rng)
        imitated = self._imitated
        runs, options = len(paths), np.append(0.0, knots if imitated is None else [])
        edge = rng.integers(len(self.system.edges), size=runs)
        moment = np.array([path.arrival_s[i] for path, i in zip(paths, number)])
        forced = Forced(
            policy or self.first,
            np.tile(moment, len(options)),
            np.tile(edge, len(options)),
            np.repeat(options.astype(int), runs),
            features,
            imitated,
        )
        play = Simulation(self.system, paths * len(options))
        play.play(forced, close=False)
        kept = np.flatnonzero(forced.room[:runs])
        cost = self._costs(play.table(), paths, number, edge, options, forced.price_s[:runs, None] * knots)
        return Samples(forced.x[kept], forced.base_s[kept], forced.unit_s[kept], cost[kept])

    @cached_property
    def _imitated(self) -> Any:
        """Whose price is the cost; None where time is."""
        if self.cost_of != "price":
            return None
        return make_policy("fluid_resolving", self.system.edges, self.arrivals, self.system.parameters)

    def _costs(self, table, paths, number, edge, options, prices_s) -> NDArray[np.float64]:
        """What each grant cost, shape (runs, knots), seconds."""
        runs = len(paths)
        if self.cost_of == "price":
            return prices_s
        if self.cost_of == "own":
            asked = table[table.request.to_numpy() == np.array(number)[table.replication % runs]]
            inside = np.where(asked.edge >= 0, asked.left_s - asked.arrival_s, 0.0)
            return inside.reshape(len(options), runs).T[:, 1:]
        gain = np.bincount(table.replication, table.gain_s, minlength=runs * len(options)).reshape(len(options), runs)
        asked = [(path.alpha[i], path.device_step_s[i]) for path, i in zip(paths, number)]
        alpha, device = np.array(asked).T
        transfer = self.system.transfer_s[edge]
        own = grant_value_s(alpha, device, options[:, None], transfer, self.system.parameters)  # (options, runs)
        return (gain[0] - own[0] - (gain - own)).T[:, 1:]

    def _asked(self, paths: list[Path], rng: np.random.Generator) -> tuple[list[int], list[Path]]:
        """The first request after a random moment of each path; paths without one are left out."""
        number, kept = [], []
        for path in paths:
            moment = rng.uniform(self.warm_up_s, path.horizon_s - self.after_s)
            i = int(np.searchsorted(path.arrival_s, moment))
            if i < len(path):
                number.append(i)
                kept.append(path)
        return number, kept


@dataclass(frozen=True, eq=False)
class TwinGround:
    """The twin, played in continuous time; its exact values judge what is learned here.

    Args:
        twin: the small edge.
        base: rule that is improved first, by name, and its ``numbers``.
        warm_up_s, after_s: see ``EdgeGround``.
        spread_s: the request that is asked about comes this long after the warm-up at most.
        full: GPUs that count as all of the machine.
    """

    twin: Twin
    base: str = "myopic"
    numbers: tuple[float, ...] = ()
    warm_up_s: float = 10.0
    after_s: float = 30.0
    spread_s: float = 10.0
    full: float = 8.0

    def __post_init__(self):
        instance_of("twin", self.twin, Twin)
        finite_number("full", self.full, 1.0)
        for name in ("warm_up_s", "after_s", "spread_s"):
            finite_number(name, getattr(self, name), 0.0)

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """The rule that is improved first."""
        return self.twin.rule(self.base, self.numbers)

    @cached_property
    def system(self) -> System:
        """The twin's machine as the full-size room knows it, all compute free."""
        twin = self.twin
        fastest = twin.gpu.shared_by(self.full)
        edge = Edge(fastest, max_batch=twin.max_batch, transfer_s=twin.parameters.transfer_s_per_user)
        return System((edge,), twin.parameters)

    def observation(self, hist: NDArray, level: NDArray, waiting: NDArray) -> Observation:
        """States of the twin as a policy of the full-size room sees them.

        Args:
            hist, level, waiting: numbers of the histogram and the level, and who is still to be decided (with the one
                who asks), any shape.

        Returns:
            The observation, with one edge; ``waiting`` are those who come after, and the rates are the true one.
        """
        twin = self.twin
        left = twin.coarse * twin.left[hist]
        zero, one = np.zeros(hist.shape), (*hist.shape, 1)
        return Observation(
            time_s=zero,
            device_step_s=zero,
            alpha=zero,
            draw=zero,
            free=(np.array(twin.levels)[level] / self.full).reshape(one),
            batch=twin.batch[hist].reshape(one),
            waiting=(waiting - 1).reshape(one),
            work_left=left.sum(axis=-1).reshape(one),
            remaining=left.reshape((*hist.shape, 1, twin.max_batch)),
            rates_hz=np.broadcast_to(twin.rate_hz, (*hist.shape, 3)),
            run=zero.astype(np.int64),
            system=self.system,
        )

    def _base_s(self, observation: Observation) -> NDArray[np.float64]:
        """What one step costs all as the batch is, shape (…, 1); those who are still to be decided are not inside."""
        return self.system.marginal_s(observation.batch) / observation.free

    def choice(self, curve: LearnedCurve) -> NDArray[np.int64]:
        """What a learned curve does in every state of the twin, shape (kinds, histograms, levels, W)."""
        twin = self.twin
        state = np.meshgrid(
            np.arange(len(twin.left)), np.arange(len(twin.levels)), np.arange(1, twin.most_waiting + 1), indexing="ij"
        )
        observation = self.observation(*state)
        steps = twin.coarse * np.arange(1, twin.most_steps + 1)
        cost = curve.costs(observation, steps, self._base_s(observation))[..., 0, :]  # (hist, level, W, M)
        cost = np.concatenate([np.zeros((*cost.shape[:-1], 1)), cost], axis=-1)  # (hist, level, W, M + 1)
        return twin.choose(np.moveaxis(cost, -1, 1))

    def sample(self, policy: Any, features: Sequence[str], knots: Sequence[float], count: int, seed: int) -> Samples:
        """See ``EdgeGround.sample``; ``policy`` is a LearnedCurve, an array as of ``Twin.rule``, or None."""
        steps = a_row("knots", knots, 0.0, open_end=True) / self.twin.coarse
        if np.any(steps % 1) or steps.max() > self.twin.most_steps:
            raise ValueError(f"knots={tuple(knots)} are not whole coarse steps of {self.twin.coarse}")
        choice = self.first if policy is None else self.choice(policy) if hasattr(policy, "cost") else policy
        state, cost = self.costs(choice, steps.astype(int), count, seed)
        observation = self.observation(*state)
        seen = observation.features(features), self._base_s(observation), observation.full_step_s
        return Samples(*(values[:, 0] for values in seen), cost)

    def costs(
        self, choice: NDArray[np.int64], steps: Sequence[int], count: int, seed: int
    ) -> tuple[tuple[NDArray, NDArray, NDArray], NDArray[np.float64]]:
        """Coupled rollouts from states that a rule meets.

        Args:
            choice: the rule, shape (kinds, histograms, levels, W).
            steps: coarse steps that are tried, each.
            count: paths.
            seed: of everything random.

        Returns:
            The states (histogram, level, number waiting), shape (n,) each, and the cost of each grant, shape
            (n, len(steps)), seconds.
        """
        whole_number("count", count, 1)
        whole_number("seed", seed, 0)
        rng = np.random.default_rng([seed, 2])
        until = self.warm_up_s + self.spread_s + self.after_s
        arrival, kind, moved, level = self._paths(rng, count, until)
        moment = self.warm_up_s + self.spread_s * rng.random(count)
        number = (arrival < moment[:, None]).sum(axis=1)
        kept = np.take_along_axis(arrival, number[:, None], axis=1)[:, 0] < until - self.after_s
        arrival, kind, moved, level, number = (values[kept] for values in (arrival, kind, moved, level, number))
        options = np.append(0, steps)
        copies = [np.tile(values, (len(options), *[1] * (values.ndim - 1))) for values in (arrival, kind, moved, level)]
        forced = np.repeat(options, len(number))
        gain, state = self._play(choice, *copies, np.tile(number, len(options)), forced, until)
        gain = gain.reshape(len(options), -1)
        state = tuple(values[: len(number)] for values in state)
        room = (state[0] >= 0) & (self.twin.batch[state[0]] < self.twin.max_batch)
        return tuple(values[room] for values in state), (gain[0] - gain[1:]).T[room]

    def _paths(self, rng, count: int, until: float):
        """Moments and kinds of requests, moments and levels of compute; padded with infinity, shape (count, …)."""
        twin = self.twin
        most = int(twin.rate_hz * until + 6 * np.sqrt(twin.rate_hz * until) + 10)
        arrival = np.cumsum(rng.exponential(1 / twin.rate_hz, (count, most)), axis=1)
        arrival = np.append(arrival, np.full((count, 1), np.inf), axis=1)
        kind = rng.integers(twin.num_types, size=arrival.shape)
        levels = len(twin.levels)
        changes = int(until / twin.mean_stay_s + 6 * np.sqrt(until / twin.mean_stay_s) + 10)
        moved = np.cumsum(rng.exponential(twin.mean_stay_s, (count, changes)), axis=1)
        moved = np.append(np.zeros((count, 1)), moved, axis=1)
        jump = rng.integers(1, max(levels, 2), size=moved.shape)
        jump[:, 0] = rng.integers(levels, size=count)
        return arrival, kind, moved, np.cumsum(jump, axis=1) % levels

    def _play(self, choice, arrival, kind, moved, level, number, forced, until):
        """Gains up to a moment, without the worth of the forced grant, and the state that its request met."""
        twin, runs = self.twin, np.arange(len(arrival))
        hist, now, next_one = (np.zeros(len(runs), dtype=int) for _ in range(3))
        hist[:], now, gain = len(twin.left) - 1, now.astype(float), np.zeros(len(runs))
        met = np.full((3, len(runs)), -1)
        empty = len(twin.left) - 1
        while len(go := runs[now < until]):
            at = (moved[go] <= now[go, None]).sum(axis=1) - 1
            step = twin.step_s[hist[go], level[go, at]]
            idle = hist[go] == empty
            end = np.where(idle, arrival[go, next_one[go]], now[go] + step)
            gain[go] -= np.where(idle, 0.0, twin.batch[hist[go]] * step)
            hist[go] = twin.after_step[hist[go]]
            come = (arrival[go] <= end[:, None]).sum(axis=1) - next_one[go]
            here = level[go, (moved[go] <= end[:, None]).sum(axis=1) - 1]
            now[go] = end
            for place in range(min(int(come.max(initial=0)), twin.most_waiting)):
                asks = np.flatnonzero((come > place) & (end < until))
                run, which = go[asks], next_one[go[asks]] + place
                waiting = np.minimum(come[asks], twin.most_waiting) - place
                who = kind[run, which]
                steps = choice[who, hist[run], here[asks], waiting - 1]
                chosen = which == number[run]
                met[:, run[chosen]] = hist[run[chosen]], here[asks][chosen], waiting[chosen]
                room = twin.after_grant[hist[run], forced[run]] >= 0
                steps = np.where(chosen, np.where(room, forced[run], 0), steps)
                gain[run] += np.where(chosen, 0.0, twin.worth_s[who, steps])
                hist[run] = twin.after_grant[hist[run], steps]
            next_one[go] += come
        return gain, met


def load_policy(path: str | FilePath) -> LearnedCurve:
    """A cost curve that was trained and saved (``edge.save_curve``), a policy that runs in NumPy alone.

    Args:
        path: of the file.

    Raises:
        ValueError: if the file holds none.
    """
    return load_curve(path)

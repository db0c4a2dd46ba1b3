"""Rules that answer each request at once: what they see goes in, which edge runs how many steps comes out.

A policy is anything that maps an Observation to a Decision. Those here take one request or many at once (``many``);
``blind`` ones do not look at the edges. Each is made for given edges and arrivals by ``make_policy(name, …)``.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from splitpoint.checks import (
    a_function,
    a_path,
    a_row,
    a_sequence,
    finite_array,
    finite_number,
    instance_of,
    one_of,
    whole_number,
)
from splitpoint.edge.arrivals import Arrivals, Poisson, Users, draw_paths
from splitpoint.edge.capacity import ConstantCapacity
from splitpoint.edge.observation import FEATURES, RATE_SCALES_S, Observation, System
from splitpoint.edge.request import HOME, PARAMETERS, Decision, Edge, grant_value_s, some_edges
from splitpoint.edge.simulator import Rows, Simulation, simulate
from splitpoint.edge.steady import Demand, best_steps, demand_of, route_odds, static_prices
from splitpoint.offloading import SystemParameters
from splitpoint.registry import Registry


class Policy(Protocol):
    """Decides about one request, or many at once."""

    def __call__(self, observation: Observation) -> Decision:
        """The decision."""
        ...


def at_prices(observation: Observation, price_s: ArrayLike, fee_s: ArrayLike = 0.0) -> Decision:
    """The edge and the steps that gain most at prices of a step and fees, both of shape (…, E)."""
    system = observation.system
    steps, net = best_steps(
        observation.alpha[..., None],
        observation.device_step_s[..., None],
        np.asarray(price_s),
        system.transfer_s,
        system.parameters,
        fee_s,
    )
    return _best_edge(steps, net)


def at_costs(observation: Observation, cost_s: NDArray[np.float64]) -> Decision:
    """The edge and the steps that gain most, if m steps cost ``cost_s[…, e, m - 1]`` seconds on edge e."""
    system = observation.system
    steps = np.arange(1, cost_s.shape[-1] + 1)
    value = grant_value_s(
        observation.alpha[..., None, None],
        observation.device_step_s[..., None, None],
        steps,
        system.transfer_s[:, None],
        system.parameters,
    )
    net = value - cost_s
    best = np.argmax(net, axis=-1)
    net = np.take_along_axis(net, best[..., None], axis=-1)[..., 0]
    return _best_edge(np.where(net > 0, best + 1, 0), np.maximum(net, 0.0))


def _best_edge(steps: NDArray, net: NDArray) -> Decision:
    edge = np.argmax(net, axis=-1)
    steps = np.take_along_axis(steps, edge[..., None], axis=-1)[..., 0]
    return Decision(np.where(steps > 0, edge, HOME), steps)


def full_s(observation: Observation) -> NDArray[np.float64]:
    """A fee that nobody pays where there is no room, shape (…, E)."""
    return np.where(observation.inside < observation.system.limits, 0.0, np.inf)


def next_step_s(observation: Observation) -> NDArray[np.float64]:
    """Seconds of a step with one member more, shape (…, E)."""
    system = observation.system
    batch = np.minimum(observation.inside + 1, system.limits)
    return system.table_s[np.arange(len(system.limits)), batch] / observation.free


def marginal_step_s(observation: Observation) -> NDArray[np.float64]:
    """What one more member costs all in a step, itself included: ``k (2 b + 1) + h`` over the compute, shape (…, E)."""
    return observation.system.marginal_s(observation.inside) / observation.free


# --- rules that do not look at the edges -----------------------------------------------------------------------------


@dataclass(frozen=True)
class AllLocal:
    """Everything stays at home."""

    many, blind = True, True

    def decide(self, time_s, device_step_s, alpha, draw) -> Decision:
        """Arrays of requests, shape (n,) each."""
        return Decision(np.full(alpha.shape, HOME), np.zeros(alpha.shape, dtype=np.int64))

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        return self.decide(observation.time_s, observation.device_step_s, observation.alpha, observation.draw)


@dataclass(frozen=True, eq=False)
class PostedPrice:
    """One price of a step on each edge, whatever happens there.

    Edges that gain a request nearly the same share such requests by the toss of a coin.

    Args:
        price_s: shape (E,), seconds a step.
        system: the edges.
    """

    price_s: NDArray[np.float64]
    system: System
    many, blind = True, True

    def __post_init__(self):
        instance_of("system", self.system, System)
        price = finite_array("price_s", self.price_s, 0.0)
        if price.shape not in ((), self.system.limits.shape):
            raise ValueError(f"price_s has shape {price.shape}; valid is {self.system.limits.shape}, one an edge")
        price = np.broadcast_to(price, self.system.limits.shape)
        kinds, kind = np.unique(np.column_stack([price, self.system.transfer_s]), axis=0, return_inverse=True)
        members = [np.flatnonzero(kind.ravel() == k) for k in range(len(kinds))]
        for name, value in (("price_s", price), ("_kinds", kinds), ("_members", members)):
            object.__setattr__(self, name, value)

    def decide(self, time_s, device_step_s, alpha, draw) -> Decision:
        """Arrays of requests, shape (n,) each."""
        offers = [best_steps(alpha, device_step_s, p, transfer, self.system.parameters) for p, transfer in self._kinds]
        steps, net = (np.stack([offer[i] for offer in offers], axis=-1) for i in (0, 1))  # (…, kinds)
        sizes = np.array([len(members) for members in self._members])
        upto = np.cumsum(route_odds(net, sizes), axis=-1)
        draw = np.asarray(draw)[..., None]
        kind = np.minimum((draw >= upto).sum(axis=-1), len(sizes) - 1)
        below = np.where(kind > 0, np.take_along_axis(upto, np.maximum(kind - 1, 0)[..., None], -1)[..., 0], 0.0)
        width = np.take_along_axis(upto, kind[..., None], -1)[..., 0] - below
        within = np.divide(draw[..., 0] - below, width, out=np.zeros(np.shape(kind)), where=width > 0)
        best = np.take_along_axis(steps, kind[..., None], -1)[..., 0]
        place = np.minimum((within * sizes[kind]).astype(np.int64), sizes[kind] - 1)
        starts = np.cumsum(sizes) - sizes
        edge = np.where(best > 0, np.concatenate(self._members)[starts[kind] + place], HOME)
        return Decision(edge, best)

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        return self.decide(observation.time_s, observation.device_step_s, observation.alpha, observation.draw)


# --- rules that look, and pay for what they see ----------------------------------------------------------------------


@dataclass(frozen=True)
class FirstCome:
    """Whoever comes is granted while there is room, with the split that is best for the batch as it is."""

    many = True

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        return at_prices(observation, next_step_s(observation), full_s(observation))


def own_and_others_s(observation: Observation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds that m = 1 … steps take, and what they cost those inside, if nobody else comes.

    Everyone inside leaves when its remaining steps are done, so step s is shared with those that have s or more left.

    Returns:
        Own time and the others' delay, shape (…, E, most steps) each, seconds.
    """
    system, remaining = observation.system, observation.remaining
    most = system.most_steps
    *lead, edges, width = remaining.shape
    flat = np.minimum(remaining, most).reshape(-1, width)
    counts = np.zeros((len(flat), most + 1), dtype=np.int64)
    np.add.at(counts, (np.arange(len(flat))[:, None], flat), 1)
    with_me = np.cumsum(counts[:, :0:-1], axis=1)[:, ::-1].reshape(*lead, edges, most)  # s or more left
    at = np.arange(edges)[:, None]
    others = np.minimum(with_me, system.limits[:, None] - 1)
    step_s, less_s = system.table_s[at, others + 1], system.table_s[at, others]
    free = observation.free[..., None]
    own = np.cumsum(step_s, axis=-1) / free
    delay = np.cumsum(others * (step_s - less_s), axis=-1) / free
    return own, delay


@dataclass(frozen=True)
class Selfish:
    """Each takes what is best for itself, knowing who is inside."""

    many = True

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        return at_costs(observation, own_and_others_s(observation)[0] + full_s(observation)[..., None])


@dataclass(frozen=True)
class Replanning:
    """Best for all who are there, as if nobody else came: the exact early-exit plan at every arrival.

    Those inside keep the steps that they were promised; the newcomer pays its own time and every delay that it causes.
    """

    many = True

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        own, others = own_and_others_s(observation)
        return at_costs(observation, own + others + full_s(observation)[..., None])


@dataclass(frozen=True)
class StatePrice:
    """A price of a step from batch and compute, two numbers: ``fixed + slope * (k (2 b + 1) + h) / c``.

    Args:
        fixed_s: seconds a step.
        slope: times the marginal cost of a step as the batch is now; 1 and no fixed part is myopic.
    """

    fixed_s: float
    slope: float
    many = True

    def __post_init__(self):
        finite_number("fixed_s", self.fixed_s)
        finite_number("slope", self.slope)

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        price = self.fixed_s + self.slope * marginal_step_s(observation)
        return at_prices(observation, price, full_s(observation))


@dataclass(frozen=True, eq=False)
class AdaptivePrice:
    """The same two numbers, each tuned for several rates and read at the rate of the last ten seconds.

    Args:
        rates_hz: rising, shape (r,).
        numbers: fixed part and slope at each, shape (r, 2).
        scale: which of the observation's rates, 0 to 2.
    """

    rates_hz: NDArray[np.float64]
    numbers: NDArray[np.float64]
    scale: int = 1
    many = True

    def __post_init__(self):
        rates, numbers = a_row("rates_hz", self.rates_hz, 0.0), finite_array("numbers", self.numbers)
        if np.any(np.diff(rates) <= 0):
            raise ValueError(f"rates_hz={self.rates_hz!r} must rise")
        if numbers.shape != (len(rates), 2):
            raise ValueError(f"numbers has shape {numbers.shape}; valid is ({len(rates)}, 2)")
        whole_number("scale", self.scale, 0, len(RATE_SCALES_S) - 1)

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        rate = observation.rates_hz[..., self.scale]
        fixed, slope = (np.interp(rate, self.rates_hz, column)[..., None] for column in np.transpose(self.numbers))
        price = fixed + slope * marginal_step_s(observation)
        return at_prices(observation, price, full_s(observation))


@dataclass(frozen=True, eq=False)
class Fluid:
    """Re-solve at every arrival: the price at which the work inside and the work to come just fit the next seconds.

    With W steps a second to do, a fluid edge holds the batch b that does them, ``W = c b/(k b + h)``, and one step more
    costs ``db/dW = (k b + h)**2 / (c h)``.

    Args:
        demand: of each edge's users.
        system: the edges.
        horizon_s: how far ahead.
        futures: 0 plans with the mean; otherwise so many futures whose numbers of requests scatter as Poisson's.
        choose: of the futures: ``mean`` of the prices (averaged hindsight duals), ``vote`` for each number of steps
            (Bayes selector: what most futures would do).
        scale: which of the observation's rates.

    Source: Jasin and Kumar 2012; Bumpensanti and Wang 2020; Vera and Banerjee 2021; Talluri and van Ryzin 1999.
    """

    demand: tuple[Demand, ...]
    system: System
    horizon_s: float = 10.0
    futures: int = 0
    choose: str = "mean"
    scale: int = 1
    many = True

    def __post_init__(self):
        instance_of("system", self.system, System)
        for demand in a_sequence("demand", self.demand):
            instance_of("demand", demand, Demand)
        if len(self.demand) != len(self.system.edges):
            raise ValueError(f"demand is of {len(self.demand)} edges; valid is {len(self.system.edges)}")
        finite_number("horizon_s", self.horizon_s, 0.0, open_end=True)
        whole_number("futures", self.futures, 0)
        one_of("choose", self.choose, ("mean", "vote"))
        whole_number("scale", self.scale, 0, len(RATE_SCALES_S) - 1)

    @cached_property
    def _supply(self) -> list[tuple[NDArray, Demand, NDArray, NDArray]]:
        """Edges of one kind together: the work a second of each batch, and what one step more costs."""
        groups: dict = {}
        for number, (edge, demand) in enumerate(zip(self.system.edges, self.demand)):
            groups.setdefault((edge.latency, edge.max_batch, id(demand)), (edge, demand, []))[2].append(number)
        found = []
        for edge, demand, group in groups.values():
            batch = np.arange(0.0, edge.max_batch + 0.25, 0.25)
            step = np.interp(batch, np.arange(edge.max_batch + 1), edge.step_table_s())
            step[batch < 1] = edge.step_table_s()[1]
            work = np.maximum.accumulate(np.divide(batch, step))
            rising = np.append(True, np.diff(work) > 1e-9 * work[-1])  # a larger batch may do no more work
            work, marginal = work[rising], np.maximum.accumulate(np.gradient(batch[rising], work[rising]))
            found.append((np.array(group), demand, work, marginal))
        return found

    def prices(self, observation: Observation, scatter: float | NDArray = 0.0) -> NDArray[np.float64]:
        """Prices of a step, shape (…, E); ``scatter`` in standard deviations of the number of requests."""
        rate = observation.rates_hz[..., self.scale] / len(self.system.edges)
        rate = np.maximum(rate + scatter * np.sqrt(rate / self.horizon_s), 0.0)
        rate = rate[..., None]
        out = np.empty(observation.free.shape)
        for group, demand, work, marginal in self._supply:
            inside, free = observation.work_left[..., group] / self.horizon_s, observation.free[..., group]
            low, high = np.zeros(inside.shape), np.full(inside.shape, demand.price_s[-1])
            for _ in range(18):
                price = (low + high) / 2
                asked = (inside + rate * np.interp(price, demand.price_s, demand.steps)) / free
                cost = np.where(asked > work[-1], np.inf, np.interp(asked, work, marginal) / free)
                low, high = np.where(cost > price, price, low), np.where(cost > price, high, price)
            out[..., group] = (low + high) / 2
        return out

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        if self.futures == 0:
            return at_prices(observation, self.prices(observation))
        scatters = norm.ppf((np.arange(self.futures) + 0.5) / self.futures)
        prices = np.stack([self.prices(observation, s) for s in scatters])  # (futures, …, E)
        if self.choose == "mean":
            return at_prices(observation, prices.mean(axis=0))
        votes = [at_prices(observation, price) for price in prices]
        steps, edges = (np.stack([np.asarray(getattr(v, name)) for v in votes]) for name in ("steps", "edge"))
        granted = np.mean(steps > 0, axis=0) > 0.5
        middle = np.argsort(steps, axis=0)[self.futures // 2]  # the future of the median number of steps
        pick = lambda values: np.take_along_axis(values, middle[None], axis=0)[0]
        return Decision(np.where(granted, pick(edges), HOME), np.where(granted, pick(steps), 0))


@dataclass(eq=False)
class MirrorDescent:
    """A price that learns: up where more was asked than the edge does at that price, down otherwise.

    The step is multiplicative; the supply at price p is that of the bound, ``mu(b)`` at ``b = (sqrt(p h c) - h)/k``.

    Args:
        system: the edges.
        first_price_s: to begin with.
        rate: of learning, per request.

    Source: Balseiro, Lu and Mirrokni, The best of many worlds: dual mirror descent for online allocation, 2023.
    """

    system: System
    first_price_s: float = 0.1
    rate: float = 0.2
    many = True

    def __post_init__(self):
        instance_of("system", self.system, System)
        finite_number("first_price_s", self.first_price_s, 0.0, open_end=True)
        finite_number("rate", self.rate, 0.0)
        self.reset(1)

    def reset(self, runs: int) -> None:
        """Begin again with so many runs side by side."""
        whole_number("runs", runs, 1)
        self._price = np.full((runs, len(self.system.edges)), float(self.first_price_s))
        self._last_s = np.zeros(runs)

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``; one request, or one of each run."""
        run = observation.run
        price = self._price[run]
        decision = at_prices(observation, price)
        batch = np.arange(self.system.table_s.shape[1])
        speed = np.divide(batch, self.system.table_s, out=np.zeros_like(self.system.table_s), where=batch > 0)
        net = price[..., None] * speed * observation.free[..., None] - batch  # (…, E, batch)
        net = np.where(batch <= self.system.limits[:, None], net, -np.inf)
        supply = np.take_along_axis(np.broadcast_to(speed, net.shape), np.argmax(net, axis=-1)[..., None], -1)[..., 0]
        passed = np.maximum(observation.time_s - self._last_s[run], 0.0)[..., None]
        mine = np.arange(len(self.system.edges)) == np.asarray(decision.edge)[..., None]
        asked = np.where(mine, np.asarray(decision.steps)[..., None], 0)
        surplus = (asked - supply * observation.free * passed) / self.system.most_steps
        self._price[run] = np.clip(price * np.exp(self.rate * np.clip(surplus, -5, 5)), 1e-4, 1.0)
        self._last_s[run] = observation.time_s
        return decision


@dataclass(frozen=True)
class DriftPlusPenalty:
    """The work inside is the price: ``work_left / patience`` times the fastest step.

    Args:
        patience: steps of work inside at which a step is worth a step's seconds; the V of the method.

    Source: Neely, Stochastic network optimization, 2010; compare LyDROO, Bi et al. 2021.
    """

    patience: float = 100.0
    many = True

    def __post_init__(self):
        finite_number("patience", self.patience, 0.0, open_end=True)

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        system = observation.system
        fastest = system.table_s[np.arange(len(system.limits)), system.limits] / (system.limits * observation.free)
        return at_prices(observation, fastest * (1 + observation.work_left / self.patience))


# --- the released plan of a window, played window after window -------------------------------------------------------


@dataclass(frozen=True)
class WindowPlan:
    """The exact plan of each window, as the released code states it, carried out when the window closes.

    Args:
        window_s: length of a window.
        count_those_inside: charge each step for who is still there too; the released plan takes the edge as empty.
        charge_waiting: those who are denied begin at home when the window closes, not when they ask. The released
            code charges this to everyone, so that it never changes a plan.
    """

    window_s: float = 1.0
    count_those_inside: bool = False
    charge_waiting: bool = False

    def __post_init__(self):
        finite_number("window_s", self.window_s, 0.0, open_end=True)
        for name in ("count_those_inside", "charge_waiting"):
            instance_of(name, getattr(self, name), bool)

    def __call__(self, observation: Observation) -> Decision:
        """Decisions for all requests of a window, seen at its end; the first edge serves."""
        system = observation.system
        edge, parameters = system.edges[0], system.parameters
        inside = int(observation.inside[0, 0]) if self.count_those_inside else 0
        share = float(observation.free[0, 0])
        count = len(observation.alpha)
        room = min(edge.max_batch - inside, count)
        if room < 1:
            return Decision(np.full(count, HOME), np.zeros(count, dtype=np.int64))
        sizes = np.arange(1, room + 1)
        price = np.asarray(edge.latency.step_latency_s(sizes + inside)) / share
        steps, gain = best_steps(
            observation.alpha,
            observation.device_step_s,
            price[:, None],
            edge.transfer_s * sizes[:, None],
            parameters,
        )  # (sizes, requests); Fact 2: the best size, and the best of that size
        order = np.argsort(-gain, axis=1, kind="stable")
        totals = np.take_along_axis(gain, order, axis=1).cumsum(axis=1)[np.arange(room), sizes - 1]
        size = int(np.argmax(totals))
        chosen = np.zeros(count, dtype=bool)
        chosen[order[size, : sizes[size]]] = True
        granted = chosen & (steps[size] > 0)
        return Decision(np.where(granted, 0, HOME), np.where(granted, steps[size], 0))


# --- what needs futures, or training ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rollout:
    """One policy improvement by playing: each answer is tried on the same imagined futures under a base policy.

    Answers are home and fractions of the base policy's steps. Free compute is held where it is. A few futures are a
    noisy judge, and the best of several noisy answers is often the luckiest: the base policy's own answer stands
    unless another beats it on the same futures by two standard errors.

    Args:
        base: a policy that takes many.
        users: whom futures are drawn from.
        futures: played for each answer.
        horizon_s: how far arrivals go.
        fractions: of the base policy's steps.
        seed: of the futures.

    Source: Bertsekas, Rollout, policy iteration, and distributed reinforcement learning, 2020.
    """

    base: Any
    users: Users = field(default_factory=Users)
    futures: int = 4
    horizon_s: float = 20.0
    fractions: tuple[float, ...] = (0.0, 0.6, 1.0, 1.4)
    seed: int = 0
    many = False

    def __post_init__(self):
        a_function("base", self.base)
        instance_of("users", self.users, Users)
        whole_number("futures", self.futures, 2)
        finite_number("horizon_s", self.horizon_s, 0.0, open_end=True)
        a_row("fractions", self.fractions, 0.0)
        whole_number("seed", self.seed, 0)

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``; one request."""
        first, system = self.base(observation), observation.system
        edge = int(first.edge) if int(first.edge) >= 0 else int(np.argmin(marginal_step_s(observation)))
        steps = int(first.steps) or system.most_steps // 2
        answers = np.unique(np.clip(np.round(np.multiply(self.fractions, steps)), 0, system.most_steps).astype(int))
        worth = grant_value_s(
            observation.alpha, observation.device_step_s, answers, system.transfer_s[edge], system.parameters
        )
        values = worth[:, None] + self._later_s(observation, edge, answers)  # (answers, futures)
        base = int(np.argmin(np.abs(answers - (int(first.steps) if int(first.edge) >= 0 else 0))))
        better = values - values[base]  # the same futures, so most of the chance cancels
        doubt = 2 * better.std(axis=1, ddof=1) / np.sqrt(self.futures)
        gained = np.where(better.mean(axis=1) > doubt, better.mean(axis=1), 0.0)
        best = int(np.argmax(gained)) if gained.any() else base
        return Decision(edge if answers[best] else HOME, int(answers[best]))

    def _later_s(self, observation: Observation, edge: int, answers: NDArray) -> NDArray[np.float64]:
        """Gains of all who come minus the time of all who are inside, shape (answers, futures)."""
        frozen = tuple(
            Edge(e.latency, ConstantCapacity(float(share)), e.max_batch, e.transfer_s)
            for e, share in zip(observation.system.edges, observation.free)
        )
        system = System(frozen, observation.system.parameters)
        arrivals = Poisson(float(observation.rates_hz[1]), self.horizon_s, self.users)
        seed = [self.seed, int(1e6 * observation.time_s)]
        futures = draw_paths(frozen, arrivals, int(np.random.SeedSequence(seed).generate_state(1)[0]), self.futures)
        play = Simulation(system, futures * len(answers))
        runs = np.arange(len(play.paths))
        inside = [(e, m) for e, row in enumerate(observation.remaining) for m in row[row > 0]]
        mine = np.repeat(answers, self.futures)
        first = int(np.prod(play.time_s.shape))
        play.rows = Rows(play.rows.table_s, play.rows.limits, first + len(runs) * (len(inside) + 1))
        zero = np.zeros(len(runs))
        for number, (e, m) in enumerate(inside):
            tickets = first + runs * (len(inside) + 1) + number
            play.rows.submit(runs * len(frozen) + e, tickets, np.full(len(runs), m), zero)
        go = runs[mine > 0]
        tickets = first + go * (len(inside) + 1) + len(inside)
        play.rows.submit(go * len(frozen) + edge, tickets, mine[go], zero[go])
        play.play(self.base, close=False)
        table = play.table()
        gains = np.bincount(table.replication, table.gain_s, minlength=len(runs))
        left = play.rows.left[first:].reshape(len(runs), -1)
        owner = np.array([e for e, _ in inside] + [edge])
        paid = np.nansum(left / observation.free[owner], axis=1)  # the clock of a constant share, in seconds
        return (gains - paid).reshape(len(answers), self.futures)


@dataclass(frozen=True, eq=False)
class LearnedCurve:
    """An edge's cost curve from a small network, run in NumPy.

    For each edge the network maps ``Observation.features(features)`` to a fee and a price of a step, or to the cost of
    a grant at each of ``knots`` steps (read linearly between them, from 0 at 0 steps); the user's own part is exact.

    Args:
        weights, biases: of each layer, shapes (out, in) and (out,).
        features: names for ``Observation.features``.
        output: ``price`` (fee and price of a step, seconds) or ``curve`` (seconds at each knot).
        knots: steps, rising, for ``curve``.
        activation: between layers, ``tanh`` or ``relu``.
        mean, scale: of the features, shape (features,); taken off and divided by.
        base: what the output is added to: ``none``, or ``marginal``: the cost of a step as the batch is now; or
            ``full_step``: the same, and the output counts in full steps as long as they are now.
    """

    weights: tuple[NDArray[np.float64], ...]
    biases: tuple[NDArray[np.float64], ...]
    features: tuple[str, ...]
    output: str = "price"
    knots: tuple[float, ...] = ()
    activation: str = "tanh"
    mean: NDArray[np.float64] | None = None
    scale: NDArray[np.float64] | None = None
    base: str = "none"
    many = True

    def __post_init__(self):
        one_of("output", self.output, ("price", "curve"))
        one_of("activation", self.activation, ("tanh", "relu"))
        one_of("base", self.base, ("none", "marginal", "full_step"))
        for feature in a_sequence("features", self.features):
            one_of("features", feature, FEATURES)
        shapes = {
            name: [finite_array(name, layer).shape for layer in a_sequence(name, getattr(self, name))]
            for name in ("weights", "biases")
        }
        for name in ("mean", "scale"):
            if getattr(self, name) is not None and a_row(name, getattr(self, name)).size != len(self.features):
                raise ValueError(f"{name} is not one number for each of the {len(self.features)} features")
        knots = finite_array("knots", self.knots, 0.0)
        if self.output == "curve" and (len(a_row("knots", knots, 0.0, open_end=True)) and np.any(np.diff(knots) <= 0)):
            raise ValueError(f"knots={self.knots!r} must rise from above 0")
        wide = 2 if self.output == "price" else len(knots)
        if any(len(shape) != 1 for shape in shapes["biases"]):
            raise ValueError(f"biases have shapes {shapes['biases']}; valid is (out,) each")
        widths = [len(self.features), *(size for (size,) in shapes["biases"])]
        if widths[-1] != wide or shapes["weights"] != [(o, i) for i, o in pairwise(widths)]:
            raise ValueError(
                f"weights have shapes {shapes['weights']} and biases {shapes['biases']}; valid is {widths} to {wide}"
            )

    def cost(self, observation: Observation) -> NDArray[np.float64]:
        """Output of the network, shape (…, E, 2) or (…, E, knots)."""
        x = observation.features(self.features)
        if self.mean is not None and self.scale is not None:
            x = (x - self.mean) / self.scale
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = x @ weight.T + bias
            if number < len(self.weights) - 1:
                x = np.tanh(x) if self.activation == "tanh" else np.maximum(x, 0.0)
        return x

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        if self.output == "price":
            cost, base = self._over_base(observation, marginal_step_s(observation))
            return at_prices(observation, np.maximum(base + cost[..., 1], 0.0), cost[..., 0] + full_s(observation))
        return at_costs(observation, self.costs(observation) + full_s(observation)[..., None])

    def costs(
        self, observation: Observation, steps: ArrayLike | None = None, marginal_s: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """What so many steps cost, shape (…, E, len(steps)), seconds; whether there is room is another question.

        Args:
            observation: the edges.
            steps: above 0; 1, 2, … to the most that may be granted if left out.
            marginal_s: cost of a step as the batch is, shape (…, E); as the observation says if left out.
        """
        marginal_s = marginal_step_s(observation) if marginal_s is None else marginal_s
        cost, base = self._over_base(observation, marginal_s)
        steps = np.arange(1.0, observation.system.most_steps + 1) if steps is None else a_row("steps", steps, 0.0)
        if self.output == "price":
            return cost[..., [0]] + np.maximum(base + cost[..., 1], 0.0)[..., None] * steps
        knots = np.append(0.0, self.knots)
        place = np.clip(np.searchsorted(knots, steps) - 1, 0, len(knots) - 2)
        part = (steps - knots[place]) / (knots[place + 1] - knots[place])
        cost = np.concatenate([np.zeros((*cost.shape[:-1], 1)), cost], axis=-1)
        curve = cost[..., place] * (1 - part) + cost[..., place + 1] * part
        return curve + base[..., None] * steps

    def _over_base(self, observation: Observation, marginal_s: NDArray) -> tuple[NDArray, NDArray]:
        """Output of the network in seconds, and what it is added to."""
        cost = self.cost(observation)
        base = np.zeros(observation.free.shape) if self.base == "none" else marginal_s
        return (cost * observation.full_step_s[..., None] if self.base == "full_step" else cost), base


def save_curve(path: str | FilePath, curve: LearnedCurve) -> None:
    """Write a learned curve: safetensors, numbers as tensors and everything else as metadata."""
    a_path("path", path)
    instance_of("curve", curve, LearnedCurve)
    from safetensors.numpy import save_file

    tensors = {f"weights.{i}": np.ascontiguousarray(w) for i, w in enumerate(curve.weights)}
    tensors |= {f"biases.{i}": np.ascontiguousarray(b) for i, b in enumerate(curve.biases)}
    tensors |= {name: np.asarray(value) for name in ("mean", "scale") if (value := getattr(curve, name)) is not None}
    words = {name: getattr(curve, name) for name in ("features", "output", "knots", "activation", "base")}
    save_file(tensors, str(path), metadata={"edge_curve": json.dumps(words)})


def load_curve(path: str | FilePath) -> LearnedCurve:
    """Read a learned curve; no pickle and no torch.

    Raises:
        ValueError: if the file is none.
    """
    a_path("path", path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "numpy") as file:
            words = json.loads((file.metadata() or {})["edge_curve"])
            tensors = {name: file.get_tensor(name).astype(float) for name in file.keys()}
    except (KeyError, OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"path={FilePath(path).name!r} holds no learned curve: {error}") from error
    layers = range(sum(name.startswith("weights.") for name in tensors))
    words = {name: tuple(value) if isinstance(value, list) else value for name, value in words.items()}
    return LearnedCurve(
        tuple(tensors[f"weights.{i}"] for i in layers),
        tuple(tensors[f"biases.{i}"] for i in layers),
        mean=tensors.get("mean"),
        scale=tensors.get("scale"),
        **words,
    )


# --- one door --------------------------------------------------------------------------------------------------------

Maker = Callable[[System, Arrivals], Policy]
_MAKERS: Registry[Maker] = Registry("policies", "maker")
keep_policy = _MAKERS.keep


def register_policy(name: str, maker: Maker) -> None:
    """Put a policy on the list: ``maker(system, arrivals)`` makes it for edges and the arrivals expected there.

    Raises:
        ValueError: for a name that is no text, empty or one of the package's own, or a maker that cannot be called.
    """
    _MAKERS.add(name, maker)


def policies() -> list[str]:
    """Names of all policies."""
    return list(_MAKERS)


def make_policy(
    name: str, edges: Sequence[Edge], arrivals: Arrivals | None = None, parameters: SystemParameters = PARAMETERS
) -> Policy:
    """A policy by its name, or one that was saved as a file of safetensors.

    Args:
        name: one of ``policies()``, or the path of a learned curve.
        edges: that it decides for.
        arrivals: expected; eight a second from the released crowd if left out. Rules without tuning ignore them.
        parameters: SystemParameters.

    Raises:
        ValueError: for an unknown name.
    """
    system = System(some_edges(edges), parameters)
    if arrivals is not None:
        instance_of("arrivals", arrivals, Arrivals)
    if isinstance(name, str) and name.endswith(".safetensors"):
        return load_curve(name)
    one_of("name", name, policies())
    return _MAKERS[name](system, arrivals or Poisson(8.0))


def _expected(system: System, arrivals: Arrivals) -> None:
    instance_of("system", system, System)
    instance_of("arrivals", arrivals, Arrivals)


def mean_and_spread(system: System) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean free compute of each edge over a long path, and its standard deviation over that mean, shape (E,) each."""
    means, spreads = [], []
    for edge in system.edges:
        lengths, shares = edge.capacity.draw(np.random.default_rng(0), 10_000.0).pieces(10_000.0)
        means.append(np.average(shares, weights=lengths))
        spreads.append(np.sqrt(np.average((shares - means[-1]) ** 2, weights=lengths)) / means[-1])
    return np.array(means), np.array(spreads)


def mean_rate_hz(arrivals: Arrivals) -> float:
    """Requests a second on average of a few draws."""
    counts = [len(arrivals.times(np.random.default_rng([9, seed]))) for seed in range(8)]
    return float(np.mean(counts)) / arrivals.horizon_s


def posted_price(system: System, arrivals: Arrivals) -> PostedPrice:
    """The best price that does not look, by bisection."""
    _expected(system, arrivals)
    rate = getattr(arrivals, "rate_hz", None) or mean_rate_hz(arrivals)
    return PostedPrice(static_prices(system, rate, arrivals.users, mean_and_spread(system)[0]), system)


def tune_state_price(system: System, arrivals: Arrivals, seed: int = 1_000, replications: int = 8) -> StatePrice:
    """The two numbers of ``StatePrice`` by simulation on seeds of their own: a coarse grid, then a finer one round it.

    Args:
        system: the edges.
        arrivals: expected.
        seed: of the paths; use others to judge.
        replications: paths.

    Raises:
        ValueError: for a number outside its range.
    """
    _expected(system, arrivals)
    paths = draw_paths(system.edges, arrivals, seed, replications)
    anchor = float(np.mean(posted_price(system, arrivals).price_s))

    def gain(numbers):
        policy = StatePrice(*numbers)
        return float(simulate(system.edges, paths, policy, parameters=system.parameters).gain_s.sum())

    grid = [(f * anchor, s) for f in (0.0, 0.4, 0.8) for s in (0.4, 0.8, 1.2, 1.8)]
    scores = {point: gain(point) for point in grid}
    for width in (0.2, 0.1):
        fixed, slope = max(scores, key=lambda point: scores[point])
        near = [(fixed + i * width * anchor, slope + j * 2 * width) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        near = [p for p in near if p not in scores and min(p) >= 0]
        scores |= {point: gain(point) for point in near}
    return StatePrice(*max(scores, key=lambda point: scores[point]))


def tune_adaptive_price(
    system: System, arrivals: Arrivals, rates_hz: Sequence[float] = (2.0, 4.0, 8.0, 12.0, 16.0), replications: int = 4
) -> AdaptivePrice:
    """The same two numbers for several rates, to be read at the rate that is seen."""
    _expected(system, arrivals)
    a_row("rates_hz", rates_hz, 0.0)
    whole_number("replications", replications, 1)
    numbers = [
        (tuned.fixed_s, tuned.slope)
        for rate in rates_hz
        for tuned in [tune_state_price(system, Poisson(rate, 30.0, arrivals.users), replications=replications)]
    ]
    return AdaptivePrice(np.array(rates_hz, dtype=float), np.array(numbers))


def tune_patience(system: System, arrivals: Arrivals, seed: int = 1_000, replications: int = 4) -> DriftPlusPenalty:
    """The one number of ``DriftPlusPenalty`` by simulation on seeds of their own."""
    _expected(system, arrivals)
    paths = draw_paths(system.edges, arrivals, seed, replications)
    choices = [DriftPlusPenalty(float(v)) for v in np.geomspace(20, 2000, 9)]
    gains = [simulate(system.edges, paths, p, parameters=system.parameters).gain_s.sum() for p in choices]
    return choices[int(np.argmax(gains))]


def fluid(system: System, arrivals: Arrivals, **options) -> Fluid:
    """Fluid re-solving for the arrivals' crowd; ``options`` as of ``Fluid``."""
    _expected(system, arrivals)
    demand = tuple(demand_of(arrivals.users, edge.transfer_s, system.parameters) for edge in system.edges)
    return Fluid(demand, system, **options)


keep_policy("all_local", lambda system, arrivals: AllLocal())
keep_policy("first_come", lambda system, arrivals: FirstCome())
keep_policy("selfish", lambda system, arrivals: Selfish())
keep_policy("myopic", lambda system, arrivals: StatePrice(0.0, 1.0))
keep_policy("window_plan", lambda system, arrivals: WindowPlan())
keep_policy("window_plan_counting", lambda system, arrivals: WindowPlan(count_those_inside=True))
keep_policy("replanning", lambda system, arrivals: Replanning())
keep_policy("posted_price", posted_price)
keep_policy("state_price", tune_state_price)
keep_policy("adaptive_price", tune_adaptive_price)
keep_policy("fluid_resolving", fluid)
keep_policy("bayes_selector", lambda system, arrivals: fluid(system, arrivals, futures=9, choose="vote"))
keep_policy("hindsight_duals", lambda system, arrivals: fluid(system, arrivals, futures=9, choose="mean"))
keep_policy("mirror_descent", lambda system, arrivals: MirrorDescent(system))
keep_policy("drift_plus_penalty", tune_patience)
keep_policy("rollout", lambda system, arrivals: Rollout(posted_price(system, arrivals), arrivals.users))

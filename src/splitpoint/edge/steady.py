"""The steady state of an edge under rules that do not look at it, in closed form, and the one price that follows.

A batch whose members all advance together is a processor-sharing queue whose speed depends on how many are in it:
with n inside, ``mu(n) = n / (k n + h)`` steps a second in all. Such a queue is insensitive: only the mean work counts.

Source: Kelly 1979; Bonald and Proutiere, Insensitivity in processor-sharing networks, 2002.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitpoint.checks import a_row, finite_array, finite_number, instance_of, whole_number
from splitpoint.edge.arrivals import RELEASED_USERS, Users
from splitpoint.edge.observation import System
from splitpoint.edge.request import PARAMETERS, Edge, grant_value_s
from splitpoint.offloading import SystemParameters, optimal_split

#: most requests that the steady state counts
MOST_INSIDE = 400
#: edges that gain a request nearly the same, to a fraction of a second, share such requests
SHARING_S = 0.2


def steady_state(edge: Edge, work_hz: float, share: float = 1.0) -> NDArray[np.float64]:
    """How often n requests are inside, if ``work_hz`` steps a second are asked for.

    ``pi(n)`` is proportional to ``work**n * prod_{j <= n} (k j + h) / (j c)``.

    Args:
        edge: with its step latency and batch limit; who finds no room waits, at the speed of the full batch.
        work_hz: steps a second, rate times mean steps.
        share: of compute that is free.

    Returns:
        Probabilities of 0 … MOST_INSIDE, shape (MOST_INSIDE + 1,).

    Raises:
        ValueError: for a negative number, or more work than the full batch does.
    """
    instance_of("edge", edge, Edge)
    finite_number("work_hz", work_hz, 0.0)
    finite_number("share", share, 0.0, open_end=True)
    if work_hz >= capacity_hz(edge, share):
        raise ValueError(f"work_hz={work_hz:g} is outside [0, {capacity_hz(edge, share):g}): the queue has no end")
    inside = np.arange(1, MOST_INSIDE + 1)
    batch = np.minimum(inside, edge.max_batch)
    seconds = edge.step_table_s()[batch] / (batch * share)  # of machine time for a step of one member
    with np.errstate(divide="ignore"):
        log = np.append(0.0, np.cumsum(np.log(work_hz * seconds))) if work_hz > 0 else None
    if log is None:
        return np.eye(MOST_INSIDE + 1)[0]
    weight = np.exp(log - log.max())
    return weight / weight.sum()


def capacity_hz(edge: Edge, share: float = 1.0) -> float:
    """Steps a second that a full batch does, all members together."""
    instance_of("edge", edge, Edge)
    finite_number("share", share, 0.0, open_end=True)
    return edge.max_batch * share / float(edge.step_table_s()[-1])


def mean_inside(edge: Edge, work_hz: float, share: float = 1.0) -> tuple[float, float]:
    """Mean number inside, and what one more step a second adds to it (seconds a step): the marginal cost.

    Since ``pi(n)`` grows as ``work**n``, the derivative of the mean is the variance over the work. Both are infinite
    where more is asked than the full batch does.

    Raises:
        ValueError: for a negative number.
    """
    instance_of("edge", edge, Edge)
    finite_number("work_hz", work_hz, 0.0)
    finite_number("share", share, 0.0, open_end=True)
    if work_hz >= 0.999 * capacity_hz(edge, share):
        return np.inf, np.inf
    odds, count = steady_state(edge, work_hz, share), np.arange(MOST_INSIDE + 1)
    mean = float(odds @ count)
    variance = float(odds @ (count - mean) ** 2)
    return mean, variance / work_hz if work_hz > 0 else float(edge.step_table_s()[1] / share)


@dataclass(frozen=True, eq=False)
class Demand:
    """What a crowd of users asks of an edge at each price of a step.

    Args:
        price_s: seconds a step, rising from 0, shape (p,).
        steps: mean steps a request at each price, shape (p,).
        value_s: mean worth of them without their time on the edge, shape (p,), seconds.
    """

    price_s: NDArray[np.float64]
    steps: NDArray[np.float64]
    value_s: NDArray[np.float64]

    def at(self, price_s: ArrayLike) -> NDArray[np.float64]:
        """Mean steps a request, any shape."""
        return np.interp(finite_array("price_s", price_s, 0.0), self.price_s, self.steps)


def best_steps(
    alpha: ArrayLike,
    device_step_s: ArrayLike,
    price_s: ArrayLike,
    transfer_s: ArrayLike,
    parameters: SystemParameters = PARAMETERS,
    fee_s: ArrayLike = 0.0,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Whole steps that gain most at a price of a step, and what they gain: the closed form of one window.

    Args:
        alpha, device_step_s: of the users, any shape.
        price_s: seconds a step, any shape that broadcasts with it, as all below.
        transfer_s: hand-over, seconds.
        parameters: SystemParameters.
        fee_s: seconds for being granted at all.

    Returns:
        Steps, 0 where staying at home is better, and the net gain in seconds, of the broadcast shape.

    Raises:
        ValueError: for numbers that are not finite (a fee may be: nobody pays it), or a negative alpha or step.
    """
    device, price = finite_array("device_step_s", device_step_s, 0.0), finite_array("price_s", price_s)
    fee = np.asarray(fee_s)
    if fee.dtype.kind not in "iuf" or np.isnan(fee).any():
        raise ValueError(f"fee_s holds {fee.dtype} or NaN; valid are seconds, infinitely many too")
    split = optimal_split(alpha, device - price, parameters, whole_steps=True)
    steps = (parameters.num_steps - split).astype(np.int64)
    net = (
        grant_value_s(alpha, device_step_s, steps, transfer_s, parameters)
        - steps * price
        - np.where(steps > 0, fee, 0.0)
    )
    worth = net > 0
    return np.where(worth, steps, 0), np.where(worth, net, 0.0)


def demand_of(
    users: Users, transfer_s: float, parameters: SystemParameters = PARAMETERS, sample: int = 2000, seed: int = 0
) -> Demand:
    """Demand of a crowd, from a sample of it.

    Args:
        users: the crowd.
        transfer_s: hand-over, seconds.
        parameters: SystemParameters.
        sample: users drawn, at least 1.
        seed: of the sample.

    Raises:
        ValueError: for a number outside its range.
    """
    instance_of("users", users, Users)
    finite_number("transfer_s", transfer_s, 0.0)
    instance_of("parameters", parameters, SystemParameters)
    whole_number("sample", sample, 1)
    whole_number("seed", seed, 0)
    return _demand_of(users, float(transfer_s), parameters, int(sample), int(seed))


@lru_cache(maxsize=32)
def _demand_of(users: Users, transfer_s: float, parameters: SystemParameters, sample: int, seed: int) -> Demand:
    """See ``demand_of``."""
    device, alpha = users.draw(np.random.default_rng(seed), sample)
    price = np.append(0.0, np.geomspace(1e-5, max(device.max(), 1e-3) * 1.05, 240))
    steps, net = best_steps(alpha, device, price[:, None], transfer_s, parameters)  # (p, sample)
    return Demand(price, steps.mean(axis=1), (net + steps * price[:, None]).mean(axis=1))


def static_price(
    edge: Edge,
    rate_hz: float,
    users: Users = RELEASED_USERS,
    share: float = 1.0,
    parameters: SystemParameters = PARAMETERS,
) -> float:
    """The best price of a step for a rule that does not look at the edge, by bisection and without simulating.

    At the best price a step costs what it adds to the mean number inside: ``p = dE[n]/dW`` at the work
    ``W = rate * E[m(p)]`` that the price lets in. The left side rises with p, the right side falls.

    Args:
        edge: one edge.
        rate_hz: requests a second that ask this edge.
        users: who asks.
        share: of compute that is free.
        parameters: SystemParameters.

    Returns:
        Seconds a step.

    Raises:
        ValueError: for a negative rate.

    Source: compare Ha, Optimal pricing that coordinates queues with customer-chosen service requirements, 2001.
    """
    instance_of("edge", edge, Edge)
    finite_number("rate_hz", rate_hz, 0.0)
    finite_number("share", share, 0.0, open_end=True)
    demand = demand_of(users, edge.transfer_s, parameters)
    low, high = 0.0, float(demand.price_s[-1])
    for _ in range(50):
        middle = (low + high) / 2
        if mean_inside(edge, rate_hz * float(demand.at(middle)), share)[1] > middle:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def route_odds(net_s: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Odds of each kind of edge for a request, if kinds gain it ``net_s``: those that gain nearly as much share.

    Args:
        net_s: shape (…, kinds), seconds; kinds that gain nothing get nothing.
        sizes: edges of each kind, shape (kinds,).

    Returns:
        Shape (…, kinds), adding up to one, or zero where home is best.
    """
    best = net_s.max(axis=-1, keepdims=True)
    weight = np.where(net_s > 0, sizes * np.exp((net_s - best) / SHARING_S), 0.0)
    total = weight.sum(axis=-1, keepdims=True)
    return np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)


def static_prices(
    system: System,
    rate_hz: float,
    users: Users = RELEASED_USERS,
    shares: ArrayLike | None = None,
    sweeps: int = 12,
) -> NDArray[np.float64]:
    """The same for several edges: prices at which each is worth what a step adds to the number inside.

    Each price in turn is bisected while the others hold (edges are substitutes: this settles). Edges that are alike
    share alike, and edges that gain a request nearly the same share it by ``route_odds``.

    Args:
        system: the edges.
        rate_hz: requests a second in all.
        users: who asks.
        shares: of each edge's compute that is free, shape (E,); all if left out.
        sweeps: rounds, at least 1.

    Returns:
        Seconds a step on each edge, shape (E,).

    Raises:
        ValueError: for a number outside its range, or shares that are not one an edge.
    """
    instance_of("system", system, System)
    finite_number("rate_hz", rate_hz, 0.0)
    instance_of("users", users, Users)
    whole_number("sweeps", sweeps, 1)
    shares = np.ones(len(system.edges)) if shares is None else a_row("shares", shares, 0.0, open_end=True)
    if len(shares) != len(system.edges):
        raise ValueError(f"shares has shape {shares.shape}; valid is ({len(system.edges)},)")
    alike: dict = {}
    for number, edge in enumerate(system.edges):
        alike.setdefault((edge.latency, edge.max_batch, edge.transfer_s, shares[number]), []).append(number)
    groups = list(alike.values())
    if len(groups) == 1:
        one = static_price(system.edges[0], rate_hz / len(shares), users, float(shares[0]), system.parameters)
        return np.full(len(shares), one)
    device, alpha = users.draw(np.random.default_rng(0), 1000)
    first, sizes = [group[0] for group in groups], np.array([len(group) for group in groups])
    price = np.array([static_price(system.edges[e], rate_hz / len(shares), users, float(shares[e])) for e in first])

    def offer(kind, value):
        return best_steps(alpha, device, value, system.transfer_s[first[kind]], system.parameters)

    offers = [offer(kind, value) for kind, value in enumerate(price)]
    for _ in range(sweeps):
        for kind, edge_number in enumerate(first):
            low, high = 0.0, float(device.max())
            for _ in range(24):
                price[kind] = (low + high) / 2
                offers[kind] = offer(kind, price[kind])
                odds = route_odds(np.stack([net for _, net in offers], axis=1), sizes)[:, kind]
                work = rate_hz * float(np.mean(offers[kind][0] * odds)) / sizes[kind]
                cost = mean_inside(system.edges[edge_number], work, float(shares[edge_number]))[1]
                low, high = (price[kind], high) if cost > price[kind] else (low, price[kind])
    prices = np.zeros(len(shares))
    for group, value in zip(groups, price):
        prices[group] = value
    return prices

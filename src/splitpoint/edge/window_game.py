"""One window whose requests arrive one by one and must be answered at once: the special case of notebook 09.

A request is granted or denied when it arrives, for good; split points are chosen when the window closes and the batch
size is known. A plan costs what ``splitpoint.offloading.evaluate`` says, so regret is measured against the exact
optimum of the whole window, which knows everyone beforehand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from splitpoint.checks import a_function, a_sequence, finite_array, finite_number, instance_of, whole_number
from splitpoint.offloading import Instance, Plan, SystemParameters, grant_gains, sample_instance
from splitpoint.offloading.solvers import plan_for


@dataclass(frozen=True, eq=False)
class Arrival:
    """What a policy is told when a request arrives.

    Args:
        time_s: request moment; ``window_s`` is the window's length.
        window_s: length of the window.
        seen: requests so far, this one included.
        gains: what granting this one is worth in a batch of 1 … B_max, shape (B_max,), seconds.
        granted_gains: the same for those granted before, shape (B_max, granted).
    """

    time_s: float
    window_s: float
    seen: int
    gains: NDArray[np.float64]
    granted_gains: NDArray[np.float64]

    @property
    def num_granted(self) -> int:
        """Requests granted before this one."""
        return self.granted_gains.shape[1]


Policy = Callable[[Arrival], bool]


def draw_windows(
    count: int,
    num_edge_gpus: int = 16,
    num_users: tuple[int, int] = (4, 20),
    seed: int = 0,
    parameters: SystemParameters = SystemParameters(),
) -> list[Instance]:
    """Windows by the released sampling rules, but with a random number of users who arrive in random order.

    The released code sorts devices by speed and request moments by time, so that fast devices always come first; here
    the moments are dealt out anew.

    Args:
        count: windows to draw, at least 1.
        num_edge_gpus: GPUs of the edge.
        num_users: fewest and most users, each number as likely.
        seed: of everything random.
        parameters: SystemParameters.

    Raises:
        ValueError: if a number is below 1, or ``num_users`` descends.
    """
    whole_number("count", count, 1)
    whole_number("num_edge_gpus", num_edge_gpus, 1)
    if len(a_sequence("num_users", num_users)) != 2:
        raise ValueError(f"num_users={num_users!r} must be two whole numbers, the fewest and the most")
    whole_number("seed", seed, 0)
    instance_of("parameters", parameters, SystemParameters)
    whole_number("num_users[0]", num_users[0], 1)
    whole_number("num_users[1]", num_users[1], num_users[0])
    rng, windows = np.random.default_rng(seed), []
    for _ in range(count):
        users = int(rng.integers(num_users[0], num_users[1], endpoint=True))
        instance = sample_instance(users, num_edge_gpus, rng, parameters)
        windows.append(replace(instance, arrival_s=rng.permutation(instance.arrival_s)))
    return windows


def run_online(instance: Instance, policy: Policy) -> Plan:
    """Answer the requests of a window in order of arrival, then choose split points for the batch that came about.

    Args:
        instance: the window.
        policy: called for each arrival while there is room in the batch; true grants.

    Raises:
        ValueError: for anything else, or an answer that is neither true nor false.
    """
    instance_of("instance", instance, Instance)
    a_function("policy", policy)
    limit = instance.parameters.max_batch
    gains = grant_gains(instance, np.arange(1, limit + 1))[0] if limit else np.zeros((0, instance.num_users))
    granted = np.zeros(instance.num_users, dtype=bool)
    for seen, user in enumerate(np.argsort(instance.arrival_s, kind="stable"), 1):
        if granted.sum() < limit:
            moment, window_s = float(instance.arrival_s[user]), instance.parameters.window_s
            answer = policy(Arrival(moment, window_s, seen, gains[:, user], gains[:, granted]))
            if not isinstance(answer, (bool, np.bool_)):
                raise ValueError(f"policy answers {answer!r}; valid is True or False")
            granted[user] = answer
    return plan_for(instance, granted)


def first_come(arrival: Arrival) -> bool:
    """Grant whoever comes, while there is room."""
    return True


def myopic(arrival: Arrival) -> bool:
    """Grant if the batch so far becomes worth more, as if nobody else would come."""
    size = arrival.num_granted
    before = arrival.granted_gains[size - 1].sum() if size else 0.0
    return bool(arrival.granted_gains[size].sum() + arrival.gains[size] > before)


def threshold(batch_size: int, price_s: float) -> Policy:
    """Grant if the gain in a batch of an expected final size is worth the price of a place.

    Args:
        batch_size: expected number of granted users, at least 1.
        price_s: seconds.

    Raises:
        ValueError: if ``batch_size`` is below 1, or the price is not finite.
    """
    whole_number("batch_size", batch_size, 1)
    finite_number("price_s", price_s)
    return lambda arrival: bool(arrival.gains[batch_size - 1] >= price_s)


def tune_threshold(past: Sequence[Instance], num_prices: int = 60) -> tuple[int, float]:
    """Batch size and price that would have been best on past windows, by trying all sizes and many prices.

    Args:
        past: windows of the same edge, at least one.
        num_prices: tried between 0 and the 99th percentile of the gains, at least 1.

    Returns:
        Batch size, and price in seconds; see ``threshold``.

    Raises:
        ValueError: if ``past`` is empty, its edge admits nobody, or ``num_prices`` is below 1.
    """
    _some_windows(past)
    whole_number("num_prices", num_prices, 1)
    limit = past[0].parameters.max_batch
    whole_number("max_batch", limit, 1)
    tables = [grant_gains(window, np.arange(1, limit + 1))[0][:, np.argsort(window.arrival_s)] for window in past]
    prices = np.linspace(0, np.quantile(np.concatenate([t.ravel() for t in tables]), 0.99), num_prices)
    totals = np.zeros((limit, num_prices))
    for table in tables:
        granted = table[:, None, :] >= prices[:, None]
        granted &= np.cumsum(granted, axis=2) <= limit
        worth = np.vstack([np.zeros(table.shape[1]), table])[granted.sum(axis=2)]
        totals += np.sum(worth, axis=2, where=granted)
    size, price = np.unravel_index(np.argmax(totals), totals.shape)
    return int(size) + 1, float(prices[price])


def users_still_to_come(past_counts: Sequence[int], seen: int, elapsed: float) -> tuple[NDArray, NDArray]:
    """How many more requests to expect, by Bayes' rule from the numbers of past windows.

    With ``u`` requests at uniform moments, the density of the ``seen``-th at ``elapsed`` is proportional to
    ``u! / (u - seen)! * (1 - elapsed)**(u - seen)``.

    Args:
        past_counts: users of past windows.
        seen: requests so far, the one at ``elapsed`` included, at least 1.
        elapsed: share of the window that is over, within [0, 1].

    Returns:
        Numbers still to come and their probabilities, shape (m,) each.

    Raises:
        ValueError: if ``seen`` or ``elapsed`` is outside its range.
    """
    whole_number("seen", seen, 1)
    finite_number("elapsed", elapsed, 0.0, 1.0)
    counts = finite_array("past_counts", a_sequence("past_counts", past_counts), 0.0)
    if counts.ndim != 1 or np.any(counts != np.floor(counts)):
        raise ValueError(f"past_counts={past_counts!r} holds no whole numbers of users, shape (n,)")
    counts, times = np.unique(counts.astype(np.int64), return_counts=True)
    possible = counts >= seen
    if not possible.any():
        return np.array([0]), np.array([1.0])
    rest = counts[possible] - seen
    log_weight = np.log(times[possible]) + gammaln(rest + seen + 1) - gammaln(rest + 1)
    log_weight += np.where(rest > 0, rest * np.log(max(1 - elapsed, 1e-300)), 0.0)
    weight = np.exp(log_weight - log_weight.max())
    return rest, weight / weight.sum()


def rolling(past: Sequence[Instance], futures: int = 40, seed: int = 0) -> Policy:
    """Imagine futures, solve each exactly with and without this request, and do what is better on average.

    Futures are drawn from the users and the numbers of users of past windows.

    Args:
        past: windows of the same edge.
        futures: imagined for each decision, at least 1.
        seed: of the futures.

    Raises:
        ValueError: for no past windows, windows of different edges, an edge that admits nobody, or no futures.
    """
    whole_number("futures", futures, 1)
    whole_number("seed", seed, 0)
    _some_windows(past)
    if len({(window.edge, window.parameters) for window in past}) != 1:
        raise ValueError("past holds windows of different edges or parameters; valid are windows of one edge")
    limit = past[0].parameters.max_batch
    whole_number("max_batch", limit, 1)
    pool = np.hstack([grant_gains(window, np.arange(1, limit + 1))[0] for window in past])
    counts, rng = [window.num_users for window in past], np.random.default_rng(seed)

    def decide(arrival: Arrival) -> bool:
        rest, probability = users_still_to_come(counts, arrival.seen, arrival.time_s / arrival.window_s)
        sizes = rng.choice(rest, futures, p=probability)
        longest = int(rest.max())
        imagined = pool[:, rng.integers(pool.shape[1], size=(futures, longest))].transpose(1, 0, 2)
        imagined = np.where(np.arange(longest) < sizes[:, None, None], imagined, -np.inf)
        best_sums = np.cumsum(-np.sort(-imagined, axis=2), axis=2)
        best_sums = np.concatenate([np.zeros((futures, limit, 1)), best_sums], axis=2)  # (futures, B_max, chosen)
        with_it = np.column_stack([arrival.granted_gains, arrival.gains])
        return _value(with_it, best_sums) > _value(arrival.granted_gains, best_sums)

    return decide


def _some_windows(past: Sequence[Instance]) -> None:
    for window in a_sequence("past", past):
        instance_of("past", window, Instance)


def _value(granted_gains: NDArray, best_sums: NDArray) -> float:
    """Mean over futures of the best total gain that keeps those granted; best_sums (futures, B_max, chosen)."""
    limit, granted = granted_gains.shape
    batch = np.arange(max(granted, 1), min(limit, granted + best_sums.shape[2] - 1) + 1)
    if len(batch) == 0:
        return 0.0
    totals = granted_gains[batch - 1].sum(axis=1) + best_sums[:, batch - 1, batch - granted]
    return float(np.maximum(totals.max(axis=1), -np.inf if granted else 0.0).mean())

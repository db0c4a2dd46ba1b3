"""Who should be served: exact solvers, mixed-integer programs, a genetic algorithm and simple policies, by name."""

import inspect
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from splitpoint.checks import finite_number, instance_of, one_of, whole_number
from splitpoint.offloading.problem import Instance, Plan, check_plan
from splitpoint.offloading.split import gains_at, grant_gains, optimal_split, step_saving_s, top_sums, top_users
from splitpoint.registry import Registry

BRUTE_FORCE_USERS = 16

_USERS_AT_A_TIME = 100_000  # gains of larger windows are made one batch size at a time, which takes less memory

Solver = Callable[..., Plan]
_SOLVERS: Registry[Solver] = Registry("solvers", "solver")
keep = _SOLVERS.keep


def register(name: str, solver: Solver) -> None:
    """Add a solver of your own, ``solver(instance, **options) -> Plan``, by name: for ``solve`` and for figures.

    Raises:
        ValueError: for a name that is no text, empty or one of the package's own, or a solver that cannot be called.
    """
    _SOLVERS.add(name, solver)


def is_kept(name: str) -> bool:
    """Whether a name is one of the package's own."""
    return name in _SOLVERS.own


def solvers() -> tuple[str, ...]:
    """The names that ``solve`` knows."""
    return tuple(_SOLVERS)


def get_solver(name: str) -> Solver:
    """The solver of that name; ValueError with the names there are, if there is none."""
    if name == "agent" and name not in _SOLVERS:
        raise ValueError("method='agent' is unknown until splitpoint.learning is imported: import splitpoint.learning")
    one_of("method", name, solvers())
    return _SOLVERS[name]


def solve(instance: Instance, method: str = "exact", **options) -> Plan:
    """Find a plan and check that it is feasible.

    Args:
        instance: the window.
        method: one of ``solvers()``.
        options: passed to the solver, for instance ``seed`` or ``time_limit_s``.

    Returns:
        A feasible Plan.

    Raises:
        ValueError: for an unknown method, or options that it does not take or refuses.
    """
    instance_of("instance", instance, Instance)
    solver = get_solver(method)
    if options:
        taken = inspect.signature(solver).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            for option in options:
                one_of("option", option, list(taken)[1:])
    plan = solver(instance, **options)
    check_plan(instance, plan)
    return plan


def plan_for(
    instance: Instance,
    granted: NDArray[np.bool_],
    whole_steps: bool = False,
    status: str = "heuristic",
    gap: float = float("nan"),
) -> Plan:
    """The best plan that grants just these users: their split points follow from the batch size.

    Args:
        instance: the window.
        granted: shape (U,), bool.
        whole_steps: restrict split points to whole steps.
        status, gap: see Plan.
    """
    edge_step_s = instance.edge.step_latency_s(granted.sum())
    saving = step_saving_s(instance.device_step_s, edge_step_s, instance.parameters)
    split = optimal_split(instance.alpha, saving, instance.parameters, whole_steps)
    return Plan(granted, np.where(granted, split, float(instance.parameters.num_steps)), status, gap)


def exact(instance: Instance, whole_steps: bool = False) -> Plan:
    """The optimum under static batching: a selection for each batch size, so linear in the users but for the last sort.

    Granted users slow each other through their number alone. For a known batch size the gains are independent, so the
    best set of that size is the largest gains; trying every size gives the optimum (notebook 05).

    Args:
        instance: the window.
        whole_steps: restrict split points to whole steps; so in every solver here.
    """
    if instance.largest_batch == 0:
        return all_local(instance)
    sizes = np.arange(1, instance.largest_batch + 1)
    blocks = [sizes] if instance.num_users <= _USERS_AT_A_TIME else list(sizes[:, None])
    gains = [grant_gains(instance, block, whole_steps)[0] for block in blocks[:1]]  # (m, U), kept if there is but one
    totals = [top_sums(gains[0], blocks[0])]
    totals += [top_sums(grant_gains(instance, block, whole_steps)[0], block) for block in blocks[1:]]
    best = int(np.argmax(np.concatenate([[0.0], *totals])))
    if not best:
        return plan_for(instance, np.zeros(instance.num_users, dtype=bool), whole_steps, status="optimal", gap=0.0)
    row = gains[0][best - 1] if len(blocks) == 1 else grant_gains(instance, [best], whole_steps)[0][0]
    return plan_for(instance, top_users(row[None], [best])[0], whole_steps, status="optimal", gap=0.0)


def early_exit(instance: Instance, whole_steps: bool = False) -> Plan:
    """The optimum under early-exit batching: for a batch size, a linear assignment of users to exit ranks.

    With ``b`` users present a step costs them ``b L(b)`` seconds together, so the ``b``-th to be added costs
    ``b L(b) - (b - 1) L(b - 1)`` for each of its steps; for a line that is ``k (2 b - 1) + h``. Where these costs rise
    with ``b``, sharing them out by rank is the cheapest of all rankings (rearrangement inequality, notebook 09), and
    the assignment is the optimum. Its value is then concave in the batch size, as that of any matching is in the
    number of its pairs (the hand-over takes a multiple of ``b**2`` off), so that bisection finds the best size. Where
    the costs fall somewhere, all sizes are tried, and the plan is a good one and not proven (``heuristic``).
    """
    parameters, sizes = instance.parameters, np.arange(1, instance.largest_batch + 1)
    together = np.append(0.0, sizes * instance.edge.step_latency_s(sizes))
    step_s = np.diff(together)[:, None]  # what the b-th member costs a step, (B, 1)

    @cache
    def assigned(batch: int):
        """Gain of the best batch of one size, its users and their split points."""
        gains, splits = gains_at(instance.alpha, instance.device_step_s, step_s[:batch], batch, parameters, whole_steps)
        ranks, users = linear_sum_assignment(gains, maximize=True)
        return float(gains[ranks, users].sum()), users, splits[ranks, users]

    proven = bool(np.all(np.diff(step_s, axis=0) >= -1e-12))
    if proven:
        batch, most = 0, len(sizes)
        while batch < most:
            middle = (batch + most) // 2
            if assigned(middle + 1)[0] > assigned(middle)[0]:
                batch = middle + 1
            else:
                most = middle
    else:
        batch = max(range(len(sizes) + 1), key=lambda size: assigned(size)[0])
    granted = np.zeros(instance.num_users, dtype=bool)
    split_points = np.full(instance.num_users, float(parameters.num_steps))
    _, users, splits = assigned(batch)
    granted[users], split_points[users] = True, splits
    return Plan(granted, split_points, "optimal", 0.0) if proven else Plan(granted, split_points, "heuristic")


def brute_force(instance: Instance, whole_steps: bool = False) -> Plan:
    """Every subset of users, each with its best split points.

    Raises:
        ValueError: for more than 16 users.
    """
    if instance.num_users > BRUTE_FORCE_USERS:
        raise ValueError(f"num_users={instance.num_users} is outside [1, {BRUTE_FORCE_USERS}] of method='brute_force'")
    subsets = (np.arange(2**instance.num_users)[:, None] >> np.arange(instance.num_users)) & 1 == 1
    subsets = subsets[subsets.sum(axis=1) <= instance.largest_batch]
    granted = subsets[np.argmax(_subset_gains(_gain_table(instance, whole_steps), subsets))]
    return plan_for(instance, granted, whole_steps, status="optimal", gap=0.0)


def greedy(instance: Instance, whole_steps: bool = False) -> Plan:
    """Add the user with the best marginal gain until none is positive or the batch is full."""
    table = _gain_table(instance, whole_steps)
    granted = np.zeros(instance.num_users, dtype=bool)
    value = 0.0
    for batch in range(1, instance.largest_batch + 1):
        with_one_more = np.where(granted, -np.inf, table[batch][granted].sum() + table[batch])
        user = int(np.argmax(with_one_more))
        if with_one_more[user] <= value:
            break
        granted[user], value = True, with_one_more[user]
    return plan_for(instance, granted, whole_steps)


def genetic(
    instance: Instance,
    seed: int = 0,
    population: int = 100,
    generations: int = 200,
    mutation: float = 0.1,
    whole_steps: bool = False,
) -> Plan:
    """Genetic algorithm over sets of granted users: tournaments, uniform crossover, bit mutation, elitism.

    Tournaments compare utilities and never weigh by them, so their sign does not matter; a set above the batch limit
    loses random members. Sizes as in the authors' released code (PERDQN/), which does neither.

    Args:
        instance: the window.
        seed: of NumPy's generator.
        population: sets kept, at least 2.
        generations: rounds, at least 1.
        mutation: expected share of children whose one random bit is flipped, within [0, 1].
        whole_steps: restrict split points to whole steps.

    Raises:
        ValueError: if an option is outside its range.
    """
    whole_number("population", population, 2)
    whole_number("generations", generations, 1)
    finite_number("mutation", mutation, 0.0, 1.0)
    rng, users = np.random.default_rng(seed), instance.num_users
    table = _gain_table(instance, whole_steps)
    sets = _within_limit(rng.random((population, users)) < rng.random((population, 1)), instance.largest_batch, rng)
    fitness = _subset_gains(table, sets)
    for _ in range(generations):
        rivals = rng.integers(population, size=(2, 2, population))
        parents = np.where(fitness[rivals[:, 0]] >= fitness[rivals[:, 1]], rivals[:, 0], rivals[:, 1])
        children = np.where(rng.random((population, users)) < 0.5, sets[parents[0]], sets[parents[1]])
        flipped = np.flatnonzero(rng.random(population) < mutation)
        children[flipped, rng.integers(users, size=len(flipped))] ^= True
        children[0] = sets[np.argmax(fitness)]
        sets = _within_limit(children, instance.largest_batch, rng)
        fitness = _subset_gains(table, sets)
    return plan_for(instance, sets[np.argmax(fitness)], whole_steps)


def all_local(instance: Instance, whole_steps: bool = False) -> Plan:
    """Deny everyone: each image is made on its user's device."""
    return plan_for(instance, np.zeros(instance.num_users, dtype=bool), whole_steps)


def all_edge(instance: Instance, whole_steps: bool = False) -> Plan:
    """Grant everyone, in order of arrival until the batch is full."""
    granted = np.zeros(instance.num_users, dtype=bool)
    granted[np.argsort(instance.arrival_s, kind="stable")[: instance.largest_batch]] = True
    return plan_for(instance, granted, whole_steps)


def random(instance: Instance, seed: int = 0, whole_steps: bool = False) -> Plan:
    """Grant each user with probability one half, within the batch limit."""
    rng = np.random.default_rng(seed)
    granted = _within_limit(rng.random((1, instance.num_users)) < 0.5, instance.largest_batch, rng)[0]
    return plan_for(instance, granted, whole_steps)


def _gain_table(instance: Instance, whole_steps: bool) -> NDArray[np.float64]:
    """Gains by batch size 0 … largest and user, shape (B + 1, U); an empty batch gains nothing."""
    if instance.largest_batch == 0:
        return np.zeros((1, instance.num_users))
    gains, _ = grant_gains(instance, np.arange(1, instance.largest_batch + 1), whole_steps)
    return np.vstack([np.zeros(instance.num_users), gains])


def _subset_gains(table: NDArray[np.float64], sets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Utility above all-local of each set of users; sets (S, U) within the batch limit, returns (S,)."""
    return np.sum(table[sets.sum(axis=1)], axis=1, where=sets)


def _within_limit(sets: NDArray[np.bool_], limit: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Drop random members of sets that are larger than the limit; sets (S, U)."""
    over = np.flatnonzero(sets.sum(axis=1) > limit)
    if len(over):
        order = np.argsort(np.where(sets[over], rng.random(sets[over].shape), 2.0), axis=1)
        ranks = np.argsort(order, axis=1)
        sets[over] &= ranks < limit
    return sets


for _solver in (exact, early_exit, brute_force, genetic, greedy, all_local, all_edge, random):
    keep(_solver.__name__, _solver)

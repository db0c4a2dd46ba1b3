"""What is possible: exact in step time, bounded in seconds, for policies that know the future too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, sparse

from splitpoint.checks import a_row, a_sequence, finite_array, finite_number, instance_of, whole_number
from splitpoint.edge.arrivals import Path
from splitpoint.edge.observation import System
from splitpoint.edge.request import HOME, PARAMETERS, Decision, Edge, grant_value_s, some_edges
from splitpoint.edge.simulator import Simulation, is_a_policy
from splitpoint.edge.steady import best_steps
from splitpoint.offloading import SystemParameters

# --- the price bound -------------------------------------------------------------------------------------------------


def price_bound(
    edges: Sequence[Edge],
    requests: Path,
    horizon_s: float | None = None,
    parameters: SystemParameters = PARAMETERS,
) -> float:
    """More than any policy can gain over all-local by the horizon, clairvoyant ones included.

    With b inside, an edge does ``mu(b) = c b/(k b + h)`` steps a second and costs b seconds a second. For any price p
    of a step, by Lagrange: ``gain <= sum_i max_m [f_i(m) - p m]+ + integral of max_b [p mu(b) - b]``. The smallest over
    p is returned; with several edges each has its price and a request takes the best of them.

    Args:
        edges: at least one.
        requests: a path; its free compute counts.
        horizon_s: when the edges close; the path's own if left out.
        parameters: SystemParameters.

    Returns:
        Seconds.

    Raises:
        ValueError: if edges and path do not match.
    """
    system = System(some_edges(edges), parameters)
    instance_of("requests", requests, Path)
    horizon = requests.horizon_s if horizon_s is None else horizon_s
    finite_number("horizon_s", horizon, 0.0, open_end=True)
    if len(requests.capacity) != len(system.edges):
        raise ValueError(f"requests know {len(requests.capacity)} edges; valid is {len(system.edges)}")
    kinds: dict = {}
    for number, edge in enumerate(system.edges):
        kinds.setdefault((edge.latency, edge.max_batch, edge.transfer_s), []).append(number)
    members = list(kinds.values())
    pieces = [
        tuple(np.concatenate(parts) for parts in zip(*(requests.capacity[e].pieces(horizon) for e in group)))
        for group in members
    ]

    def bound(log_prices: ArrayLike) -> float:
        prices = np.exp(np.atleast_1d(log_prices))
        supply = sum(
            float(length @ _best_supply(system.edges[group[0]], price, share))
            for price, group, (length, share) in zip(prices, members, pieces)
        )
        nets = [
            best_steps(requests.alpha, requests.device_step_s, price, system.transfer_s[group[0]], parameters)[1]
            for price, group in zip(prices, members)
        ]
        return float(np.max(nets, axis=0).sum()) + supply

    if len(requests) == 0:
        return 0.0
    if len(members) == 1:
        return float(optimize.minimize_scalar(bound, bounds=np.log([1e-5, 2.0]), method="bounded").fun)
    start = optimize.minimize_scalar(
        lambda p: bound(np.full(len(members), p)), bounds=np.log([1e-5, 2.0]), method="bounded"
    )
    found = optimize.minimize(bound, np.full(len(members), start.x), method="Powell", options=dict(maxiter=20))
    return float(min(start.fun, found.fun))


def _best_supply(edge: Edge, price: float, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """``max_b [p mu(b) - b]`` over whole b at each share of free compute, seconds a second."""
    batch = np.arange(1, edge.max_batch + 1)
    speed = batch / edge.step_table_s()[1:]
    return np.maximum(np.max(price * np.multiply.outer(share, speed) - batch, axis=-1), 0.0)


def slot_bound(
    edge: Edge,
    requests: Path,
    slot_s: float = 1.0,
    pieces: int = 8,
    parameters: SystemParameters = PARAMETERS,
) -> float:
    """A tighter bound where compute or arrivals fluctuate: a price for every slot of time and every request's presence.

    A linear program over slots: request i is present ``z_it`` seconds of slot t, from its arrival on, and does
    ``y_it <= z_it c_t/(k + h)`` steps in them; a slot's steps are at most what its mean batch can do (``mu`` is
    concave, else its hull); presence costs its seconds, steps are worth ``f_i``, from above by tangents. Every run of
    the edge is a point of it, so its optimum is a bound; its multipliers are prices that vary in time.
    Where tangents are too coarse the price bound is returned.

    Args:
        edge: one edge.
        requests: a path.
        slot_s: longest slot; shorter ones end where free compute changes.
        pieces: tangents to each request's worth.
        parameters: SystemParameters.

    Returns:
        Seconds.

    Raises:
        ValueError: for a number outside its range, or if the program is not solved.
    """
    instance_of("edge", edge, Edge)
    instance_of("requests", requests, Path)
    finite_number("slot_s", slot_s, 0.0, open_end=True)
    whole_number("pieces", pieces, 1)
    instance_of("parameters", parameters, SystemParameters)
    horizon, capacity = requests.horizon_s, requests.capacity[0]
    cuts = np.unique(np.concatenate([np.arange(0, horizon, slot_s), capacity.start_s, [horizon]]))
    cuts = cuts[cuts <= horizon]
    length, share = np.diff(cuts), capacity.at(cuts[:-1])
    most = parameters.num_steps - parameters.min_split
    knots = np.linspace(1, most, pieces)
    worth = _worth_table(requests, knots, 0.0, parameters)
    rise = _worth_table(requests, knots + 0.5, 0.0, parameters) - _worth_table(requests, knots - 0.5, 0.0, parameters)
    longest = worth.max(axis=1)  # nobody stays longer than all its steps are worth
    first = np.searchsorted(cuts, requests.arrival_s, side="right") - 1
    last = np.minimum(np.searchsorted(cuts, requests.arrival_s + np.maximum(longest, 0)), len(length))
    counts = np.where(longest > 0, last - first, 0)
    owner = np.repeat(np.arange(len(requests)), counts)
    slot = np.concatenate([np.arange(a, a + n) for a, n in zip(first, counts)]) if counts.sum() else np.zeros(0, int)
    pairs, users = len(owner), len(requests)
    if pairs == 0:
        return 0.0
    here = np.minimum(cuts[slot + 1] - np.maximum(requests.arrival_s[owner], cuts[slot]), length[slot])
    # variables: z as a share of the time that it may be there (pairs), y steps (pairs), v worth (users)
    z, y, v = np.arange(pairs), pairs + np.arange(pairs), 2 * pairs + np.arange(users)
    blocks, upper = [], []

    def rows(matrix_rows, columns, values, right):
        blocks.append(sparse.csr_array((values, (matrix_rows, columns)), shape=(len(right), 2 * pairs + users)))
        upper.append(right)

    at = np.arange(pairs)
    fastest = share / edge.step_table_s()[1]
    rows(
        np.concatenate([at, at]),
        np.concatenate([y, z]),
        np.concatenate([np.ones(pairs), -here * fastest[slot]]),
        np.zeros(pairs),
    )
    follows = np.flatnonzero(owner[1:] == owner[:-1])  # present now only if present before
    n = np.arange(len(follows))
    rows(
        np.concatenate([n, n]),
        np.concatenate([z[follows + 1], z[follows]]),
        np.concatenate([np.ones(len(n)), -np.ones(len(n))]),
        np.zeros(len(n)),
    )
    for gradient, level in _hull(edge):
        rows(
            np.concatenate([slot, slot]),
            np.concatenate([y, z]),
            np.concatenate([np.ones(pairs), -gradient * share[slot] * here]),
            level * share * length,
        )
    user = np.arange(users)
    for knot in range(pieces):  # v <= tangent at the knot, in steps of the user; all below what the most steps give
        gradient, level = rise[:, knot], worth[:, knot] - rise[:, knot] * knots[knot]
        rows(
            np.concatenate([user, owner]),
            np.concatenate([v, y]),
            np.concatenate([np.ones(users), -gradient[owner]]),
            level,
        )
    rows(owner, y, np.ones(pairs), np.full(users, float(most)))
    cost = np.concatenate([here, np.full(pairs, edge.transfer_s / most), -np.ones(users)])
    limits = np.column_stack(
        [np.zeros(2 * pairs + users), np.concatenate([np.ones(pairs), np.full(pairs + users, np.inf)])]
    )
    found = optimize.linprog(
        cost, sparse.vstack(blocks).tocsr(), np.concatenate(upper), bounds=limits, method="highs-ipm"
    )
    if found.status != 0:
        raise ValueError(f"slot_s={slot_s}: the program was not solved ({found.message})")
    return min(float(-found.fun), price_bound([edge], requests, parameters=parameters))


def _hull(edge: Edge) -> list[tuple[float, float]]:
    """Lines whose minimum is the upper hull of steps a second against whole batches, ``gradient b + level``."""
    batch = np.arange(edge.max_batch + 1)
    speed = np.append(0.0, batch[1:] / edge.step_table_s()[1:])
    lines, at = [], 0
    while at < edge.max_batch:
        slopes = (speed[at + 1 :] - speed[at]) / (batch[at + 1 :] - at)
        gradient = float(slopes.max())
        if gradient <= 0:
            break
        lines.append((gradient, float(speed[at] - gradient * at)))
        at += 1 + int(np.flatnonzero(slopes == slopes.max())[-1])
    return [*lines, (0.0, float(speed.max()))]


def _worth_table(requests, steps, transfer_s, parameters) -> NDArray[np.float64]:
    """``f_i(m)``, shape (n, len(steps)), seconds."""
    return grant_value_s(requests.alpha[:, None], requests.device_step_s[:, None], steps, transfer_s, parameters)


# --- the clairvoyant in step time ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Clairvoyant:
    """The best plan in step time.

    Args:
        edge: of each request, shape (n,), -1 at home.
        steps: shape (n,).
        value_s: of the plan, seconds.
        bound_s: of the linear program; the same where it is whole by itself.
    """

    edge: NDArray[np.int64]
    steps: NDArray[np.int64]
    value_s: float
    bound_s: float


def clairvoyant(
    worth_s: ArrayLike,
    first_tick: ArrayLike,
    tick_cost_s: NDArray[np.float64] | Sequence[ArrayLike],
    steps: ArrayLike,
    whole: bool = True,
) -> Clairvoyant:
    """Who should run how many steps, if every tick's cost and every request's first tick are known: a circulation.

    ``max sum f_i(m) z_im - sum_s cost_s(B_s)``, B_s being the members at tick s. With one edge every column has one +1
    and one -1, so the linear program is whole by itself; with several edges, which share only "one place a request", it
    is a bound, and a mixed-integer program closes it.

    Args:
        worth_s: ``f_i(m)``, shape (n, m) for one edge or (edges, n, m), seconds.
        first_tick: that each request may join at, shape (n,) or (edges, n).
        tick_cost_s: of one more member at each tick, ``cost(b) - cost(b - 1)`` for b = 1 …, rising, shape (ticks, b);
            for several edges a list of them.
        steps: the choices of m in ticks, at least 1, shape (m,).
        whole: close the gap with several edges; otherwise the plan may be empty where the program is not whole.

    Returns:
        Clairvoyant.

    Raises:
        ValueError: for shapes that do not match, or a cost that falls with the batch.

    Source: total unimodularity of node-arc matrices; Ahuja, Magnanti and Orlin, Network flows, 1993.
    """
    worth = finite_array("worth_s", worth_s)
    if worth.ndim not in (2, 3):
        raise ValueError(f"worth_s has shape {worth.shape}; valid is (n, m) or (edges, n, m)")
    worth = worth[None] if worth.ndim == 2 else worth
    choices, first = _whole("steps", steps, 1), _whole("first_tick", first_tick, 0)
    edges, users, width = worth.shape
    if choices.ndim != 1 or first.shape not in ((users,), (edges, users)):
        raise ValueError(
            f"first_tick and steps have shapes {first.shape} and {choices.shape}; valid is ({users},) and (m,)"
        )
    first = np.broadcast_to(first, (edges, users))
    each = list(a_sequence("tick_cost_s", tick_cost_s)) if edges > 1 else [tick_cost_s]  # type: ignore[arg-type]
    costs = [finite_array("tick_cost_s", c) for c in each]
    if any(cost.ndim != 2 for cost in costs):
        raise ValueError(f"tick_cost_s has shape {costs[0].shape}; valid is (ticks, b) for each edge")
    if len(costs) != edges or width != len(choices):
        raise ValueError(f"worth_s has shape {worth.shape}; valid is ({len(costs)}, n, {len(choices)})")
    if any(np.any(np.diff(c, axis=1) < -1e-12) for c in costs):
        raise ValueError("tick_cost_s falls with the batch; valid are costs that rise")
    parts = [_circulation(worth[e], first[e], costs[e], choices) for e in range(edges)]
    objective = np.concatenate([part[0] for part in parts])
    upper = np.concatenate([part[1] for part in parts])
    flow = sparse.block_diag([part[2] for part in parts], format="csr")
    owner = [part[3] for part in parts]
    once = sparse.hstack(
        [
            sparse.csr_array((np.ones(len(o)), (o, np.arange(len(o)))), shape=(users, len(part[0])))
            for o, part in zip(owner, parts)
        ],
        format="csr",
    )
    limits = optimize.Bounds(0, upper)
    rules = [optimize.LinearConstraint(flow, 0, 0), optimize.LinearConstraint(once, -np.inf, 1)]
    found = optimize.milp(objective, constraints=rules, bounds=limits)
    bound = -float(found.fun)
    if edges > 1 and whole and np.any(np.abs(found.x - np.round(found.x)) > 1e-6):
        asks = np.concatenate([np.arange(len(part[0])) < len(part[3]) for part in parts]).astype(int)
        found = optimize.milp(objective, constraints=rules, bounds=limits, integrality=asks)
    edge, plan, offset = np.full(users, HOME), np.zeros(users, dtype=np.int64), 0
    for e, part in enumerate(parts):
        taken = np.flatnonzero(found.x[offset : offset + len(part[3])] > 0.5)
        edge[part[3][taken]], plan[part[3][taken]] = e, part[4][taken]
        offset += len(part[0])
    return Clairvoyant(edge, plan, -float(found.fun), bound)


def _whole(name: str, values: ArrayLike, minimum: int) -> NDArray[np.int64]:
    """The values as whole numbers; refuses fractions, and those below a minimum."""
    array = finite_array(name, values, minimum)
    if np.any(array != np.floor(array)):
        raise ValueError(f"{name} holds fractions; valid are whole numbers from {minimum} up")
    return array.astype(np.int64)


def _circulation(worth, first, cost, choices):
    """Objective, upper bounds, flow rows, owner and steps of the grant columns of one edge."""
    ticks, widest = cost.shape
    user, choice = np.nonzero((worth > 0) & (first[:, None] + choices <= ticks))
    start, end = first[user], first[user] + choices[choice]
    grants, columns = len(user), len(user) + ticks * widest
    # conservation at the node before tick s: members(s) - members(s - 1) = joining - leaving
    segment = grants + np.arange(ticks * widest)
    tick = np.repeat(np.arange(ticks), widest)
    row = np.concatenate([start, end, tick, tick + 1])
    column = np.concatenate([np.arange(grants), np.arange(grants), segment, segment])
    value = np.concatenate([-np.ones(grants), np.ones(grants), np.ones(len(tick)), -np.ones(len(tick))])
    flow = sparse.csr_array((value, (row, column)), shape=(ticks + 1, columns))
    objective = np.concatenate([-worth[user, choice], cost.ravel()])
    return objective, np.ones(columns), flow, user, choices[choice]


def segment_costs(edge: Edge, share: ArrayLike, steps_a_tick: int = 1) -> NDArray[np.float64]:
    """Cost of one more member at ticks of given free compute, shape (ticks, max_batch), seconds.

    With k and h it is ``(k (2 b - 1) + h)/c``; running more steps in a tick costs so many times as much.

    Raises:
        ValueError: for shares that are not positive, or fewer than one step.
    """
    instance_of("edge", edge, Edge)
    shares = a_row("share", share, 0.0, open_end=True)
    whole_number("steps_a_tick", steps_a_tick, 1)
    batch = np.arange(edge.max_batch + 1)
    rise = np.maximum.accumulate(np.diff(batch * edge.step_table_s()))
    return steps_a_tick * rise / shares[:, None]


@dataclass(frozen=True, eq=False)
class PlannedSteps:
    """A plan made beforehand, request by request.

    Args:
        edge, steps: shape (n,).
    """

    edge: NDArray[np.int64]
    steps: NDArray[np.int64]
    many, blind = True, True

    def decide(self, time_s, device_step_s, alpha, draw) -> Decision:
        """The plan."""
        return Decision(self.edge, self.steps)


def bracket(
    edge: Edge,
    requests: Path,
    rounds: int = 3,
    grid: int = 10,
    tries: int = 0,
    start: Any = None,
    seed: int = 0,
    parameters: SystemParameters = PARAMETERS,
) -> tuple[float, float]:
    """Between what the clairvoyant's gain in seconds lies: the best plan that was found, and the price bound.

    In seconds the ticks depend on the batches before them. So: take the ticks of a simulated plan, plan exactly on
    them, simulate that plan, take its ticks, and so on. Then small changes of the best plan are simulated side by side,
    and the best of them is kept, over and over.

    Args:
        edge: one edge.
        requests: a path.
        rounds: of planning, at least 1.
        grid: steps of a tick, at least 1; these plans are whole multiples.
        tries: rounds of small changes, 64 plans each.
        start: a policy whose run is the first plan; none if left out.
        seed: of the changes.
        parameters: SystemParameters.

    Returns:
        Lower and upper end, seconds.

    Raises:
        ValueError: for fewer than one round or step.
    """
    instance_of("edge", edge, Edge)
    instance_of("requests", requests, Path)
    whole_number("rounds", rounds, 1)
    whole_number("grid", grid, 1)
    whole_number("tries", tries, 0)
    whole_number("seed", seed, 0)
    if start is not None:
        is_a_policy("start", start)
    system = System((edge,), parameters)
    choices = np.arange(grid, system.most_steps + 1, grid)
    worth = _worth_table(requests, choices, edge.transfer_s, parameters)
    best, best_steps_of, batch_at = 0.0, np.zeros(len(requests), dtype=np.int64), None
    if start is not None:
        table = _played(system, [requests], start)
        best, best_steps_of, batch_at = float(table.gain_s.sum()), table.granted_steps.to_numpy(), _members(table)
    for _ in range(rounds):
        ticks = _ticks(edge, requests, batch_at, grid)
        share = requests.capacity[0].at(ticks[:-1])
        first = np.searchsorted(ticks, requests.arrival_s)
        plan = clairvoyant(worth, first, segment_costs(edge, share, grid), choices // grid)
        steps = np.where(plan.edge >= 0, plan.steps * grid, 0)
        table = _played(system, [requests], PlannedSteps(plan.edge, steps))
        batch_at = _members(table)
        if table.gain_s.sum() > best:
            best, best_steps_of = float(table.gain_s.sum()), steps
    rng = np.random.default_rng(seed)
    for _ in range(tries if len(requests) else 0):
        plans = np.repeat(best_steps_of[None], 64, axis=0)
        for row in plans[1:]:
            who = rng.integers(len(requests), size=rng.integers(1, 4))
            row[who] = np.clip(row[who] + rng.choice([-200, -20, -5, 5, 20, 60], size=len(who)), 0, system.most_steps)
        flat = PlannedSteps(np.where(plans.ravel() > 0, 0, HOME), plans.ravel())
        table = _played(system, [requests] * 64, flat)
        gains = np.bincount(table.replication, table.gain_s)
        if gains.max() > best:
            best, best_steps_of = float(gains.max()), plans[np.argmax(gains)]
    return best, price_bound([edge], requests, parameters=parameters)


def _played(system, paths, policy):
    simulation = Simulation(system, paths)
    simulation.play(policy, close=True)
    return simulation.table()


def _members(table):
    """Members after each event of a simulated edge: moments and numbers."""
    inside = table[table.edge >= 0].dropna(subset=["joined_s"])
    moments = np.concatenate([inside.joined_s, inside.left_s])
    change = np.concatenate([np.ones(len(inside)), -np.ones(len(inside))])
    order = np.argsort(moments, kind="stable")
    return moments[order], np.cumsum(change[order])


def _ticks(edge, requests, batch_at, grid) -> NDArray[np.float64]:
    """Boundaries of ticks of ``grid`` steps, shape (ticks + 1,), at the batches of a plan; a batch of 3 without one."""
    table, capacity, ticks = edge.step_table_s(), requests.capacity[0], [0.0]
    while ticks[-1] < requests.horizon_s:
        batch = min(3, edge.max_batch)
        if batch_at is not None and len(batch_at[0]):
            at = np.searchsorted(batch_at[0], ticks[-1], side="right") - 1
            batch = max(int(batch_at[1][at]) if at >= 0 else 0, 1)
        ticks.append(float(capacity.seconds(capacity.work(ticks[-1]) + grid * table[batch])))
    return np.array(ticks)

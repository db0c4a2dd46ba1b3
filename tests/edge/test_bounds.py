"""Exact against brute force, bounds against policies, the twin against its own dynamics."""

from itertools import product

import numpy as np
import pytest

from splitpoint.edge import (
    Decision,
    Edge,
    MarkovCapacity,
    Poisson,
    Recorded,
    Twin,
    bracket,
    clairvoyant,
    draw_paths,
    make_policy,
    price_bound,
    segment_costs,
    simulate,
    slot_bound,
)
from splitpoint.offloading import (
    AccuracyModel,
    Instance,
    LatencyModel,
    SystemParameters,
    evaluate,
    published_latency,
    solve,
)

EDGE = Edge(published_latency()[0].shared_by(16))


def cost_of(steps, first, tick_costs):
    members = np.zeros(len(tick_costs), dtype=int)
    for s, m in zip(first, steps):
        members[s : s + m] += 1
    if members.max(initial=0) > tick_costs.shape[1]:
        return np.inf
    return sum(tick_costs[t, :b].sum() for t, b in enumerate(members))


@pytest.mark.slow
def test_circulation_is_brute_force_on_a_thousand_small_instances():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        users, ticks, limit = rng.integers(2, 5), rng.integers(3, 7), rng.integers(1, 4)
        most = min(3, ticks)
        worth = np.cumsum(rng.uniform(-0.5, 2, size=(users, most)), axis=1)
        first = rng.integers(0, ticks, size=users)
        costs = np.sort(rng.uniform(0, 1.5, size=(ticks, limit)), axis=1)
        best = 0.0
        for steps in product(range(most + 1), repeat=users):
            if np.all(first + steps <= ticks):
                value = sum(worth[i, m - 1] for i, m in enumerate(steps) if m)
                best = max(best, value - cost_of(steps, first, costs))
        plan = clairvoyant(worth, first, costs, np.arange(1, most + 1))
        assert plan.value_s == pytest.approx(best, abs=1e-9) and plan.bound_s == pytest.approx(best, abs=1e-9)
        value = sum(worth[i, m - 1] for i, m in enumerate(plan.steps) if m)
        assert value - cost_of(plan.steps, first, costs) == pytest.approx(best, abs=1e-9)


def test_several_edges_are_brute_force_too_and_the_program_a_bound():
    rng = np.random.default_rng(1)
    for _ in range(40):
        users, ticks, most = 3, 4, 2
        worth = np.cumsum(rng.uniform(-0.5, 2, size=(2, users, most)), axis=2)
        first = rng.integers(0, ticks, size=(2, users))
        costs = [np.sort(rng.uniform(0, 1.5, size=(ticks, 2)), axis=1) for _ in range(2)]
        best = 0.0
        for choice in product([(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)], repeat=users):
            steps = np.array([[m if e == k and m else 0 for k, m in choice] for e in range(2)])
            if np.all(first + steps <= ticks):
                value = sum(worth[e, i, m - 1] for i, (e, m) in enumerate(choice) if m)
                best = max(best, value - sum(cost_of(steps[e], first[e], costs[e]) for e in range(2)))
        plan = clairvoyant(worth, first, costs, np.arange(1, most + 1))
        assert plan.value_s == pytest.approx(best, abs=1e-6) and plan.bound_s >= best - 1e-9


def test_all_at_once_the_circulation_is_the_early_exit_optimum():
    accuracy = AccuracyModel(0.0413 * 10, 7.144)
    parameters = SystemParameters(num_steps=20, min_split=8, max_batch=5, bandwidth_hz=1e15, accuracy=accuracy)
    rng = np.random.default_rng(2)
    for _ in range(10):
        instance = Instance(
            LatencyModel(0.02, 0.01), rng.uniform(0.02, 0.4, 5), rng.uniform(0, 60, 5), np.zeros(5), parameters
        )
        best = evaluate(instance, solve(instance, "early_exit"), "early_exit").utility
        local = evaluate(instance, solve(instance, "all_local")).utility
        steps = np.arange(1, 13)
        worth = instance.alpha[:, None] * (accuracy.pai(20 - steps) - accuracy.pai(20))
        worth += steps * instance.device_step_s[:, None]
        edge = Edge(instance.edge, max_batch=5)
        plan = clairvoyant(worth, np.zeros(5, int), segment_costs(edge, np.ones(12)), steps)
        assert plan.value_s <= best - local + 1e-6  # whole steps only
        assert plan.value_s >= 0.95 * (best - local)


@pytest.mark.parametrize("name", ["first_come", "selfish", "replanning", "posted_price", "fluid_resolving"])
def test_no_policy_passes_the_bounds(name):
    edge = Edge(EDGE.latency, MarkovCapacity((1.0, 0.3), 4.0))
    arrivals = Poisson(6.0, 15.0)
    policy = make_policy(name, [edge], arrivals)
    for path in draw_paths([edge], arrivals, 7, 4):
        gain = simulate([edge], [path], policy).gain_s.sum()
        assert gain <= price_bound([edge], path)
        assert gain <= slot_bound(edge, path, 1.0)


def test_bounds_of_a_lonely_request_are_what_it_can_gain():
    path = draw_paths([EDGE], Recorded((1.0,), 50.0), seed=3)[0]
    best = max(
        simulate([EDGE], [path], lambda o, m=m: Decision(0 if m else -1, m)).gain_s.sum() for m in range(0, 121, 5)
    )
    assert 0 < best <= slot_bound(EDGE, path, 1.0) <= 1.05 * best + 0.05
    assert best <= price_bound([EDGE], path)


def test_bound_of_two_edges_is_between_that_of_one_and_twice_it():
    (one,) = draw_paths([EDGE], Poisson(16.0, 20.0), 1)
    (two,) = draw_paths([EDGE, EDGE], Poisson(16.0, 20.0), 1)
    low, high = price_bound([EDGE], one), price_bound([EDGE, EDGE], two)
    assert low < high < 2 * low


def test_bracket_is_one():
    path = draw_paths([EDGE], Poisson(6.0, 10.0), 2)[0]
    low, high = bracket(EDGE, path, rounds=2)
    better, same = bracket(EDGE, path, rounds=2, tries=5)
    assert 0 < low <= better < high == same
    start = make_policy("replanning", [EDGE])
    assert bracket(EDGE, path, rounds=1, start=start)[0] >= simulate([EDGE], [path], start).gain_s.sum()


SMALL = dict(most_steps=3, max_batch=3, num_types=4, most_waiting=4, coarse=40)


@pytest.mark.parametrize("levels", [(4.0,), (2.0, 6.0)])
def test_twin_is_its_own_dynamics_played_out(levels):
    twin = Twin(1.0, levels, **SMALL)
    choice = twin.rule("myopic")
    gain, _ = twin.evaluate(choice)
    rng, state, level, time_s, total = np.random.default_rng(0), len(twin.left) - 1, 0, 0.0, []
    moves, arrivals = twin._moves
    for _ in range(60_000):
        seconds = twin.step_s[state, level]
        if twin.batch[state] == 0:
            came = int(rng.random() < twin.rate_hz * seconds)
            onward = level if came or len(levels) == 1 else 1 - level
        else:
            came = int(rng.choice(5, p=arrivals[state, level]))
            onward = int(rng.choice(len(levels), p=moves[state, level]))
        reward, state, level = -twin.batch[state] * seconds, twin.after_step[state], onward
        for waiting in range(came, 0, -1):
            kind = rng.integers(4)
            steps = choice[kind, state, level, waiting - 1]
            reward += twin.worth_s[kind, steps]
            state = twin.after_grant[state, steps]
        time_s += seconds
        total.append(reward)
    blocks = np.add.reduceat(total, np.arange(0, 60_000, 3_000)) / (time_s / 20)
    assert abs(blocks.mean() - gain) < 4 * blocks.std() / np.sqrt(20)


def test_nothing_beats_the_twins_optimum_and_improving_it_changes_nothing():
    twin = Twin(1.5, (2.0, 6.0), **SMALL)
    best, choice, value = twin.optimum()
    assert twin.evaluate(twin.improve(value))[0] == pytest.approx(best, rel=1e-9)
    rules = [("first_come", ()), ("selfish", ()), ("myopic", ()), ("price", 0.5), ("state_price", (0.2, 1.0))]
    for name, numbers in rules:
        gain, values = twin.evaluate(twin.rule(name, numbers))
        assert gain < best + 1e-9
        assert gain <= twin.evaluate(twin.improve(values))[0] + 1e-9
    rng = np.random.default_rng(0)
    for _ in range(5):  # one decision changed at random never helps
        other = choice.copy()
        at = tuple(rng.integers(n) for n in other.shape)
        other[at] = 0 if other[at] else int(twin.after_grant[at[1], 1] >= 0)
        assert twin.evaluate(other)[0] <= best + 1e-9


def test_twin_refuses_what_is_not_possible():
    twin = Twin(1.0, **SMALL)
    full = np.ones((4, len(twin.left), 3, 4), dtype=int)
    with pytest.raises(ValueError, match="no room"):
        twin.evaluate(full)
    with pytest.raises(ValueError, match="there are: first_come"):
        twin.rule("unknown")
    with pytest.raises(ValueError, match="rate_hz=0"):
        Twin(0.0)


def test_bounds_refuse_bad_input():
    path = draw_paths([EDGE], Poisson(2.0, 5.0), 0)[0]
    with pytest.raises(ValueError, match="valid is 2"):
        price_bound([EDGE, EDGE], path)
    with pytest.raises(ValueError, match="falls with the batch"):
        clairvoyant(np.ones((1, 1)), [0], [[2.0, 1.0]], [1])
    with pytest.raises(ValueError, match="worth_s has shape"):
        clairvoyant(np.ones((1, 2)), [0], [[1.0, 2.0]], [1])
    with pytest.raises(ValueError, match="rounds=0"):
        bracket(EDGE, path, rounds=0)

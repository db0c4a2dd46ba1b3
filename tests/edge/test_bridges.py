"""One definition of the dynamics: the fast simulator against the core, against closed forms, against one window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitpoint.edge import (
    PARAMETERS,
    ConstantCapacity,
    Decision,
    Edge,
    EdgeCore,
    MarkovCapacity,
    Path,
    Poisson,
    RecordedCapacity,
    Request,
    System,
    Users,
    draw_paths,
    make_policy,
    mean_inside,
    observe,
    simulate,
    static_price,
    steady_state,
)
from splitpoint.edge.bounds import PlannedSteps
from splitpoint.edge.observation import ArrivalRates
from splitpoint.edge.policies import PostedPrice
from splitpoint.offloading import Instance, LatencyModel, Plan, SystemParameters, evaluate, published_latency

EDGE = Edge(published_latency()[0].shared_by(16))


def path_of(arrival_s, capacity=None, horizon_s=1e6):
    count = len(arrival_s)
    capacity = capacity or ConstantCapacity().draw(np.random.default_rng(0), horizon_s)
    return Path(
        np.asarray(arrival_s, dtype=float),
        np.full(count, 0.1),
        np.full(count, 100.0),
        np.zeros(count),
        (capacity,),
        horizon_s,
    )


def drive(edge, path, decide, close):
    """The core, step by step: next event is an arrival or the end of the step under way."""
    core, capacity, log, now, end = EdgeCore(edge.max_batch), path.capacity[0], {}, 0.0, np.inf
    table, next_up, batch = edge.step_table_s(), 0, ()
    horizon = path.horizon_s if close else np.inf
    while next_up < len(path) or batch:
        arrival = path.arrival_s[next_up] if next_up < len(path) else np.inf
        if min(arrival, end) >= horizon:
            break
        if end <= arrival:
            now = end
            log |= {d.id: d for d in core.step_done(now)}
        else:
            now = arrival
            steps = decide(next_up, now, core)
            if steps:
                core.submit(next_up, steps)
            next_up += 1
        if not core.running:
            batch = core.next_batch(now)
            # the end in free machine-seconds, as the engine would meet it
            end = float(capacity.seconds(capacity.work(now) + table[len(batch)])) if batch else np.inf
    if close:
        log |= {d.id: d for d in core.close(horizon)}
    return log


def assert_same(table, log):
    on_edge = table[table.edge >= 0]
    assert set(on_edge.request) == set(log)
    for row in on_edge.itertuples():
        departure = log[row.request]
        assert departure.steps == row.steps
        assert departure.left_s == pytest.approx(row.left_s, abs=1e-6)
        joined = np.nan if departure.joined_s is None else departure.joined_s
        assert joined == pytest.approx(row.joined_s, abs=1e-6, nan_ok=True)


@settings(max_examples=60)
@given(
    gaps=st.lists(st.integers(1, 4000), min_size=1, max_size=25),
    steps=st.lists(st.integers(0, 40), min_size=25, max_size=25),
    limit=st.integers(1, 5),
    close=st.booleans(),
    shares=st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=4),
)
def test_simulator_is_the_core_event_by_event(gaps, steps, limit, close, shares):
    edge = Edge(LatencyModel(0.0111, 0.0173), max_batch=limit)
    capacity = RecordedCapacity(0.777 * np.arange(len(shares)), shares).draw(np.random.default_rng(0), 1.0)
    arrival = np.cumsum(gaps) / 1000 * 0.2371
    path = path_of(arrival, capacity, horizon_s=float(arrival[-1] + 0.1)) if close else path_of(arrival, capacity)
    plan = np.array(steps[: len(gaps)])
    table = simulate([edge], [path], PlannedSteps(np.where(plan > 0, 0, -1), plan), close=close)
    assert_same(table, drive(edge, path, lambda i, now, core: plan[i], close))


@pytest.mark.parametrize("name", ["first_come", "replanning", "myopic", "fluid_resolving", "posted_price"])
def test_policies_decide_alike_in_simulator_and_core(name):
    edge = Edge(EDGE.latency, MarkovCapacity((1.0, 0.4), 3.0))
    arrivals = Poisson(9.0, 12.0)
    (path,) = draw_paths([edge], arrivals, seed=5)
    policy, rates = make_policy(name, [edge], arrivals), ArrivalRates()
    table = simulate([edge], [path], policy, close=False)

    def decide(i, now, core):
        request = Request(i, now, path.device_step_s[i], path.alpha[i])
        free = [float(path.capacity[0].at(now))]
        seen = observe(request, [core], free, rates.seen(now), System((edge,)), path.draw[i])
        return int(policy(seen).steps)

    assert_same(table, drive(edge, path, decide, close=False))
    assert (table.edge >= 0).sum() > 20


def test_replications_side_by_side_are_the_runs_one_by_one():
    edges = [EDGE, Edge(published_latency()[0].shared_by(4), transfer_s=0.1)]
    paths = draw_paths(edges, Poisson(8.0, 10.0), seed=3, replications=4)
    policy = make_policy("replanning", edges)
    together = simulate(edges, paths, policy)
    for number, path in enumerate(paths):
        alone = simulate(edges, [path], policy).drop(columns="replication")
        here = together[together.replication == number].drop(columns="replication").reset_index(drop=True)
        assert alone.equals(here)
    assert set(together.edge) == {-1, 0, 1}


def test_policies_that_do_not_look_play_faster_but_the_same():
    edges = [EDGE, EDGE, Edge(published_latency()[1].shared_by(8))]
    arrivals = Poisson(12.0, 20.0)
    paths = draw_paths(edges, arrivals, seed=4, replications=3)
    policy = make_policy("posted_price", edges, arrivals)

    class Looking:
        many = True

        def __call__(self, observation):
            return policy(observation)

    fast, slow = simulate(edges, paths, policy), simulate(edges, paths, Looking())
    np.testing.assert_allclose(fast.gain_s, slow.gain_s, atol=1e-9)
    assert fast.edge.equals(slow.edge)


def test_all_at_once_is_a_window_with_early_exit():
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 121, size=9)
    parameters = SystemParameters(transmission="corrected", window_s=0.0)
    instance = Instance(EDGE.latency, np.full(9, 0.1), np.full(9, 100.0), np.zeros(9), parameters)
    latency = evaluate(instance, Plan(np.ones(9, bool), 200.0 - steps), "early_exit").latency_s
    table = simulate([EDGE], [path_of(np.zeros(9))], PlannedSteps(np.zeros(9, int), steps))
    on_edge = latency - (200 - steps) * 0.1 - 9 * parameters.transfer_s_per_user
    np.testing.assert_allclose(table.left_s, on_edge, rtol=1e-12)
    assert table.joined_s.eq(0).all()


def test_one_at_a_time_waits_as_in_an_md1_queue():
    edge = Edge(LatencyModel(0.01, 0.0), max_batch=1)
    horizon, rate, work = 6_000.0, 1.4, 0.5
    paths = draw_paths([edge], Poisson(rate, horizon), seed=1, replications=6)

    class Fifty:
        blind = True

        def decide(self, time_s, device_step_s, alpha, draw):
            return Decision(np.zeros(len(alpha), int), np.full(len(alpha), 50))

    table = simulate([edge], paths, Fifty(), close=False)
    waits = (table.joined_s - table.arrival_s).groupby(table.replication).mean()
    load = rate * work
    expected = load * work / (2 * (1 - load))  # Pollaczek and Khinchine, no spread of work
    assert abs(waits.mean() - expected) < 4 * waits.std() / np.sqrt(len(waits)) + 1e-3
    assert waits.std() < 0.2 * expected


def test_a_price_keeps_the_edge_as_full_as_the_closed_form_says():
    rate, horizon = 6.0, 1_000.0
    price = static_price(EDGE, rate)
    policy = PostedPrice(np.array([price]), System((EDGE,)))
    table = simulate([EDGE], draw_paths([EDGE], Poisson(rate, horizon), 2, 6), policy, close=False)
    inside = ((table.left_s - table.joined_s).groupby(table.replication).sum() / horizon).to_numpy()
    work = table.steps.sum() / horizon / 6
    expected, _ = mean_inside(EDGE, work)
    assert abs(inside.mean() - expected) < 4 * inside.std(ddof=1) / np.sqrt(6) + 0.01 * expected


def test_the_price_is_the_best_of_all():
    gains = {}
    for factor in (0.6, 1.0, 1.6):
        policy = PostedPrice(np.array([factor * static_price(EDGE, 8.0)]), System((EDGE,)))
        paths = draw_paths([EDGE], Poisson(8.0, 200.0), 3, 6)
        gains[factor] = simulate([EDGE], paths, policy).gain_s.sum()
    assert gains[1.0] == max(gains.values())


def test_marginal_cost_is_the_derivative():
    for work in (1.0, 100.0, 300.0):
        (low, _), (_, slope), (high, _) = (mean_inside(EDGE, w) for w in (0.999 * work, work, 1.001 * work))
        assert slope == pytest.approx((high - low) / (0.002 * work), rel=1e-3)
    assert mean_inside(EDGE, 1e6) == (np.inf, np.inf)
    assert mean_inside(EDGE, 0.0) == (0.0, pytest.approx(float(EDGE.step_table_s()[1])))
    assert steady_state(EDGE, 100.0).sum() == pytest.approx(1)


def test_gain_is_utility_over_all_local_and_the_columns_add_up():
    arrivals = Poisson(8.0, 30.0)
    table = simulate([EDGE], arrivals, make_policy("first_come", [EDGE]), seed=1)
    local = simulate([EDGE], arrivals, make_policy("all_local", [EDGE]), seed=1)
    assert local.gain_s.eq(0).all() and local.edge.eq(-1).all()
    np.testing.assert_allclose(table.gain_s, table.utility_s - local.utility_s, atol=1e-9)
    on = table[table.edge >= 0]
    assert (on.joined_s.dropna() >= on.arrival_s[on.joined_s.notna()]).all()
    assert (on.left_s >= on.joined_s.fillna(0)).all() and (on.steps <= on.granted_steps).all()
    expected = on.left_s + PARAMETERS.transfer_s_per_user * (on.steps > 0) + (200 - on.steps) * on.device_step_s
    np.testing.assert_allclose(on.done_s, expected)


def test_pooled_is_sixteen_times_as_fast_as_one():
    one, pooled = Edge(published_latency()[0]), EDGE
    np.testing.assert_allclose(one.step_table_s(), 16 * pooled.step_table_s())


def test_seeds_give_the_same_path_and_other_seeds_others():
    first, again, other = (draw_paths([EDGE], Poisson(8.0, 30.0, Users()), seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first.arrival_s, again.arrival_s) and np.array_equal(first.alpha, again.alpha)
    assert len(first) != len(other) or not np.array_equal(first.arrival_s, other.arrival_s)

"""Policies: each does what it says, all are on one list, learned curves come back as they were saved."""

import numpy as np
import pytest

from splitpoint.edge import (
    ArrivalRates,
    Decision,
    Edge,
    EdgeCore,
    LearnedCurve,
    Poisson,
    Request,
    System,
    draw_paths,
    grant_value_s,
    load_curve,
    make_policy,
    observe,
    policies,
    register_policy,
    save_curve,
    simulate,
    static_prices,
)
from splitpoint.edge.policies import (
    AdaptivePrice,
    DriftPlusPenalty,
    StatePrice,
    WindowPlan,
    own_and_others_s,
    tune_state_price,
)
from splitpoint.offloading import LatencyModel, published_latency

EDGE = Edge(published_latency()[0].shared_by(16))


def seen(steps_inside=(), joined=True, device_step_s=0.2, alpha=200.0, rate=8.0, edges=(EDGE,)):
    cores = [EdgeCore(edge.max_batch) for edge in edges]
    for number, steps in enumerate(steps_inside):
        cores[0].submit(number, steps)
    if joined:
        cores[0].next_batch(0.0)
    request = Request("new", 1.0, device_step_s, alpha)
    return observe(request, cores, [1.0] * len(edges), np.full(3, rate), System(tuple(edges)))


@pytest.mark.parametrize(
    "name",
    "all_local first_come selfish myopic replanning window_plan window_plan_counting posted_price fluid_resolving "
    "bayes_selector hindsight_duals mirror_descent rollout".split(),
)
def test_every_policy_plays(name):
    arrivals = Poisson(6.0, 4.0)
    table = simulate([EDGE], arrivals, make_policy(name, [EDGE], arrivals), seed=2)
    assert len(table) > 5 and (table.granted_steps <= 120).all()
    assert table.gain_s.sum() > 0 or name == "all_local"


def test_every_policy_that_is_tuned_plays():
    arrivals = Poisson(6.0, 4.0)
    tuned = tune_state_price(System((EDGE,)), arrivals, replications=2)
    adaptive = AdaptivePrice(np.array([2.0, 16.0]), np.array([[0.0, 1.0], [tuned.fixed_s, tuned.slope]]))
    for policy in (tuned, adaptive, DriftPlusPenalty(100.0)):
        assert simulate([EDGE], arrivals, policy, seed=2).gain_s.sum() > 0


def test_replanning_charges_what_it_causes():
    inside = [30, 12, 55]
    own, others = own_and_others_s(seen(inside))
    table = EDGE.step_table_s()

    def completion(steps):  # of all, everyone leaving when done
        total, now = 0.0, 0.0
        for step in range(1, max(steps) + 1):
            now += table[sum(m >= step for m in steps)]
            total += sum(now for m in steps if m == step)
        return total

    for m in (1, 12, 40, 90):
        assert own[0, m - 1] + others[0, m - 1] == pytest.approx(completion([*inside, m]) - completion(inside))


def test_best_answers_are_the_best_of_all():
    observation = seen([60] * 5)
    own, others = own_and_others_s(observation)
    steps = np.arange(1, 121)
    value = grant_value_s(200.0, 0.2, steps, EDGE.transfer_s)
    for name, cost in (("selfish", own[0]), ("replanning", (own + others)[0])):
        decision = make_policy(name, [EDGE])(observation)
        assert decision.steps == steps[np.argmax(value - cost)] and decision.edge == 0


def test_nobody_enters_a_full_edge_but_at_a_posted_price():
    full = seen([50] * 18)
    for name in ("first_come", "selfish", "myopic", "replanning"):
        assert make_policy(name, [EDGE])(full).edge == -1
    assert make_policy("posted_price", [EDGE])(full).edge == 0


def test_fluid_prices_an_edge_whose_larger_batches_do_no_more_work():
    """On a line through the origin a step more costs the same in any batch, up to all that the edge does."""
    level = Edge(LatencyModel(0.1, 0.0))
    policy = make_policy("fluid_resolving", [level])
    with np.errstate(all="raise"):
        for inside in ((), (50,), (40, 50)):  # of the hundred that it does in the next ten seconds
            price = policy.prices(seen(inside, rate=0.0, edges=(level,)))
            assert price == pytest.approx(0.1, rel=0.01)
        assert policy.prices(seen((60, 60), rate=0.0, edges=(level,))) > 0.1, "more than it does"


def test_fluid_charges_more_for_more_work_and_more_arrivals():
    policy = make_policy("fluid_resolving", [EDGE])
    empty, busy, rush = seen(), seen([100] * 10), seen(rate=30.0)
    assert policy.prices(empty) < policy.prices(busy)
    assert policy.prices(empty) < policy.prices(rush)


def test_mirror_descent_learns_a_price_from_what_is_asked():
    policy = make_policy("mirror_descent", [EDGE])
    first = policy._price.copy()
    for _ in range(20):
        policy(seen(alpha=0.0))  # the same moment: much asked, nothing done
    assert policy._price > first
    policy.reset(3)
    assert policy._price.shape == (3, 1)


def test_two_alike_edges_share_and_a_far_one_gets_less():
    alike = static_prices(System((EDGE, EDGE)), 12.0)
    assert alike[0] == alike[1]
    edges = [EDGE, Edge(published_latency()[0].shared_by(4))]
    arrivals = Poisson(12.0, 60.0)
    table = simulate(edges, arrivals, make_policy("posted_price", edges, arrivals), seed=1)
    served = table[table.edge >= 0].edge.value_counts()
    assert served[0] > served[1] > 0


def test_window_plan_is_the_exact_static_plan_on_an_empty_edge():
    from splitpoint.offloading import Instance, SystemParameters, evaluate, solve

    path = draw_paths([EDGE], Poisson(12.0, 1.0), seed=6)[0]
    table = simulate([EDGE], [path], WindowPlan(), close=False)
    parameters = SystemParameters(transmission="corrected")
    instance = Instance(EDGE.latency, path.device_step_s, path.alpha, path.arrival_s, parameters)
    plan = solve(instance, "exact")
    assert np.array_equal(plan.granted, table.edge >= 0)
    planned = 200 - plan.split_points
    np.testing.assert_allclose(table.granted_steps, planned, atol=1)
    assert evaluate(instance, plan).utility > 0


def test_denied_users_may_be_charged_for_the_window():
    (path,) = draw_paths([EDGE], Poisson(40.0, 10.0), seed=6)
    free, charged = (simulate([EDGE], [path], WindowPlan(charge_waiting=c)) for c in (False, True))
    at_home = (free.edge < 0) & (free.arrival_s < 10)
    lost = (free.gain_s - charged.gain_s)[at_home]
    assert (lost >= 0).all() and lost.mean() == pytest.approx(0.5, abs=0.2)


def test_learned_curves_come_back_and_decide_alike(tmp_path):
    rng = np.random.default_rng(0)
    names = ("free", "batch", "work_left", "rate_10")
    hidden = (rng.normal(size=(8, 4)), np.zeros(8))
    price = LearnedCurve((hidden[0], 0.01 * rng.normal(size=(2, 8))), (hidden[1], np.array([0.1, 0.05])), names)
    knots = LearnedCurve(
        (hidden[0], np.zeros((3, 8))),
        (hidden[1], np.array([1.0, 3.0, 9.0])),
        names,
        output="curve",
        knots=(30.0, 60.0, 120.0),
        activation="relu",
        mean=np.zeros(4),
        scale=np.ones(4),
        base="marginal",
    )
    for curve in (price, knots):
        save_curve(tmp_path / "curve.safetensors", curve)
        back = load_curve(tmp_path / "curve.safetensors")
        first, second = (simulate([EDGE], Poisson(8.0, 10.0), policy, seed=1) for policy in (curve, back))
        assert first.equals(second) and (first.edge == 0).any()
    assert isinstance(make_policy(str(tmp_path / "curve.safetensors"), [EDGE]), LearnedCurve)
    flat = LearnedCurve((np.zeros((2, 1)),), (np.array([0.0, 0.1]),), ("free",))
    same = simulate([EDGE], Poisson(4.0, 10.0), StatePrice(0.1, 0.0), seed=1)
    assert simulate([EDGE], Poisson(4.0, 10.0), flat, seed=1).equals(same)


def test_learned_curves_that_are_none(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no learned curve"):
        load_curve(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="weights have shapes"):
        LearnedCurve((np.zeros((3, 1)),), (np.zeros(3),), ("free",))
    with pytest.raises(ValueError, match="output='x'"):
        LearnedCurve((), (), ("free",), output="x")
    with pytest.raises(ValueError, match="there are: free"):
        seen().features(["height"])


def test_the_list_of_policies_is_open():
    assert len(policies()) >= 16
    register_policy("ten_steps", lambda system, arrivals: lambda observation: Decision(0, 10))
    try:
        table = simulate([EDGE], Poisson(4.0, 5.0), make_policy("ten_steps", [EDGE]))
        assert table.granted_steps.eq(10).all()
    finally:
        from splitpoint.edge.policies import _MAKERS

        del _MAKERS["ten_steps"]
    with pytest.raises(ValueError, match="there are: all_local"):
        make_policy("unknown", [EDGE])
    with pytest.raises(ValueError, match="name='first_come' is one of the package's own policies"):
        register_policy("first_come", lambda system, arrivals: lambda observation: Decision())


@pytest.mark.parametrize("decision", [Decision(1, 10), Decision(0, 121)])
def test_impossible_decisions_are_refused(decision):
    with pytest.raises(ValueError, match="outside"):
        simulate([EDGE], Poisson(4.0, 5.0), lambda observation: decision)


def test_rates_forget():
    rates = ArrivalRates()
    for time_s in np.arange(0, 60, 0.125):
        busy = rates.seen(time_s)
    np.testing.assert_allclose(busy, 8, rtol=0.1)
    assert rates.seen(90.0)[0] < 1.1 and rates.seen(90.0)[2] > 3

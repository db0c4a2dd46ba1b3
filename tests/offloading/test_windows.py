from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitpoint.learning import Scenario, Windows, stack_windows
from splitpoint.offloading import (
    SystemParameters,
    TableLatency,
    evaluate,
    published_profiles,
    sample_instance,
    solve,
)
from splitpoint.offloading.solvers import plan_for


@given(st.integers(0, 2**32 - 1), st.sampled_from(["released", "corrected"]), st.integers(1, 18))
@settings(max_examples=25)
def test_many_windows_agree_with_one_at_a_time(seed, transmission, max_batch):
    rng = np.random.default_rng(seed)
    windows = Scenario(
        (1, 20), (2, 32), parameters=SystemParameters(transmission=transmission, max_batch=max_batch)
    ).sample(8, rng)
    granted = windows.present & (rng.random(windows.alpha.shape) < 0.5)
    granted &= np.cumsum(granted, axis=1) <= max_batch
    exact, share = windows.exact(), windows.optimality(granted)
    outcomes = windows.outcomes(granted | ~windows.present)  # granting the padding is granting nobody
    for row in range(8):
        instance = windows.instance(row)
        users = slice(instance.num_users)
        outcome = evaluate(instance, plan_for(instance, granted[row, users]))
        best, local = (evaluate(instance, solve(instance, name)).utility for name in ("exact", "all_local"))
        assert outcomes["utility_s"][row] == pytest.approx(outcome.utility, rel=1e-9)
        assert outcomes["accuracy"][row] == pytest.approx(outcome.accuracy.mean(), rel=1e-9)
        assert outcomes["latency_s"][row] == pytest.approx(outcome.latency_s.mean(), rel=1e-9)
        assert outcomes["reward"][row] == pytest.approx(outcome.reward, rel=1e-9)
        assert outcomes["share_granted"][row] == pytest.approx(granted[row, users].mean())
        assert evaluate(instance, plan_for(instance, exact[row, users])).utility == pytest.approx(best, rel=1e-12)
        if best - local > 1e-6:
            assert share[row] == pytest.approx((outcome.utility - local) / (best - local), abs=1e-6)


def test_where_nothing_can_be_gained_only_nothing_is_optimal():
    windows = Scenario((3, 3), (4, 4)).sample(1, np.random.default_rng(0))
    slow = Windows(
        windows.slope_s * 1e3,
        windows.intercept_s + 1,
        windows.device_step_s,
        windows.alpha,
        windows.waiting_s,
        windows.num_users,
    )
    nobody, everybody = np.zeros((1, 3), bool), np.ones((1, 3), bool)
    assert slow.optimality(nobody)[0] == 1 and slow.optimality(everybody)[0] == -np.inf


def test_drawn_windows_follow_the_released_rules():
    windows = Scenario((12, 12), (8, 8)).sample(4000, np.random.default_rng(0))
    drawn = stack_windows([sample_instance(12, 8, np.random.default_rng(s)) for s in range(2000)])
    assert np.all(np.diff(windows.waiting_s, axis=1) <= 0)
    for name in ("device_step_s", "alpha", "waiting_s"):
        ours, theirs = getattr(windows, name), getattr(drawn, name)
        error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
        assert np.all(np.abs(ours.mean(0) - theirs.mean(0)) < 5 * error), name
    assert windows.slope_s == pytest.approx(drawn.slope_s[0])


def test_users_have_the_devices_and_the_window_that_the_scenario_names():
    scenario = Scenario((20, 20), (8, 8), devices=(2, 5), parameters=SystemParameters(window_s=3.0))
    windows, profiles = scenario.sample(200, np.random.default_rng(0)), published_profiles()
    steps, counts = np.unique(windows.device_step_s, return_counts=True)
    assert steps == pytest.approx(profiles.device_steps_s[[2, 5]])
    assert counts / 4000 == pytest.approx(profiles.weights[[2, 5]] / profiles.weights[[2, 5]].sum(), abs=0.03)
    assert windows.waiting_s.min() < 0.1 and 2.9 < windows.waiting_s.max() <= 3


def test_stacked_instances_come_back():
    drawn = [sample_instance(users, 4, np.random.default_rng(users)) for users in (1, 5, 20)]
    windows = stack_windows(drawn)
    for row, instance in enumerate(drawn):
        back = windows.instance(row)
        for name in ("device_step_s", "alpha", "arrival_s"):
            assert getattr(back, name) == pytest.approx(getattr(instance, name))


def test_instances_of_different_systems_do_not_stack():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="SystemParameters"):
        stack_windows([sample_instance(2, 4, rng), sample_instance(2, 4, rng, SystemParameters(max_batch=3))])


def test_a_bent_edge_shows_agents_the_line_through_its_ends():
    bent = TableLatency((1.0, 2.0, 5.0), (0.10, 0.11, 0.30))
    windows = stack_windows([replace(sample_instance(5, 4, np.random.default_rng(0)), edge=bent)])
    np.testing.assert_allclose([windows.slope_s[0], windows.intercept_s[0]], [0.05, 0.05])
    assert windows[np.array([0])].intercept_s == windows.intercept_s

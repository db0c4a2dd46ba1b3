import shutil

import numpy as np
import pytest
from hypothesis import given

from splitpoint.files import data_path
from splitpoint.offloading import (
    Instance,
    LatencyModel,
    Plan,
    SystemParameters,
    check_plan,
    evaluate,
    published_latency,
    published_profiles,
    released_instance,
    sample_instance,
    solve,
)
from splitpoint.offloading.problem import share_of_gain

from .strategies import instances


@pytest.fixture
def window():
    return Instance(
        LatencyModel(0.01, 0.02), np.array([0.5, 0.7, 0.9]), np.array([60.0, 90, 40]), np.array([0.1, 0.4, 0.9])
    )


@pytest.mark.parametrize(
    "method, reward", [("exact", -0.10661001151387), ("all_edge", -0.24500534908804), ("all_local", -1.03084724154279)]
)
def test_rewards_of_the_released_environment(method, reward):
    instance = released_instance(12, 16, 1234)
    assert evaluate(instance, solve(instance, method)).reward == pytest.approx(reward, abs=1e-12)


def test_static_evaluation_by_hand(window):
    outcome = evaluate(window, Plan(np.array([True, False, True]), np.array([80.0, 200, 120])))
    edge_step, transfer = 0.01 * 2 + 0.02, 4400216 * 10 / 100e6 * 2
    latency = [
        120 * edge_step + transfer + 80 * 0.5 + 0.9,
        200 * 0.7 + 0.6,
        80 * edge_step + transfer + 120 * 0.9 + 0.1,
    ]
    pai = 1 / (1 + np.exp(-0.0413 * (np.array([80, 200, 120]) - 71.44)))
    np.testing.assert_allclose(outcome.latency_s, latency)
    np.testing.assert_allclose(outcome.accuracy, pai)
    assert outcome.utility == pytest.approx(60 * pai[0] + 90 * pai[1] + 40 * pai[2] - sum(latency))
    assert outcome.reward == pytest.approx(0.1 * outcome.utility / 3)


def test_early_exit_by_stepping_through_the_batch(window):
    splits = np.array([80.0, 150, 120])
    outcome = evaluate(window, Plan(np.ones(3, bool), splits), "early_exit")
    left, edge_s = 200 - splits, np.zeros(3)
    for step in range(1, 121):
        inside = left >= step
        edge_s[inside] += 0.01 * inside.sum() + 0.02
    transfer = 3 * window.parameters.transfer_s_per_user
    np.testing.assert_allclose(
        outcome.latency_s, edge_s + transfer + splits * window.device_step_s + 1 - window.arrival_s
    )


@given(instances())
def test_early_exit_never_costs_more_than_static(instance):
    plan = solve(instance, "random", seed=1)
    assert evaluate(instance, plan, "early_exit").utility >= evaluate(instance, plan).utility - 1e-9


def test_transmission():
    assert SystemParameters().transfer_s_per_user == pytest.approx(0.4400216)
    assert SystemParameters(transmission="corrected").transfer_s_per_user == pytest.approx(0.004400216)


def test_sampling_follows_the_released_rules():
    rng = np.random.default_rng(0)
    windows = [sample_instance(20, 8, rng) for _ in range(400)]
    profiles = published_profiles()
    devices = np.concatenate([w.device_step_s for w in windows])
    counts = np.array([np.isclose(devices, step).sum() for step in profiles.device_steps_s])
    assert counts.sum() == 8000
    np.testing.assert_allclose(counts / 8000, profiles.weights, atol=0.02)
    for window in windows:
        assert np.all(np.diff(window.arrival_s) >= 0)
        assert window.edge.step_latency_s(1) == pytest.approx((36.4604372881356 + 13.766662146892603) / 8000)
        low = (window.device_step_s - window.edge.step_latency_s(20)) / 0.01
        assert np.all((window.alpha >= low) & (window.alpha <= 250 * window.device_step_s))


def test_share_of_gain_by_hand():
    shares = share_of_gain([5.0, 0.0, -1.0, -1e-15], [[10.0], [1e-15]], -3.0)
    np.testing.assert_allclose(shares, [[0.5, 0, -0.1, -1e-16], [1, 1, -np.inf, 1]])
    assert share_of_gain(3, 4, 100).shape == ()


def test_published_lines_are_checked_against_their_sidecar(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "latency_profiles"
    shutil.copytree(data_path("latency_profiles"), folder)
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    assert published_latency.__wrapped__() == published_latency()
    folder.joinpath("published.csv").write_text("device_index,slope_ms_per_request,intercept_ms\n0,1,1\n")
    with pytest.raises(ValueError, match="published.csv does not match the checksum"):
        published_latency.__wrapped__()


def test_requests_come_during_the_whole_window():
    window = sample_instance(200, 8, np.random.default_rng(0), SystemParameters(window_s=3.0))
    assert window.arrival_s.min() < 0.3 and 2.7 < window.arrival_s.max() <= 3


def test_sampling_is_seeded():
    first, again = (sample_instance(5, 4, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first.alpha, again.alpha)


@pytest.mark.parametrize(
    "granted, splits, message",
    [
        ([True, True, False], [79, 100, 200], r"split_points holds 79 .*\[80, 200\]"),
        ([True, True, False], [80, 201, 200], "split_points holds 201"),
        ([True, True, False], [80, 100, 150], "num_steps=200 for denied"),
        ([True, True], [80, 100], "valid is bool and float"),
        ([1, 1, 0], [80, 100, 200], "valid is bool"),
        ([True, True, False], [80, np.nan, 200], "split_points holds nan"),
    ],
)
def test_infeasible_plans_are_refused(window, granted, splits, message):
    with pytest.raises(ValueError, match=message):
        check_plan(window, Plan(np.array(granted), np.array(splits, dtype=float)))


def test_batch_limit_is_checked(window):
    small = Instance(window.edge, window.device_step_s, window.alpha, window.arrival_s, SystemParameters(max_batch=2))
    with pytest.raises(ValueError, match=r"3 users; the edge admits \[0, 2\]"):
        evaluate(small, Plan(np.ones(3, bool), np.full(3, 100.0)))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sample_instance(0, 4, np.random.default_rng()), r"num_users=0 .*\[1, inf\)"),
        (lambda: sample_instance(4, 0, np.random.default_rng()), "num_edge_gpus=0"),
        (lambda: sample_instance(4, 4, 1234), "default_rng"),
        (lambda: SystemParameters(min_split=201), r"min_split=201 .*\[0, 200\]"),
        (lambda: SystemParameters(num_steps=1.5), r"num_steps=1.5 is not a whole number in \[1, inf\)"),
        (lambda: SystemParameters(min_split=80.5), r"min_split=80.5 is not a whole number in \[0, 200\]"),
        (lambda: SystemParameters(bandwidth_hz=0), "bandwidth_hz=0"),
        (lambda: SystemParameters(transmission="magic"), "released, corrected"),
        (lambda: Instance(LatencyModel(1, 1), [], [], []), "at least one user"),
        (lambda: Instance(LatencyModel(1, 1), [1, 2], [1, 2], [0.5]), "lengths 2, 2 and 1"),
        (lambda: Instance(LatencyModel(1, 1), [np.nan], [1], [0.5]), "device_step_s holds nan"),
        (lambda: Instance(LatencyModel(1, 1), [0.0], [1], [0.5]), "device_step_s holds 0.0"),
        (lambda: Instance(LatencyModel(1, 1), [1], [1], [1.5]), r"arrival_s holds 1.5; valid is \[0, 1.0\]"),
        (lambda: evaluate(released_instance(2, 4, 0), solve(released_instance(2, 4, 0)), "late"), "static, early_exit"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

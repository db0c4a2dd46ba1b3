from dataclasses import replace

import numpy as np
import pytest

from splitpoint.edge.window_game import (
    _value,
    draw_windows,
    first_come,
    myopic,
    rolling,
    run_online,
    threshold,
    tune_threshold,
    users_still_to_come,
)
from splitpoint.offloading import SystemParameters, evaluate, grant_gains, solve
from splitpoint.offloading.solvers import plan_for
from splitpoint.study.online import compare_online


def policies(past):
    return {
        "first come": first_come,
        "myopic": myopic,
        "threshold": threshold(*tune_threshold(past)),
        "rolling": rolling(past, futures=10),
    }


def test_nothing_beats_the_clairvoyant_optimum_and_foresight_helps():
    past, windows = draw_windows(100, seed=1), draw_windows(60, seed=2)
    table = compare_online(windows, policies(past))
    assert (table["regret_s"] > -1e-9).all() and (table["optimality"] < 1 + 1e-9).all()
    regret = table.groupby("policy")["regret_s"].mean()
    assert regret["rolling"] < regret["threshold"] < regret["first come"]


@pytest.mark.parametrize("name", ["first come", "myopic", "threshold", "rolling"])
def test_no_policy_sees_the_future(name):
    """Whatever comes later, earlier answers stay the same."""
    past, (window, other) = draw_windows(50, seed=1), draw_windows(2, num_users=(12, 12), seed=5)
    order = np.argsort(window.arrival_s)
    known, later = order[:6], order[6:]
    alpha, device = window.alpha.copy(), window.device_step_s.copy()
    alpha[later], device[later] = other.alpha[:6], other.device_step_s[:6]
    changed = replace(window, alpha=alpha, device_step_s=device)
    first, second = (run_online(w, policies(past)[name]) for w in (window, changed))
    np.testing.assert_array_equal(first.granted[known], second.granted[known])


def test_the_last_of_a_known_number_is_decided_by_its_marginal_gain():
    """Nobody else can come, so the imagined futures are empty and rolling is myopic."""
    past = draw_windows(30, num_users=(1, 1), seed=1)
    for window in draw_windows(20, num_users=(1, 1), num_edge_gpus=16, seed=3):
        plan = run_online(window, rolling(past))
        np.testing.assert_array_equal(plan.granted, run_online(window, myopic).granted)
        np.testing.assert_array_equal(plan.granted, solve(window).granted)


def test_the_value_of_going_on_is_the_best_that_each_future_allows():
    """Two futures of two requests, every subset of which is tried; in batches of 1, 2 and 3."""
    rng = np.random.default_rng(0)
    granted, futures = rng.normal(size=(3, 1)), rng.normal(size=(2, 3, 2))
    sums = np.concatenate([np.zeros((2, 3, 1)), np.cumsum(-np.sort(-futures, axis=2), axis=2)], axis=2)
    for kept in (granted, granted[:, :0]):
        best = []
        for future in futures:
            sets = [np.hstack([kept, future[:, list(s)]]) for s in ([], [0], [1], [0, 1])]
            best.append(max(s[s.shape[1] - 1].sum() if s.shape[1] else 0.0 for s in sets))
        assert _value(kept, sums) == pytest.approx(np.mean(best))


def test_myopic_grants_whoever_raises_the_utility_so_far():
    for window in draw_windows(20, num_edge_gpus=4, seed=8):
        granted = np.zeros(window.num_users, bool)
        for user in np.argsort(window.arrival_s):
            if granted.sum() < 18:
                more = granted | (np.arange(window.num_users) == user)
                granted = max(granted, more, key=lambda g: evaluate(window, plan_for(window, g)).utility)
        np.testing.assert_array_equal(run_online(window, myopic).granted, granted)


def test_windows_are_in_random_order_and_may_be_longer():
    windows = draw_windows(40, num_users=(12, 12), seed=3, parameters=SystemParameters(window_s=2.5))
    first = [window.device_step_s[np.argmin(window.arrival_s)] for window in windows]
    assert np.mean(first) > np.mean([window.device_step_s.mean() for window in windows]) * 0.9
    table = compare_online(windows[:3], policies(windows[3:]))
    assert (table["regret_s"] > -1e-9).all()


@pytest.mark.parametrize("max_batch", [3, 18])
def test_tuned_threshold_is_the_best_pair_that_playing_finds(max_batch):
    past = draw_windows(12, seed=4, parameters=SystemParameters(max_batch=max_batch))

    def played(size, price):
        return sum(evaluate(w, run_online(w, threshold(size, price))).utility for w in past)

    size, price = tune_threshold(past, num_prices=15)
    best = played(size, price)
    gains = np.concatenate([grant_gains(w, np.arange(1, max_batch + 1))[0].ravel() for w in past])
    grid = np.linspace(0, np.quantile(gains, 0.99), 15)
    assert best == pytest.approx(max(played(s, p) for s in range(1, max_batch + 1) for p in grid))


def test_users_still_to_come_against_simulation():
    rng = np.random.default_rng(0)
    past = np.repeat([3, 5, 9], [2, 1, 1])
    counts, rest_seen = rng.choice(past, 200_000), []
    for count in (3, 5, 9):
        moments = np.sort(rng.random((int((counts == count).sum()), count)), axis=1)
        hits = np.abs(moments[:, 1] - 0.4) < 0.02  # the second request came at about 0.4
        rest_seen += [count - 2] * int(hits.sum())
    rest, probability = users_still_to_come(past, 2, 0.4)
    np.testing.assert_array_equal(rest, [1, 3, 7])
    np.testing.assert_allclose(probability, [np.mean(np.array(rest_seen) == r) for r in rest], atol=0.02)
    assert users_still_to_come(past, 10, 0.5)[0].tolist() == [0]
    np.testing.assert_allclose(users_still_to_come(past, 3, 1.0)[1], [1, 0, 0], atol=1e-9)


def test_batch_limit_and_seeds():
    windows = draw_windows(5, num_users=(8, 8), seed=6, parameters=SystemParameters(max_batch=3))
    for name, policy in policies(windows).items():
        assert run_online(windows[0], policy).granted.sum() <= 3, name
    order = np.argsort(windows[0].arrival_s)
    assert run_online(windows[0], first_come).granted[order].tolist() == [True] * 3 + [False] * 5
    same = [run_online(windows[1], rolling(windows, seed=7)).granted for _ in range(2)]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: draw_windows(0), r"count=0 .*\[1, inf\)"),
        (lambda: draw_windows(1, num_users=(5, 4)), r"num_users\[1\]=4"),
        (lambda: threshold(0, 1.0), "batch_size=0"),
        (lambda: users_still_to_come([4], 1, 1.5), "elapsed=1.5"),
        (lambda: rolling([]), "past is empty"),
        (lambda: tune_threshold([]), "past is empty"),
        (lambda: tune_threshold(draw_windows(1), num_prices=0), "num_prices=0"),
        (lambda: rolling([*draw_windows(1, 4), *draw_windows(1, 16)]), "one edge"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

from dataclasses import replace

import numpy as np
import pytest

from splitpoint.offloading import SystemParameters, evaluate, grant_gains, solve
from splitpoint.study.online import (
    compare_online,
    draw_windows,
    first_come,
    myopic,
    rolling,
    run_online,
    threshold,
    tune_threshold,
    users_still_to_come,
)


def policies(past):
    return {"first come": first_come, "myopic": myopic, "threshold": threshold(*tune_threshold(past)),
            "rolling": rolling(past, futures=10)}


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


def test_tuned_threshold_is_the_best_pair_that_playing_finds():
    past = draw_windows(12, seed=4)

    def played(size, price):
        return sum(evaluate(w, run_online(w, threshold(size, price))).utility for w in past)

    size, price = tune_threshold(past, num_prices=15)
    best = played(size, price)
    gains = np.concatenate([grant_gains(w, np.arange(1, 19))[0].ravel() for w in past])
    grid = np.linspace(0, np.quantile(gains, 0.99), 15)
    assert best == pytest.approx(max(played(s, p) for s in range(1, 19) for p in grid))


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


@pytest.mark.parametrize("call, message", [
    (lambda: draw_windows(0), r"count=0 .*\[1, inf\)"),
    (lambda: draw_windows(1, num_users=(5, 4)), r"num_users\[1\]=4"),
    (lambda: threshold(0, 1.0), "batch_size=0"),
    (lambda: users_still_to_come([4], 1, 1.5), "elapsed=1.5"),
    (lambda: rolling([]), "one edge"),
    (lambda: tune_threshold([]), "past is empty"),
    (lambda: tune_threshold(draw_windows(1), num_prices=0), "num_prices=0"),
    (lambda: rolling([*draw_windows(1, 4), *draw_windows(1, 16)]), "one edge"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Any step latency, any accuracy curve, other costs than time: the same solvers, the same yardsticks."""

import itertools
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitpoint.learning import stack_windows
from splitpoint.offloading import (
    RELEASED_ACCURACY,
    AccuracyModel,
    Instance,
    LatencyModel,
    Plan,
    SystemParameters,
    TableLatency,
    TwoPieceLatency,
    evaluate,
    fit_accuracy,
    optimal_split,
    register,
    sample_instance,
    solve,
)
from splitpoint.offloading.problem import early_exit_s
from splitpoint.offloading.split import top_sums, top_users

BENT = TwoPieceLatency(4, 0.05, 0.002, 0.02)
FLOOR = TwoPieceLatency(3, 0.05, 0.0, 0.01)
SHRINKING = TableLatency((1, 2, 3, 4), (0.05, 0.09, 0.091, 0.092))  # a third member costs hardly anything
EDGES = [LatencyModel(0.01, 0.02), BENT, FLOOR, SHRINKING]


@dataclass(frozen=True)
class Saturating:
    """Rises at once and levels off; no logistic curve."""

    scale: float = 60.0

    def pai(self, split_point):
        return 1 - np.exp(-np.asarray(split_point, dtype=float) / self.scale)


@dataclass(frozen=True)
class Crooked:
    """Neither convex nor concave, several hills."""

    def pai(self, split_point):
        n = np.asarray(split_point, dtype=float)
        return np.clip(n / 200 + 0.08 * np.sin(n / 7), 0, 1)


class Halved(AccuracyModel):
    """A subclass whose curve is another than its formula's."""

    def pai(self, split_point):
        return 0.5 * super().pai(split_point)


def window(edge, users=4, seed=0, **parameters):
    drawn = sample_instance(users, 4, np.random.default_rng(seed), SystemParameters(**parameters))
    return replace(drawn, edge=edge)


@given(
    st.floats(0.001, 20), st.floats(-300, 500), st.floats(0.05, 1.5), st.floats(0, 1e6), st.floats(-1e3, 1e3),
    st.integers(1, 400), st.floats(0, 1), st.booleans(),
)  # fmt: skip
@settings(max_examples=500)
def test_no_split_point_of_a_fine_grid_beats_the_closed_form(a, b, c, alpha, saving, steps, share, whole):
    parameters = SystemParameters(num_steps=steps, min_split=int(share * steps), accuracy=AccuracyModel(a, b, c))
    found = float(optimal_split(alpha, saving, parameters, whole))
    grid = np.arange(parameters.min_split, steps + 1) if whole else np.linspace(parameters.min_split, steps, 2001)

    def value(n):
        return alpha * parameters.accuracy.pai(n) - n * saving

    best, scale = value(grid).max(), 1e-9 * (abs(alpha) + steps * abs(saving) + 1e-6)
    assert parameters.min_split <= found <= steps
    assert value(found) >= best - scale


def test_a_device_that_is_faster_keeps_all_steps_however_steep_the_curve():
    assert optimal_split(10.0, -1.0, SystemParameters(accuracy=AccuracyModel(10, 10))) == 200


@pytest.mark.parametrize("curve", [Saturating(), Crooked(), Halved(0.0413, 71.44)])
@pytest.mark.parametrize("whole", [False, True])
def test_curves_of_ones_own_are_searched_as_well_as_a_fine_grid(curve, whole):
    parameters, rng = SystemParameters(accuracy=curve), np.random.default_rng(0)
    alpha, saving = rng.uniform(0, 300, 40), rng.uniform(-0.1, 0.4, 40)
    found = optimal_split(alpha, saving, parameters, whole)
    grid = np.arange(80, 201) if whole else np.linspace(80, 200, 200_001)
    best = (alpha[:, None] * curve.pai(grid) - grid * saving[:, None]).max(axis=1)
    np.testing.assert_array_less(best - 1e-9, alpha * curve.pai(found) - found * saving + 1e-12)


def test_a_curve_of_ones_own_is_solved_with_its_own_values():
    ours = replace(
        sample_instance(6, 8, np.random.default_rng(0)), parameters=SystemParameters(accuracy=Halved(0.0413, 71.44))
    )
    same = replace(ours, parameters=SystemParameters(accuracy=AccuracyModel(0.0413, 71.44, 0.5)))
    assert evaluate(ours, solve(ours)).utility == pytest.approx(evaluate(same, solve(same)).utility, rel=1e-9)
    with pytest.raises(ValueError, match="accuracy=3 has no method pai"):
        SystemParameters(accuracy=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("edge", EDGES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("transmission", ["released", "corrected"])
def test_every_solver_takes_every_edge(edge, transmission):
    instance = window(edge, users=6, transmission=transmission)
    best = evaluate(instance, solve(instance)).utility
    assert best == pytest.approx(evaluate(instance, solve(instance, "brute_force")).utility)
    assert best == pytest.approx(evaluate(instance, solve(instance, "milp")).utility)
    for method in ("greedy", "genetic", "all_edge", "all_local", "random", "early_exit"):
        assert evaluate(instance, solve(instance, method)).utility <= best + 1e-9
    stacked = stack_windows([instance])
    assert stacked.outcomes(stacked.exact())["utility_s"][0] == pytest.approx(best)
    assert evaluate(stacked.instance(0), solve(stacked.instance(0))).utility == pytest.approx(best)


def test_the_linearised_program_wants_a_line():
    with pytest.raises(
        ValueError, match="formulation='gqap' needs an edge that is a LatencyModel, not TwoPieceLatency"
    ):
        solve(window(BENT), "milp", formulation="gqap")


@given(st.lists(st.integers(0, 30), min_size=1, max_size=7), st.sampled_from(EDGES))
def test_early_exit_seconds_are_those_of_stepping_through(steps, edge):
    steps, granted = np.array(steps, dtype=float), np.array(steps) > 0
    by_step = np.zeros(len(steps))
    for step in range(1, int(steps.max()) + 1):
        present = steps >= step
        by_step[present] += edge.step_latency_s(present.sum())
    np.testing.assert_allclose(early_exit_s(edge, steps, granted), by_step, atol=1e-12)


SHORT = dict(num_steps=16, min_split=6, accuracy=AccuracyModel(0.5, 5.7), transmission="corrected")


@pytest.mark.parametrize("edge", EDGES, ids=lambda e: type(e).__name__)
def test_early_exit_is_exact_where_marginal_costs_rise(edge):
    for seed in range(3):
        instance = replace(window(edge, users=3, seed=seed, **SHORT))
        instance = replace(instance, alpha=instance.alpha / 40)
        best = -np.inf
        for splits in itertools.product([*range(6, 17), None], repeat=3):
            granted = np.array([n is not None for n in splits])
            plan = Plan(granted, np.array([16.0 if n is None else n for n in splits]))
            best = max(best, evaluate(instance, plan, "early_exit").utility)
        plan = solve(instance, "early_exit", whole_steps=True)
        found = evaluate(instance, plan, "early_exit").utility
        assert found <= best + 1e-9
        if plan.status == "optimal":
            assert found == pytest.approx(best, abs=1e-9)
        assert plan.status == ("heuristic" if edge is SHRINKING else "optimal")


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.2), st.floats(0, 0.2), st.floats(0, 5))
@settings(max_examples=30)
def test_other_costs_count_in_the_utility_and_not_in_the_latency(seed, edge_cost, device_cost, handover):
    costs = dict(edge_step_cost_s=edge_cost, device_step_cost_s=device_cost, handover_cost_s=handover)
    plain = sample_instance(5, 4, np.random.default_rng(seed))
    dear = replace(plain, parameters=replace(plain.parameters, **costs))
    plan = solve(dear, "brute_force")
    assert evaluate(dear, solve(dear)).utility == pytest.approx(evaluate(dear, plan).utility)
    one, other = evaluate(plain, plan), evaluate(dear, plan)
    np.testing.assert_array_equal(one.latency_s, other.latency_s)
    device_steps = plan.split_points.sum()
    edge_steps = (200 - plan.split_points).sum()
    paid = edge_steps * edge_cost + device_steps * device_cost + plan.granted.sum() * handover
    assert one.utility - other.utility == pytest.approx(paid)
    stacked = stack_windows([dear])
    assert stacked.outcomes(plan.granted[None])["utility_s"][0] == pytest.approx(other.utility)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 9))
def test_selection_equals_a_full_sort(seed, users, most):
    rng = np.random.default_rng(seed)
    gains = np.round(rng.normal(size=(3, most, users)), 1)  # with ties
    sizes = np.minimum(np.arange(1, most + 1), users)
    ordered = -np.sort(-gains, axis=-1)
    np.testing.assert_allclose(
        top_sums(gains, sizes), [[ordered[i, j, :size].sum() for j, size in enumerate(sizes)] for i in range(3)]
    )
    chosen = top_users(gains[0], sizes)
    for row, size in enumerate(sizes):
        assert set(np.flatnonzero(chosen[row])) == set(np.argsort(-gains[0, row], kind="stable")[:size])


def test_a_large_window_is_solved_as_a_small_one_is(monkeypatch):
    instance = sample_instance(300, 16, np.random.default_rng(0))
    at_once = solve(instance)
    monkeypatch.setattr(sys.modules["splitpoint.offloading.solvers"], "_USERS_AT_A_TIME", 100)
    one_by_one = solve(instance)
    np.testing.assert_array_equal(at_once.granted, one_by_one.granted)
    np.testing.assert_array_equal(at_once.split_points, one_by_one.split_points)


def test_a_ceiling_is_found_and_percentages_and_flat_data_are_refused():
    truth, split = AccuracyModel(0.04, 92, 0.85), np.linspace(0, 200, 11)
    fit = fit_accuracy(split, truth.pai(split), free_ceiling=True)
    assert (fit.model.steepness, fit.model.midpoint, fit.model.ceiling) == pytest.approx((0.04, 92, 0.85), rel=1e-6)
    assert set(fit.intervals) == {"steepness", "midpoint", "ceiling"} and fit.covariance.shape == (3, 3)
    with pytest.raises(ValueError, match=r"pai holds 7\.\d+; valid is \[0, 1\].*percentages"):
        fit_accuracy(split, 100 * truth.pai(split) + 5)
    with pytest.raises(ValueError, match="does not rise"):
        fit_accuracy(split, np.full(11, 0.4))


def test_intervals_of_three_parameters_have_as_many_degrees_of_freedom_as_are_left():
    """Interval widths against an independent computation with Student's t at n - 3."""
    from scipy import optimize, special, stats

    split, rng = np.linspace(0, 200, 8), np.random.default_rng(0)
    noisy = AccuracyModel(0.04, 92, 0.85).pai(split) + rng.normal(0, 0.01, 8)
    fit = fit_accuracy(split, noisy, free_ceiling=True)
    _, covariance = optimize.curve_fit(
        lambda n, a, b, c: c * special.expit(a * (n - b)), split, noisy, p0=(0.04, 92, 0.85)
    )
    low, high = fit.intervals["midpoint"]
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 8 - 3) * np.sqrt(covariance[1, 1]), rel=1e-3)


def test_a_shorter_run_with_the_long_runs_midpoint_is_warned_of():
    with pytest.warns(UserWarning, match=r"num_steps=50 .*rescaled\(50\)"):
        SystemParameters(num_steps=50, min_split=20)
    curve = RELEASED_ACCURACY.rescaled(50)
    np.testing.assert_allclose(curve.pai(np.arange(51)), RELEASED_ACCURACY.pai(4 * np.arange(51)))


def test_what_went_in_stays_as_it_was():
    alpha = np.array([10.0, 20.0])
    instance = Instance(LatencyModel(0.01, 0.01), np.array([0.2, 0.3]), alpha, np.zeros(2))
    alpha[:] = 0
    assert instance.alpha.tolist() == [10, 20]
    with pytest.raises(ValueError, match="read-only"):
        instance.alpha[0] = 5
    with pytest.raises(ValueError, match="milliseconds"):
        Instance(LatencyModel(0.01, 0.01), np.array([200.0]), np.array([1.0]), np.zeros(1))
    with pytest.raises(ValueError, match="edge='fast' is no step latency"):
        Instance("fast", np.array([0.2]), np.array([1.0]), np.zeros(1))  # type: ignore[arg-type]


def test_a_plan_of_lists_is_a_plan():
    instance = sample_instance(3, 4, np.random.default_rng(0))
    plan = Plan([True, False, False], [100, 200, 200])  # type: ignore[arg-type]
    assert np.isfinite(evaluate(instance, plan).utility)


def test_yardsticks_keep_their_names_and_options_are_checked():
    with pytest.raises(ValueError, match="name='exact' is one of the package's own"):
        register("exact", lambda instance: None)
    instance = sample_instance(3, 4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="option='speed' is unknown; there are: whole_steps"):
        solve(instance, "greedy", speed=3)
    assert np.all(solve(instance, "agent", whole_steps=True).split_points % 1 == 0)
    with pytest.raises(ValueError, match=r"num_users=17 .*brute_force"):
        solve(sample_instance(17, 4, np.random.default_rng(0)), "brute_force")


def test_gains_of_nanoseconds_are_still_gains():
    tiny = SystemParameters(transmission="corrected", intermediate_bits=0, prompt_bits=0)
    drawn = sample_instance(6, 4, np.random.default_rng(3), tiny)
    small = Instance(
        LatencyModel(drawn.edge.slope_s * 1e-9, drawn.edge.intercept_s * 1e-9), drawn.device_step_s * 1e-9,
        drawn.alpha * 1e-9, np.zeros(6), replace(tiny, window_s=0.0),
    )  # fmt: skip
    best = evaluate(small, solve(small)).utility
    local = evaluate(small, solve(small, "all_local")).utility
    assert best > local
    for options in ({}, {"whole_steps": True}):
        found = evaluate(small, solve(small, "milp", **options)).utility
        assert (found - local) / (evaluate(small, solve(small, **options)).utility - local) == pytest.approx(
            1, abs=1e-6
        )

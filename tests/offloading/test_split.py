import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from splitpoint.offloading import AccuracyModel, SystemParameters, grant_gains, optimal_split, sample_instance
from splitpoint.offloading.split import step_saving_s

from .strategies import instances


def value(n, alpha, saving, parameters):
    return alpha * parameters.accuracy.pai(n) - n * saving


@settings(max_examples=200)
@given(st.floats(0, 5000), st.floats(-2, 2))
def test_closed_form_is_as_good_as_scipy(alpha, saving):
    parameters = SystemParameters()
    found = optimal_split(alpha, saving, parameters)
    numeric = minimize_scalar(
        lambda n: -value(n, alpha, saving, parameters), bounds=(80, 200), method="bounded", options={"xatol": 1e-9}
    )
    best = max(-numeric.fun, value(80, alpha, saving, parameters), value(200, alpha, saving, parameters))
    assert value(found, alpha, saving, parameters) >= best - 1e-9 * max(1, abs(best))


@given(instances())
def test_closed_form_beats_a_fine_grid_under_any_curve(instance):
    parameters = instance.parameters
    saving = instance.device_step_s - instance.edge.step_latency_s(3)
    found = optimal_split(instance.alpha, saving, parameters)
    grid = np.linspace(parameters.min_split, parameters.num_steps, 2001)[:, None]
    best = value(grid, instance.alpha, saving, parameters).max(axis=0)
    assert np.all(value(found, instance.alpha, saving, parameters) >= best - 1e-9 * (1 + np.abs(best)))


@given(instances())
def test_whole_steps_are_the_best_whole_steps(instance):
    parameters = instance.parameters
    saving = instance.device_step_s - instance.edge.step_latency_s(2)
    found = optimal_split(instance.alpha, saving, parameters, whole_steps=True)
    assert np.all(found == np.round(found))
    grid = np.arange(parameters.min_split, parameters.num_steps + 1)[:, None]
    best = value(grid, instance.alpha, saving, parameters).max(axis=0)
    np.testing.assert_allclose(value(found, instance.alpha, saving, parameters), best, rtol=1e-9, atol=1e-9)


def test_closed_form_agrees_with_cvxpy():
    """Tangents bound the concave part of the logistic curve from above, so cvxpy's optimum bounds ours."""
    parameters = SystemParameters()
    curve, points = parameters.accuracy, np.linspace(80, 200, 2001)
    pai = curve.pai(points)
    slope = curve.steepness * pai * (1 - pai)
    for alpha, saving in [(50.0, 0.1), (20.0, 0.15), (300.0, 0.2), (5.0, 0.5), (5.0, -0.1)]:
        n, level = cp.Variable(), cp.Variable()
        tangents = level <= pai + cp.multiply(slope, n - points)
        problem = cp.Problem(cp.Maximize(alpha * level - saving * n), [tangents, n >= 80, n <= 200])
        problem.solve(solver=cp.HIGHS)
        ours = optimal_split(alpha, saving, parameters)
        assert problem.value >= value(ours, alpha, saving, parameters) - 1e-7
        assert problem.value == pytest.approx(value(ours, alpha, saving, parameters), abs=1e-3)
        assert float(n.value) == pytest.approx(float(ours), abs=0.1)


def test_costs_beside_time_enter_with_their_signs():
    parameters = SystemParameters(edge_step_cost_s=0.03, device_step_cost_s=0.1)
    assert step_saving_s(0.5, 0.2, parameters) == pytest.approx(0.5 - 0.2 + 0.1 - 0.03)  # dear devices favour the edge


def test_limits_and_shapes():
    parameters = SystemParameters()
    assert optimal_split(10, -0.1, parameters) == 200
    assert optimal_split(0, 0.1, parameters) == 80
    assert optimal_split(0, 0.0, parameters) == 200
    assert optimal_split(np.ones((3, 1)), np.ones(4), parameters).shape == (3, 4)
    wide = SystemParameters(min_split=0, accuracy=AccuracyModel(0.05, 100))
    assert optimal_split(1.0, 0.2, wide) == 0


@pytest.mark.parametrize(
    "sizes, message",
    [
        (3, r"batch_sizes has shape \(\); valid is \(m,\)"),
        ([[1, 2]], r"shape \(1, 2\)"),
        ([0], "batch_sizes holds 0.0"),
    ],
)
def test_bad_batch_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        grant_gains(sample_instance(3, 4, np.random.default_rng(0)), sizes)


@pytest.mark.parametrize(
    "alpha, saving, message",
    [(-1, 0.1, "alpha holds -1.0"), (np.nan, 0.1, "alpha holds nan"), (1, np.inf, "step_saving_s holds inf")],
)
def test_bad_input_is_refused(alpha, saving, message):
    with pytest.raises(ValueError, match=message):
        optimal_split(alpha, saving, SystemParameters())

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from splitpoint.offloading import SystemParameters, evaluate, grant_gains, optimal_split, sample_instance, solve
from splitpoint.study.figures import optimisation as optimisation_figures


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def window():
    return sample_instance(8, 8, np.random.default_rng(0))


def test_the_largest_total_is_the_gain_of_the_exact_plan(window):
    ax = optimisation_figures.totals_by_batch({"a window": window})
    totals, (star_x, star_y) = ax.lines[0].get_ydata(), ax.lines[1].get_data()
    plan = solve(window)
    gain = evaluate(window, plan).utility - evaluate(window, solve(window, "all_local")).utility
    assert len(totals) == 9 and totals[0] == 0
    assert totals.max() == pytest.approx(gain) and star_y == pytest.approx(gain)
    assert int(star_x[0]) == totals.argmax() == plan.granted.sum()


def test_objective_lines_peak_at_the_closed_form(window):
    device, alpha, batch = window.device_step_s[0], window.alpha[0], 3
    ax = optimisation_figures.objective_lines(window.parameters, window.edge, device, alpha, (batch,))
    (x, y), (best_x, best_y) = (line.get_data() for line in ax.lines[:2])
    gains, splits = grant_gains(window, [batch])
    assert best_x == pytest.approx(splits[0, 0]) and best_y == pytest.approx(gains[0, 0])
    assert y.max() <= best_y + 1e-9 and abs(x[y.argmax()] - best_x) < 1


def test_tangents_lie_above_the_concave_part():
    parameters = SystemParameters()
    ax = optimisation_figures.tangents(parameters, points=(80, 120))
    for tangent in (ax.lines[0], ax.lines[2]):
        x, y = tangent.get_data()
        assert np.all(y >= parameters.accuracy.pai(x) - 1e-12)


def test_early_exit_charges_those_present_and_static_the_whole_batch():
    ax = optimisation_figures.batch_over_steps([10, 30, 20])
    static, early = (line.get_ydata().tolist() for line in ax.lines)
    assert ax.lines[0].get_xdata().tolist() == [0, 10, 20, 30]
    assert static == [9, 6, 3, 0] and early == [9, 4, 1, 0]


def test_gain_map_writes_the_gains_and_frames_the_sets(window):
    gains, _ = grant_gains(window, np.arange(1, 9))
    granted = solve(window).granted
    ax = optimisation_figures.gain_map(window, {"exact": granted})
    np.testing.assert_allclose([float(text.get_text()) for text in ax.texts], gains.ravel(), atol=0.0501)
    assert len(ax.patches) == granted.sum()


def test_grouped_lines_draw_means_and_half_widths():
    table = pd.DataFrame({"group": ["a"] * 4 + ["b"], "x": [1, 1, 2, 2, 1], "y": [1.0, 3, 5, 5, 7]})
    ax = optimisation_figures.grouped_lines(table, "x", "y", "group", xlabel="x (m)")
    line, _, (bars,) = ax.containers[0]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1, 2], [2, 5])
    assert [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()] == pytest.approx([1.96, 0])
    assert ax.containers[1].lines[0].get_ydata().tolist() == [7] and ax.get_xlabel() == "x (m)"
    alone = ax.containers[1].lines[2][0].get_segments()[0]
    assert np.ptp(alone[:, 1]) == 0, "one value has no spread to draw"


def test_split_points_of_the_slider_are_optimal(window):
    slider = optimisation_figures.objective_slider(window.parameters, window.edge, 0.3)
    slider.update()
    saving = float(0.3 - window.edge.step_latency_s(6))
    ax = plt.gcf().axes[0]
    assert f"best split point {float(optimal_split(50, saving, window.parameters)):.1f}" in ax.get_title()
    low, high = ax.get_ylim()
    assert low < max(ax.lines[0].get_ydata()) < high, "the top of the curve stays in sight"

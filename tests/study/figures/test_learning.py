import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from splitpoint.study.figures import learning as learning_figures


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_training_curves_show_every_setting_with_the_optimum_as_a_line():
    rows = [
        {
            "setting": setting,
            "learner": "dqn",
            "seed": seed,
            "decisions": step * 100,
            "episodes": step * 10,
            **{name: step + seed for name in learning_figures.CURVE_QUANTITIES},
            **{f"exact_{name}": 9.0 for name in learning_figures.CURVE_QUANTITIES},
        }
        for setting in ("static edge", "dynamic edge")
        for seed in range(3)
        for step in range(4)
    ]
    figure = learning_figures.training_curves(pd.DataFrame(rows))
    axes = np.reshape(figure.axes, (2, 3))
    assert axes[0, 0].lines[0].get_ydata().tolist() == [1, 2, 3, 4]
    assert set(axes[1, 2].lines[1].get_ydata()) == {9.0}
    assert axes[1, 0].get_xlabel() == "episodes" and "dynamic" in axes[1, 0].get_ylabel()


def test_ablation_is_sorted_from_best_to_worst():
    table = pd.DataFrame(
        {"variant": ["bad", "bad", "good", "good"], "seed": [0, 1, 0, 1], "mean": [0.5, 0.6, 0.98, 0.99]}
    )
    ax = learning_figures.ablation_intervals(table)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["good", "bad"]
    assert ax.get_xscale() == "log"


def test_outside_training_has_a_panel_an_agent():
    table = pd.DataFrame(
        [
            {"setting": setting, "agent": agent, "mean": 0.99, "p1": 0.9, "min": 0.5}
            for setting in ("in", "out")
            for agent in ("drl_convex", "dqn")
        ]
    )
    figure = learning_figures.outside_training(table)
    assert [ax.get_title() for ax in figure.axes] == ["DRL-convex agent", "prioritized-replay DQN"]
    assert all(ax.get_xlabel() == "optimality" for ax in figure.axes)


def test_decision_times_and_curves_have_labels():
    times = pd.DataFrame({"label": ["agent"] * 2, "num_users": [1, 2], "solve_s": [1e-3, 2e-3], "status": ["ok"] * 2})
    assert "window" in learning_figures.decision_times(times).get_ylabel()
    curve = pd.DataFrame({"decisions": [1, 2], "optimality": [0.1, 0.9]})
    assert "optimality" in learning_figures.learning_curve(curve).get_ylabel()

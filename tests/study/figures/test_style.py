import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from splitpoint.offloading import SystemParameters, fit_latency, optimal_split, published_latency
from splitpoint.study import figures
from splitpoint.study.figures import style


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_a_column_that_is_not_there_is_named():
    table = pd.DataFrame(dict(num_users=[2], num_edge_gpus=[4], method=["greedy"], seed=[0], reward=[1.0]))
    with pytest.raises(ValueError, match="x='users' is unknown; there are: num_users"):
        figures.method_lines(table, "users")
    with pytest.raises(
        ValueError, match="y='rewards' is unknown; there are: num_users, num_edge_gpus, method, seed, reward"
    ):
        figures.method_lines(table, "num_users", "rewards")
    with pytest.raises(ValueError, match="method='exact' is unknown; there are: greedy"):
        figures.reward_and_loss(table, "num_users")


def test_method_lines_draw_the_means():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        [
            dict(method=m, num_users=u, seed=s, reward=rng.normal())
            for m in ("exact", "mine")
            for u in (4, 8)
            for s in range(50)
        ]
    )
    ax = figures.method_lines(table, "num_users")
    drawn = ax.containers[1].lines[0].get_ydata()
    means = table[table.method == "mine"].groupby("num_users")["reward"].mean()
    np.testing.assert_allclose(np.array(drawn, dtype=float), means.to_numpy())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["exact optimum", "mine"]


def test_losses_are_paired_and_who_loses_nothing_has_no_line():
    rewards = {"exact": (1.0, 3.0), "greedy": (1.0, 3.0), "all_edge": (0.5, 1.0), "all_local": (-1.0, -2.0)}
    table = pd.DataFrame(
        [
            dict(method=m, num_users=u, num_edge_gpus=16, seed=s, reward=r + s)
            for m, pair in rewards.items()
            for u, r in zip((4, 8), pair)
            for s in range(5)
        ]
    )
    left, right = figures.reward_and_loss(table, "num_users").axes
    drawn = {c.get_label(): np.array(c.lines[0].get_ydata(), dtype=float) for c in right.containers}
    np.testing.assert_allclose(drawn["all on the edge"], [0.5, 2.0])
    assert np.isnan(drawn["greedy: loses nothing"]).all()
    assert "greedy" not in [c.get_label() for c in left.containers], "its line would lie on the optimum's"


def test_embedded_figures_are_shown_at_their_size_with_more_pixels():
    figure, ax = plt.subplots(figsize=(4, 3))
    ax.plot([0, 1])
    content, shown = style._embedded_png(figure)
    picture = Image.open(io.BytesIO(content))
    assert shown["width"] == pytest.approx(picture.width * style.SCREEN_DPI / 144, abs=1)
    assert picture.width > 1.5 * shown["width"] and picture.mode == "P"


def test_split_figure_draws_the_closed_form():
    edge = published_latency()[0].shared_by(16)
    ax = figures.split_against_alpha(SystemParameters(), edge, 0.3, batch_sizes=(5,))
    x, y = ax.lines[0].get_data()
    np.testing.assert_array_equal(y, optimal_split(x, 0.3 - edge.step_latency_s(5), SystemParameters()))


def test_fitted_line_starts_at_the_intercept():
    batch = np.array([1.0, 2, 4, 8])
    fit = fit_latency(batch, 0.1 * batch + np.array([0.01, -0.01, 0.01, -0.01]) + 0.5)
    ax = figures.fitted_line(batch, 0.1 * batch + 0.5, fit)
    assert ax.lines[0].get_ydata()[0] == pytest.approx(fit.model.intercept_s)


def test_figures_are_saved_twice_and_alike(scratch_project):
    runs = []
    for _ in range(2):
        ax = figures.latency_lines({"a": published_latency()[0]})
        figures.caption(ax.figure, "published", "nothing")
        figures.save_figure(ax.figure, "fig00_test")
        runs.append({path.name: path.read_bytes() for path in (scratch_project / "figures").iterdir()})
    assert sorted(runs[0]) == ["fig00_test.pdf", "fig00_test.png"]
    assert runs[0] == runs[1]


def paired_tables():
    """Two windows a point: method "a" is 1 and 3 above the baseline with 4 users, 5 and 5 with 8."""
    keys = [(4, 0), (4, 1), (8, 0), (8, 1)]
    table = pd.DataFrame([dict(num_users=u, num_edge_gpus=16, seed=s, method="exact") for u, s in keys])
    return table.assign(reward=[11.0, 23, 15, 105]), table.assign(reward=[10.0, 20, 10, 100])


def drawn_bars(ax):
    """Points and half-widths of the first error bars."""
    line, _, (bars,) = ax.containers[0]
    return line.get_xdata().tolist(), line.get_ydata().tolist(), [np.ptp(s[:, 1]) / 2 for s in bars.get_segments()]


def test_gain_lines_draw_paired_differences():
    better, baseline = paired_tables()
    x, y, half = drawn_bars(figures.gain_lines({"a": better}, baseline.sample(frac=1, random_state=0), "num_users"))
    assert (x, y) == ([4, 8], [2, 5])
    assert half == pytest.approx([1.96, 0]), "the spread of the differences, not of the tables"


def test_difference_lines_draw_one_method_of_each_table():
    better, baseline = paired_tables()
    other = better.assign(method="greedy", reward=-1.0)
    x, y, _ = drawn_bars(figures.difference_lines({"a": pd.concat([other, better]), "b": baseline}, "num_users"))
    assert (x, y) == ([4, 8], [17, 60])
    ax = figures.difference_lines({"a": better, "b": baseline}, "num_users", method="exact")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]


def test_shortfall_counts_windows_and_leaves_out_who_is_never_off():
    table = pd.DataFrame({"method": ["exact"] * 4 + ["all_edge"] * 4, "optimality": [1, 1, 1, 1, 1, 0.9, 0.5, -1]})
    ax = figures.shortfall_lines(table)
    assert len(ax.lines) == 1
    assert ax.lines[0].get_xdata() == pytest.approx([2, 0.5, 0.1, 1e-6])
    assert ax.lines[0].get_ydata() == pytest.approx([0.25, 0.5, 0.75, 1])


def test_shortfall_lines_are_drawn_in_the_order_asked_for():
    table = pd.DataFrame(
        {
            "method": ["greedy", "random", "genetic", "agent (dqn)"] * 2,
            "optimality": [0.9, 0.5, 1, 0.99, 1, -np.inf, 1, 0.98],
        }
    )
    ax = figures.shortfall_lines(table, ("random", "genetic", "greedy"))
    assert [line.get_label() for line in ax.lines] == ["random", "greedy"]
    assert ax.lines[1].get_xdata() == pytest.approx([0.1, 1e-6])
    assert "prioritized-replay DQN" in [line.get_label() for line in figures.shortfall_lines(table).lines]


def test_solve_times_ring_what_was_stopped():
    table = pd.DataFrame(
        [
            dict(label="milp", num_users=u, seed=s, solve_s=t, status=status)
            for u, s, t, status in (
                (4, 0, 1.0, "optimal"),
                (4, 1, 3, "optimal"),
                (4, 2, 2, "optimal"),
                (8, 0, 5, "time_limit"),
            )
        ]
    )
    ax = figures.solve_time_lines(table)
    assert ax.containers[0].lines[0].get_ydata().tolist() == [2, 5]
    assert ax.collections[-1].get_offsets().tolist() == [[8, 5]]


def test_a_folder_that_cannot_be_written_is_named(scratch_project):
    (scratch_project / "figures").write_text("a file in the way")
    with pytest.raises(OSError, match="figures/fig00_test.png cannot be written"):
        figures.save_figure(plt.figure(), "fig00_test")

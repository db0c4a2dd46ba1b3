import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from splitpoint.offloading import SystemParameters, fit_latency, optimal_split, published_latency
from splitpoint.study import figures


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_method_lines_draw_the_means():
    rng = np.random.default_rng(0)
    table = pd.DataFrame([dict(method=m, num_users=u, seed=s, reward=rng.normal()) for m in ("exact", "mine")
                          for u in (4, 8) for s in range(50)])
    ax = figures.method_lines(table, "num_users")
    drawn = ax.containers[1].lines[0].get_ydata()
    means = table[table.method == "mine"].groupby("num_users")["reward"].mean()
    np.testing.assert_allclose(np.array(drawn, dtype=float), means.to_numpy())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["exact optimum", "mine"]


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
    for _ in range(2):
        ax = figures.latency_lines({"a": published_latency()[0]})
        figures.caption(ax.figure, "published", "nothing")
        figures.save_figure(ax.figure, "fig00_test")
        content = (scratch_project / "figures" / "fig00_test.png").read_bytes()
    assert content == (scratch_project / "figures" / "fig00_test.png").read_bytes()
    assert sorted(p.name for p in (scratch_project / "figures").iterdir()) == ["fig00_test.pdf", "fig00_test.png"]


def test_a_folder_that_cannot_be_written_is_named(scratch_project):
    (scratch_project / "figures").write_text("a file in the way")
    with pytest.raises(OSError, match="figures/fig00_test.png cannot be written"):
        figures.save_figure(plt.figure(), "fig00_test")

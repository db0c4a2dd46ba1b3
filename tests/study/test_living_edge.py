"""Notebook 10's experiments on short paths, its figures, and the tables that it reads."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from splitpoint.edge import Poisson, draw_paths, make_policy, simulate
from splitpoint.files import data_path
from splitpoint.study import living_edge
from splitpoint.study.figures import edge as edge_figures


@pytest.fixture
def edge():
    yield living_edge.released_edge()
    plt.close("all")


def test_sweep_is_the_same_however_it_is_cut(tmp_path, monkeypatch, edge):
    tmp_path.joinpath("data").symlink_to(data_path())
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    options = dict(rates_hz=(2.0, 6.0), names=("first_come", "posted_price"), num_paths=2, horizon_s=5.0)
    table = living_edge.policy_sweep("edge_test", **options)
    assert len(table) == 8 and table.share.max() <= 1
    paths = draw_paths([edge], Poisson(6.0, 5.0), 0, 2)
    again = living_edge.play([edge], paths, {"first_come": make_policy("first_come", [edge])})
    stored = table[(table.policy == "first_come") & (table.rate_hz == 6.0)]
    assert stored.gain_s.to_numpy() == pytest.approx(again.gain_s.to_numpy())


def test_shipped_tables_hold_what_the_notebook_says():
    table = pd.read_csv(data_path("edge", "policies.csv"))
    assert table.share.max() <= 1 and table.groupby(["compute", "policy", "rate_hz"]).size().eq(8).all()
    shares = table[table.compute == "constant"].pivot_table(index="rate_hz", columns="policy", values="share")
    assert (shares.loc[8.0:, "window_plan"] < 0).all() and (shares.posted_price > 0.8).all()
    twin = pd.read_csv(data_path("edge", "twin.csv"))
    assert twin.share.max() == 1 and (twin[twin.rule == "improved once"].share > 0.99).all()


def test_figures_draw_what_they_are_given(edge):
    table = living_edge.play(
        [edge], draw_paths([edge], Poisson(4.0, 5.0), 0, 2), {"first_come": make_policy("first_come", [edge])}
    )
    figure = edge_figures.share_lines(table.assign(rate_hz=4.0), (["first_come"],))
    assert figure.axes[0].get_ylim()[1] > 1
    run = simulate([edge], Poisson(4.0, 5.0), make_policy("first_come", [edge]))
    line = edge_figures.inside_over_time({"x": run}).lines[0]
    assert line.get_ydata()[-1] == 0 and max(line.get_ydata()) >= 1
    assert all(len(line.get_xdata()) > 10 for line in edge_figures.price_against_load(edge).lines)
    assert len(edge_figures.speed_of_batches({"a": edge}).lines[0].get_xdata()) == 18
    split = pd.DataFrame(dict(rule=["a"], kept=[0.8], own_fault=[0.15], unknowable=[0.05]))
    assert len(edge_figures.split_of_regret(split).patches) == 3
    _, shares = edge_figures.price_panels(4.0, 16, 0.05, horizon_s=10.0)
    assert shares["price"] <= 1 and len(edge_figures.price_slider().children) == 4

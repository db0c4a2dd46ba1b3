"""Notebook 10's experiments on short paths, its figures, and the tables that it reads."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from splitpoint.edge import Poisson, draw_paths, make_policy, simulate
from splitpoint.files import data_path
from splitpoint.offloading import Instance, evaluate, hardware, solve
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


def test_a_named_edge_serves_named_users():
    """One that is alone on it gains what the window of one user says, up to what whole steps round away."""
    scenario = hardware.scenario("A100", "compiled")
    named, users = living_edge.named_edge(scenario)
    assert named.max_batch == 16 and named.step_table_s()[[1, 4, 16]] == pytest.approx(scenario.edge.seconds)
    devices, _ = hardware.population(scenario.population)
    path = draw_paths([named], Poisson(0.002, 2000.0, users), seed=3)[0]
    steps = {round(float(each.step_latency_s(1)), 9) for each in devices}
    assert len(path) >= 2 and {round(d, 9) for d in path.device_step_s} <= steps
    table = simulate([named], [path], make_policy("myopic", [named]))
    for row in table.itertuples():
        window = Instance(scenario.edge, [row.device_step_s], [row.alpha], [0.0], scenario.parameters)
        best = evaluate(window, solve(window)).utility - evaluate(window, solve(window, "all_local")).utility
        assert row.gain_s == pytest.approx(best, rel=1e-3, abs=0.06), "a request may wait for no step but its own"


def test_a_slow_named_edge_is_worse_than_none_under_the_window_plan_and_not_under_a_price():
    named, users = living_edge.named_edge(hardware.scenario("T4", "eager"))
    arrivals = Poisson(0.3, 200.0, users)
    paths = draw_paths([named], arrivals, seed=0, replications=2)
    both = {name: make_policy(name, [named], arrivals) for name in ("window_plan", "fluid_resolving")}
    with np.errstate(all="raise"):
        shares = living_edge.play([named], paths, both).groupby("policy").share.mean()
    assert shares["window_plan"] < 0 < shares["fluid_resolving"] <= 1
    with pytest.raises(ValueError, match="num_steps=50 is not 200"):
        living_edge.named_edge(hardware.scenario(num_steps=50))

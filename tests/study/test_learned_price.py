"""The judge of notebook 11: paired differences, Holm's correction, and tables that hold what the notebook says."""

import numpy as np
import pandas as pd
import pytest

from splitpoint.edge import HiddenRegimes, Poisson, System, Twin, draw_paths
from splitpoint.edge.policies import StatePrice
from splitpoint.files import data_path, read_meta
from splitpoint.study import learned_price
from splitpoint.study.edge_learners import LEARNERS, learn_and_play
from splitpoint.study.figures import learned as figures
from splitpoint.study.learned_price import SEEING, judge_twin, paired, play_scenario, scenarios, seeing
from splitpoint.study.living_edge import released_edge


def gains(scenario, ahead, noise=1.0, paths=60, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(100.0, 20.0, paths)  # paths differ far more than policies do
    rows = [dict(scenario=scenario, policy="rule", path=i, gain_s=g) for i, g in enumerate(base)]
    better = base + ahead + rng.normal(0, noise, paths)
    return rows + [dict(scenario=scenario, policy="learned", path=i, gain_s=g) for i, g in enumerate(better)]


def test_differences_are_taken_path_by_path():
    table = pd.DataFrame(gains("a", 2.0) + gains("b", 0.0, seed=1) + gains("c", -2.0, seed=2))
    said = paired(table).set_index("scenario")
    assert said.ahead["a"] == pytest.approx(0.02, abs=0.005) and said.low["a"] > 0
    assert said.low["b"] < 0 < said.high["b"] and said.high["c"] < 0
    assert said.p["a"] < 0.01 < said.p["b"] < said.p["c"]


def test_holm_is_the_textbooks():
    p = pd.Series([0.01, 0.04, 0.03, 0.005])
    assert learned_price._holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_others_are_those_of_the_second_before():
    table = learned_price.granted_by_crowd("Azure, code", ("posted_price",), 1, (0, 5))
    case = scenarios()["Azure, code"]
    (path,) = draw_paths(case.edges, case.arrivals, learned_price.JUDGE_SEED, 1)
    few = sum(np.sum(now - path.arrival_s[:place] <= 1) < 5 for place, now in enumerate(path.arrival_s))
    assert table.others.tolist() == ["0 to 4", "5 or more"]
    assert table.requests.tolist() == [few, len(path.arrival_s) - few]


@pytest.mark.slow
def test_who_sees_the_regime_uses_its_own_numbers():
    case = learned_price.Unseen((released_edge(),), HiddenRegimes((2.0, 16.0), 5.0, 20.0))
    start, rates = case.arrivals.regimes(np.random.default_rng([3, 1]))
    assert len(start) == len(rates) and set(rates) <= {2.0, 16.0} and start[0] == 0
    times = case.arrivals.times(np.random.default_rng([3, 1]))  # the same draws come first
    busy = rates[np.searchsorted(start, times, side="right") - 1] == 16.0
    assert busy.mean() > 0.6 or not (rates == 16.0).any()
    assert callable(seeing(case, 3, 2))


def test_every_scenario_plays_and_all_but_the_plainest_were_never_trained_on():
    cases = scenarios(5.0)
    assert len(cases) == 16 and {len(case.edges) for case in cases.values()} == {1, 4}
    for name in ("half a second", "four edges"):
        rows = play_scenario(name, "learned", 1)
        assert len(rows) == 1 and np.isfinite(rows[0]["gain_s"])
    trained = {repr((ground.system.edges, ground.arrivals)) for ground in learned_price.edge_grounds()}
    met = [name for name, case in scenarios(50.0).items() if repr((case.edges, case.arrivals)) in trained]
    assert met == ["3 a second", "3 a second, compute moves"]


def test_the_shipped_tables_are_what_the_notebook_reads():
    played = pd.read_csv(data_path("learning", "learned_price.csv"))
    assert set(played.scenario) == set(scenarios())
    assert set(played.policy) == {*learned_price.FAST, *learned_price.SLOW, SEEING}
    assert played.groupby(["scenario", "policy"]).path.nunique().loc[:, "learned"].min() >= 200
    crowd = pd.read_csv(data_path("learning", "granted_by_crowd.csv"))
    assert crowd.groupby("others").requests.nunique().eq(1).all()  # every policy met the same requests
    without = pd.read_csv(data_path("learning", "twin_without.csv"))
    assert set(without.without) == set(learned_price.WITHOUT) and without.share.between(0.5, 1.0).all()
    assert set(pd.read_csv(data_path("learning", "edge_learners.csv")).learner) == set(LEARNERS)
    for name in ("twin", "edge"):
        assert read_meta(data_path("agents", f"{name}_curve.safetensors"))["kind"] == "trained"


def test_the_twins_agent_keeps_its_promise_at_every_rate_and_level():
    from splitpoint.edge import load_curve

    curve = load_curve(data_path("agents", "twin_curve.safetensors"))
    assert judge_twin(curve, (0.5, 3.0), ((1.0, 2.0, 4.0), (8.0,))).share.min() > 0.995


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["PPO on the price rule", "maskable PPO on the price rule", "recurrent PPO on the price rule"]
)
def test_learners_learn_and_are_judged(name, monkeypatch):
    case = learned_price.Unseen((released_edge(),), Poisson(4.0, 5.0))
    monkeypatch.setattr(
        learned_price,
        "scenarios",
        lambda: dict.fromkeys(("8 a second", "16 a second", "hidden regimes", "ramp from 2 to 20"), case),
    )
    rows = learn_and_play(name, 100, 0, 2)
    assert len(rows) == 8 and all(np.isfinite(row["gain_s"]) for row in rows)


def test_figures_draw_what_they_are_given():
    twin = Twin(1.0)
    choice = twin.rule("myopic")
    cost = twin.costs(choice, twin.evaluate(choice)[1])
    assert len(figures.cost_map(twin, cost, 3).axes[1].lines) == twin.max_batch
    exact = np.linspace(0, 5, 240)
    ax = figures.samples_against_exact(exact, exact + 1)
    means = ax.containers[0].lines[0].get_ydata()
    assert len(means) == 12 and means[0] == pytest.approx(exact[:20].mean() + 1)
    table = pd.DataFrame(gains("a", 2.0) + gains("b", -2.0, seed=1))
    figure = figures.ahead(paired(table), ["rule"], {})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_a_state_price_is_a_ground():
    ground = learned_price.EdgeGround(System((released_edge(),)), Poisson(4.0, 30.0), StatePrice(0.0, 2.0))
    assert ground.first == StatePrice(0.0, 2.0)

"""Coupled rollouts against exact costs, and curves that are fitted to them."""

import numpy as np
import pytest

from splitpoint.edge import (
    HOME,
    ConstantCapacity,
    Decision,
    Edge,
    MarkovCapacity,
    Poisson,
    Recorded,
    System,
    Twin,
    draw_paths,
    grant_value_s,
    load_curve,
    make_policy,
    save_curve,
    simulate,
)
from splitpoint.edge.policies import StatePrice
from splitpoint.files import data_path
from splitpoint.learning.curve_training import fit_curve, train_policy
from splitpoint.learning.rollouts import EdgeGround, Samples, TwinGround
from splitpoint.study.living_edge import released_edge

FEATURES = ("free", "batch", "rate_10")


@pytest.mark.slow
@pytest.mark.parametrize("rule, numbers", [("myopic", ()), ("state_price", (0.4, 1.2))])
def test_rollouts_on_the_twin_are_right_on_average(rule, numbers):
    twin = Twin(1.5)
    choice = twin.rule(rule, numbers)
    exact = twin.costs(choice, twin.evaluate(choice)[1])
    (hist, level, waiting), cost = TwinGround(twin).costs(choice, (1, 3, 6), 12_000, seed=0)
    for column, steps in enumerate((1, 3, 6)):
        wanted = exact[hist, steps, level, waiting - 1]
        off = cost[:, column] - wanted
        for here in (wanted < np.median(wanted), wanted >= np.median(wanted)):  # cheap states and dear ones apart
            assert abs(off[here].mean()) < 4 * off[here].std() / np.sqrt(here.sum())
        assert np.corrcoef(cost[:, column], wanted)[0, 1] > 0.15


def test_exact_costs_are_what_decides_in_the_optimum():
    twin = Twin(2.0)
    _, choice, value = twin.optimum()
    cost = twin.costs(choice, value)
    finite = np.where(np.isfinite(cost), cost, 1e9)
    assert np.array_equal(twin.choose(finite[None]), choice)
    assert np.all(cost[:, 0] == 0) and np.all(cost[:, 1:] > -1e-9)


def test_a_grant_on_an_empty_edge_costs_its_own_time():
    edge = Edge(released_edge().latency, ConstantCapacity(0.5))
    system = System((edge,))
    ground = EdgeGround(system, Recorded((12.0,), 40.0), StatePrice(0.0, 1.0), warm_up_s=5.0, after_s=28.0)
    samples = [ground.sample(None, FEATURES, (40.0, 120.0), 1, seed) for seed in range(30)]
    samples = Samples.together([part for part in samples if len(part)])
    step_s = edge.step_table_s()[1] / 0.5
    assert len(samples) > 5
    assert samples.cost_s == pytest.approx(np.tile([40 * step_s, 120 * step_s], (len(samples), 1)))
    assert samples.base_s == pytest.approx(step_s)
    assert samples.unit_s == pytest.approx(edge.step_table_s()[-1] / 0.5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_sample_is_the_difference_of_two_whole_runs(count):
    edges = tuple(
        Edge(released_edge(8).latency, MarkovCapacity((1.0, 0.5), 3.0), transfer_s=0.02 * i) for i in range(count)
    )
    ground = EdgeGround(System(edges), Poisson(6.0, 26.0), StatePrice(0.0, 1.5))
    samples = ground.sample(None, FEATURES, (60.0,), 6, seed=3)
    rng = np.random.default_rng([3, 1])
    number, paths = ground._asked(draw_paths(edges, ground.arrivals, 3, 6), rng)
    where = rng.integers(count, size=6)
    wanted = []
    for path, i, edge in zip(paths, number, where):
        gains = []
        for steps in (0, 60):

            def forced(observation, steps=steps, path=path, i=i, edge=edge):
                if observation.time_s == path.arrival_s[i]:
                    return Decision(edge if steps else HOME, steps)
                return StatePrice(0.0, 1.5)(observation)

            table = simulate(edges, [path], forced, close=False)
            own = grant_value_s(path.alpha[i], path.device_step_s[i], steps, edges[edge].transfer_s)
            gains.append(table.gain_s.sum() - own)
        wanted.append(gains[0] - gains[1])
    assert samples.cost_s[:, 0] == pytest.approx(np.array(wanted)[: len(samples)])


def test_ones_own_time_is_less_than_what_a_grant_costs_everybody():
    """On an empty edge they are the same; where others come, the rest is their delay."""
    edge = Edge(released_edge().latency, ConstantCapacity(0.5))
    alone = EdgeGround(System((edge,)), Recorded((12.0,), 40.0), StatePrice(0.0, 1.0), 5.0, 28.0, "own")
    parts = [part for seed in range(10) if len(part := alone.sample(None, FEATURES, (40.0,), 1, seed))]
    assert len(parts) > 1
    assert Samples.together(parts).cost_s == pytest.approx(40 * edge.step_table_s()[1] / 0.5)
    own, all_of_it = (
        EdgeGround(System((released_edge(),)), Poisson(8.0, 26.0), StatePrice(0.0, 2.0), cost_of=whose)
        .sample(None, FEATURES, (60.0,), 60, seed=1)
        .cost_s.mean()
        for whose in ("own", "everybody")
    )
    assert 60 * released_edge().step_table_s()[1] < own < 0.8 * all_of_it


def test_imitation_learns_what_the_re_solver_would_charge():
    system, arrivals = System((released_edge(),)), Recorded(tuple(np.arange(2.0, 30.0, 0.4)), 40.0)
    ground = EdgeGround(system, arrivals, StatePrice(0.0, 2.0), 5.0, 15.0, "price")
    samples = ground.sample(None, FEATURES, (40.0, 120.0), 20, seed=0)
    charged, fluid = set(), make_policy("fluid_resolving", system.edges, arrivals)

    def watched(observation):
        charged.update(fluid.prices(observation).ravel().tolist())
        return ground.first(observation)

    watched.many = True
    simulate(system.edges, draw_paths(system.edges, arrivals, 0, 20), watched, close=False)
    assert len(samples) > 10 and samples.cost_s[:, 1] == pytest.approx(3 * samples.cost_s[:, 0])
    nearest = np.abs(samples.cost_s[:, [0]] / 40 - np.array(sorted(charged))).min(axis=1)
    assert nearest.max() < 1e-12


def test_a_line_is_found_again():
    rng = np.random.default_rng(0)
    x, unit = rng.uniform(size=(4_000, 3)), rng.uniform(0.5, 2.0, 4_000)
    base = 0.01 * (1 + x[:, 1])
    true = (x @ np.array([[1.0, 2.0], [0.5, 3.0], [2.0, -1.0]]) + 0.3) * unit[:, None] + base[:, None] * (40.0, 80.0)
    noisy = true + rng.normal(size=true.shape)
    curve = fit_curve(Samples(x, base, unit, noisy), FEATURES, (40.0, 80.0), hidden=(), epochs=200)
    z = (x - curve.mean) / curve.scale
    found = (z @ curve.weights[0].T + curve.biases[0]) * unit[:, None] + base[:, None] * (40.0, 80.0)
    assert np.abs(found - true).mean() < 0.15  # a tenth of the noise, or less


class Interrupted(Exception):
    pass


def test_a_training_that_was_cut_off_goes_on_to_the_same_curve(tmp_path):
    grounds = [TwinGround(Twin(1.0)), EdgeGround(System((released_edge(),)), Poisson(4.0, 26.0), StatePrice(0.0, 2.0))]
    settings = dict(generations=3, count=20, features=FEATURES, hidden=(4,), epochs=3)
    whole = train_policy(grounds, **settings)

    def cut(generation, curve):
        if generation == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_policy(grounds, **settings, folder=tmp_path / "kept", after=cut)
    seen = []
    again = train_policy(grounds, **settings, folder=tmp_path / "kept", after=lambda number, curve: seen.append(number))
    assert seen == [2]
    for one, other in zip((*whole.weights, *whole.biases), (*again.weights, *again.biases)):
        assert np.array_equal(one, other)
    for kind in ("curve", "samples"):
        file = tmp_path / "kept" / f"{kind}_02.safetensors"
        kept = file.read_bytes()
        file.write_bytes(kept[:-3] + bytes([kept[-3] ^ 1]) + kept[-2:])
        with pytest.raises(ValueError, match=f"{kind}_02.safetensors .*damaged"):
            train_policy(grounds, **settings, folder=tmp_path / "kept")
        file.write_bytes(kept)
    with pytest.raises(ValueError, match="another training"):
        train_policy(grounds, **settings | dict(count=21), folder=tmp_path / "kept")


def test_the_curve_that_ships_is_near_the_online_optimum_at_rates_that_it_never_saw():
    curve = load_curve(data_path("agents", "twin_curve.safetensors"))
    for rate, levels in ((0.75, (2.0, 4.0, 8.0)), (2.5, (1.0, 2.0, 4.0)), (1.5, (4.0,))):
        ground = TwinGround(Twin(rate, levels))
        assert ground.twin.evaluate(ground.choice(curve))[0] > 0.99 * ground.twin.optimum()[0]


def test_a_curve_is_the_same_after_it_was_saved(tmp_path):
    rng = np.random.default_rng(1)
    samples = Samples(rng.normal(size=(50, 3)), np.ones(50), np.ones(50), rng.normal(size=(50, 2)))
    curve = fit_curve(samples, FEATURES, (40.0, 80.0), (4,), 2)
    save_curve(tmp_path / "curve.safetensors", curve)
    paths = draw_paths([released_edge()], Poisson(8.0, 10.0), 0, 2)
    one = simulate([released_edge()], paths, curve)
    other = simulate([released_edge()], paths, load_curve(tmp_path / "curve.safetensors"))
    assert one.equals(other)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(grounds=[]), "grounds"), (dict(grounds=[1]), "grounds"), (dict(generations=0), "generations"),
        (dict(count=1.5), "count"), (dict(features=("size",)), "features"), (dict(knots=(0.0,)), "knots"),
        (dict(hidden=(0,)), "hidden"), (dict(epochs=0), "epochs"), (dict(seed=-1), "seed"), (dict(jobs=0), "jobs"),
        (dict(knots=(30.0,)), "knots"), (dict(folder=""), "folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_by_name(wrong, said):
    with pytest.raises(ValueError, match=said):
        train_policy(**dict(grounds=[TwinGround(Twin(1.0))], generations=1, count=2) | wrong)


@pytest.mark.parametrize(
    "wrong", [dict(system=1), dict(arrivals=1), dict(warm_up_s=-1.0), dict(after_s=40.0), dict(after_s=float("nan"))]
)
def test_a_ground_that_is_none_is_refused_by_name(wrong):
    good = dict(system=System((released_edge(),)), arrivals=Poisson(4.0, 30.0))
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EdgeGround(**good | wrong)

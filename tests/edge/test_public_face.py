"""Bad input of the room of requests over time: a ValueError that names the argument, before any work."""

import numpy as np
import pandas as pd
import pytest

from splitpoint import edge as e
from splitpoint.edge import core, steady, window_game
from splitpoint.edge.policies import (
    AdaptivePrice,
    AllLocal,
    DriftPlusPenalty,
    Fluid,
    MirrorDescent,
    PostedPrice,
    Rollout,
    StatePrice,
    WindowPlan,
    fluid,
    posted_price,
    tune_adaptive_price,
    tune_patience,
    tune_state_price,
)
from splitpoint.offloading import LatencyModel
from tests.test_public_face import (
    ARRAYS,
    GENERATORS,
    NAMES,
    NUMBERS,
    OBJECTS,
    WHOLE,
    check_face,
    check_names,
)

EDGE = e.Edge(LatencyModel(0.001, 0.001), max_batch=4)
SYSTEM = e.System((EDGE,))
POISSON = e.Poisson(4.0, 2.0)
PATH = e.draw_paths([EDGE], POISSON, 1)[0]
DRAW = dict(rng=np.random.default_rng(0), horizon_s=5.0)
WINDOW = window_game.draw_windows(1)[0]
TWIN = e.Twin(1.0, coarse=60, levels=(4.0,), most_steps=2, max_batch=2, num_types=2, most_waiting=2)
CURVE = e.LearnedCurve((np.zeros((2, 1)),), (np.zeros(2),), ("free",))
SEEN = e.observe(e.Request(0, 0.0, 0.1, 1.0), [e.EdgeCore(4)], [1.0], np.zeros(3), SYSTEM)
TABLE = pd.DataFrame(dict(edge=[], replication=[], arrival_s=[], joined_s=[], left_s=[]))
BUSY = core.EdgeCore(2)

SIGNED = [n for n in NUMBERS if n != -1]
POSITIVE = [*NUMBERS, 0]
COUNTS = [*WHOLE, 0]
ROWS = [*ARRAYS, [], 1.0, [[1.0]]]
SIGNED_ARRAYS = [a for a in ARRAYS if not (isinstance(a, list) and a == [-1.0, -1.0])]
EDGES = [None, 5, "x", {}, [], (), [5], ["x"], [None], object(), len, EDGE, {EDGE}]
FLAGS = [None, "yes", 1, 0.0, [], object()]
FUNCTIONS = [None, 5, "x", [], {}, float("nan")]
PATHS = [None, 3, "", b"x", [], object(), "a\0b"]
STREAM = dict(horizon_s=POSITIVE, users=OBJECTS)

FACE = [
    # where requests come from
    (e.Users, {}, dict(profiles=[o for o in OBJECTS if o is not None], reference=[o for o in OBJECTS if o is not None])),
    (e.Users().draw, dict(rng=DRAW["rng"], count=2), dict(rng=GENERATORS, count=WHOLE)),
    (e.Poisson, dict(rate_hz=1.0), dict(rate_hz=NUMBERS, **STREAM)),
    (e.Ramp, dict(first_hz=1.0, last_hz=2.0), dict(
        first_hz=NUMBERS, last_hz=NUMBERS, jump_s=[n for n in SIGNED if n is not None], **STREAM)),
    (e.HiddenRegimes, {}, dict(rates_hz=ROWS, mean_stay_s=POSITIVE, **STREAM)),
    (e.FittedTrace, dict(rate_hz=1.0), dict(rate_hz=POSITIVE, gap_cv=POSITIVE, minute_cv=NUMBERS, **STREAM)),
    (e.fitted_trace, dict(name="azure_code"), dict(name=NAMES, **STREAM)),
    (e.Recorded, dict(moments_s=[1.0, 2.0]), dict(moments_s=[*ARRAYS, 1.0, [[1.0]]], **STREAM)),
    (e.read_trace, dict(path="none.csv"), dict(path=[*PATHS, "none.csv"], horizon_s=POSITIVE)),
    (e.Path, dict(arrival_s=[0.0, 1.0], device_step_s=[0.1, 0.1], alpha=[1.0, 1.0], draw=[0.5, 0.5],
                  capacity=PATH.capacity, horizon_s=2.0), dict(
        arrival_s=[*ARRAYS, [1.0], [2.0, 1.0], 1.0, [[0.0, 1.0]]], device_step_s=[*ARRAYS, 1.0], alpha=[*ARRAYS, 1.0],
        draw=[*ARRAYS, 1.0], capacity=[*OBJECTS, [5]], horizon_s=POSITIVE)),
    (e.draw_paths, dict(edges=[EDGE], arrivals=POISSON), dict(
        edges=EDGES, arrivals=OBJECTS, seed=WHOLE, replications=COUNTS)),
    *((kind.times, dict(rng=DRAW["rng"]), dict(rng=GENERATORS))
      for kind in (POISSON, e.Ramp(1, 2), e.HiddenRegimes(), e.fitted_trace("azure_code"))),
    # free compute
    (e.ConstantCapacity, {}, dict(share=POSITIVE)),
    (e.MarkovCapacity, {}, dict(
        shares=[*ROWS, [0.0, 1.0]], mean_stay_s=POSITIVE,
        odds=[o for o in [*ROWS, [[0.5, 0.5], [0.5, 0.6]]] if o is not None])),
    (e.DutyCycleCapacity, {}, dict(shares=[*ROWS, [0.0, 1.0]], minute_odds=[*ROWS, [[0.5, 0.5], [0.5, 0.6]]])),
    (e.RecordedCapacity, dict(start_s=[0.0, 1.0], share=[1.0, 0.5]), dict(
        start_s=[*ROWS, [1.0, 2.0], [0.0, 0.0]], share=[*ROWS, [1.0], [0.0, 1.0]])),
    (e.CapacityPath, dict(start_s=[0.0, 1.0], share=[1.0, 0.5]), dict(
        start_s=[*ROWS, [1.0, 2.0], [0.0, 0.0]], share=[*ROWS, [1.0], [0.0, 1.0]])),
    (PATH.capacity[0].at, dict(time_s=1.0), dict(time_s=[*(a for a in ARRAYS), -1.0, float("nan")])),
    (PATH.capacity[0].work, dict(time_s=1.0), dict(time_s=[*ARRAYS, -1.0, float("nan")])),
    (PATH.capacity[0].seconds, dict(work=1.0), dict(work=[None, "x", -1.0, [-1.0, 1.0], {}, len, True])),
    (PATH.capacity[0].pieces, dict(horizon_s=1.0), dict(horizon_s=POSITIVE)),
    *((kind.draw, DRAW, dict(rng=GENERATORS, horizon_s=POSITIVE))
      for kind in (e.ConstantCapacity(), e.MarkovCapacity(), e.DutyCycleCapacity())),
    (e.Link, {}, dict(rate_bps=POSITIVE, delay_s=NUMBERS)),
    (e.Link().transfer_s, {}, dict(parameters=OBJECTS)),
    # edges, requests, what is seen
    (e.Edge, dict(latency=EDGE.latency), dict(
        latency=OBJECTS, capacity=OBJECTS, max_batch=COUNTS, transfer_s=NUMBERS)),
    (e.Request, dict(id=0, arrival_s=0.0, device_step_s=0.1, alpha=1.0), dict(
        arrival_s=NUMBERS, device_step_s=POSITIVE, alpha=NUMBERS)),
    (e.grant_value_s, dict(alpha=1.0, device_step_s=0.1, steps=10, transfer_s=0.1), dict(
        alpha=ARRAYS, device_step_s=ARRAYS, steps=ARRAYS, transfer_s=ARRAYS, parameters=OBJECTS)),
    (e.EdgeCore, {}, dict(max_batch=COUNTS)),
    (BUSY.submit, dict(request_id=0, steps=1), dict(request_id=[[1], {}, set()], steps=COUNTS)),
    (BUSY.next_batch, dict(now_s=0.0), dict(now_s=SIGNED)),
    (BUSY.step_done, dict(now_s=0.0), dict(now_s=SIGNED)),
    (BUSY.cancel, dict(request_id=9, now_s=0.0), dict(now_s=SIGNED)),
    (BUSY.close, dict(now_s=0.0), dict(now_s=SIGNED)),
    (e.System, dict(edges=(EDGE,)), dict(edges=EDGES, parameters=OBJECTS)),
    (e.observe, dict(request=e.Request(0, 0.0, 0.1, 1.0), cores=[BUSY], free=[1.0], rates_hz=np.zeros(3), system=SYSTEM), dict(
        request=OBJECTS, cores=[*OBJECTS, [5]], free=[*ROWS, [1.0, 1.0]], rates_hz=ROWS, system=OBJECTS,
        draw=[*NUMBERS, 2.0])),
    (SEEN.features, dict(names=["free"]), dict(names=[None, 3, "free", "", [], ["x"], [None], [3], len])),
    # the simulator
    (e.Simulation, dict(system=SYSTEM, paths=[PATH]), dict(system=OBJECTS, paths=[*OBJECTS, [], [5]])),
    (e.simulate, dict(edges=[EDGE], arrivals=POISSON, policy=AllLocal()), dict(
        edges=EDGES, arrivals=[*OBJECTS, [5], [PATH, None]], policy=FUNCTIONS, seed=WHOLE, replications=COUNTS, close=FLAGS,
        parameters=OBJECTS)),
    (e.batch_over_time, dict(table=TABLE), dict(table=[*OBJECTS, pd.DataFrame()], edge=WHOLE, replication=WHOLE)),
    # what is possible
    (e.price_bound, dict(edges=[EDGE], requests=PATH), dict(
        edges=EDGES, requests=OBJECTS, horizon_s=[n for n in POSITIVE if n is not None], parameters=OBJECTS)),
    (e.slot_bound, dict(edge=EDGE, requests=PATH), dict(
        edge=OBJECTS, requests=OBJECTS, slot_s=POSITIVE, pieces=COUNTS, parameters=OBJECTS)),
    (e.clairvoyant, dict(worth_s=[[1.0]], first_tick=[0], tick_cost_s=[[1.0], [1.0]], steps=[1]), dict(
        worth_s=[*SIGNED_ARRAYS, [1.0], 1.0, [[1.0, 2.0]]], first_tick=[*ARRAYS, [0.5], [0, 1]], steps=[*ARRAYS, [0], [1.5], 1],
        tick_cost_s=[*SIGNED_ARRAYS, 1.0, [[2.0, 1.0]]])),
    (e.segment_costs, dict(edge=EDGE, share=[1.0]), dict(edge=OBJECTS, share=[*ROWS, [0.0]], steps_a_tick=COUNTS)),
    (e.bracket, dict(edge=EDGE, requests=PATH), dict(
        edge=OBJECTS, requests=OBJECTS, rounds=COUNTS, grid=COUNTS, tries=WHOLE, seed=WHOLE, start=FUNCTIONS[1:],
        parameters=OBJECTS)),
    (e.steady_state, dict(edge=EDGE, work_hz=1.0), dict(edge=OBJECTS, work_hz=[*NUMBERS, 1e9], share=POSITIVE)),
    (e.mean_inside, dict(edge=EDGE, work_hz=1.0), dict(edge=OBJECTS, work_hz=NUMBERS, share=POSITIVE)),
    (steady.capacity_hz, dict(edge=EDGE), dict(edge=OBJECTS, share=POSITIVE)),
    (e.best_steps, dict(alpha=1.0, device_step_s=0.1, price_s=0.1, transfer_s=0.1), dict(
        alpha=ARRAYS, device_step_s=ARRAYS, price_s=SIGNED_ARRAYS, transfer_s=ARRAYS, parameters=OBJECTS,
        fee_s=[None, "x", float("nan"), {}, len, True, [None, 1.0]])),
    (e.demand_of, dict(users=e.Users(), transfer_s=0.1), dict(
        users=OBJECTS, transfer_s=NUMBERS, parameters=OBJECTS, sample=COUNTS, seed=WHOLE)),
    (e.demand_of(e.Users(), 0.1).at, dict(price_s=0.1), dict(price_s=ARRAYS)),
    (e.static_price, dict(edge=EDGE, rate_hz=1.0), dict(
        edge=OBJECTS, rate_hz=NUMBERS, users=OBJECTS, share=POSITIVE, parameters=OBJECTS)),
    (e.static_prices, dict(system=SYSTEM, rate_hz=1.0), dict(
        system=OBJECTS, rate_hz=NUMBERS, users=OBJECTS, shares=[*(r for r in ROWS if r is not None), [0.0], [1.0, 1.0]],
        sweeps=COUNTS)),
    (e.Twin, {}, dict(
        rate_hz=POSITIVE, levels=[*ROWS, [0.0]], mean_stay_s=POSITIVE, gpu=OBJECTS, coarse=COUNTS, most_steps=COUNTS,
        max_batch=COUNTS, num_types=COUNTS, most_waiting=COUNTS, users=OBJECTS, seed=WHOLE)),
    (TWIN.rule, dict(name="price", numbers=[1.0]), dict(name=NAMES, numbers=[*SIGNED_ARRAYS, [], [1.0, 2.0]])),
    (TWIN.choose, dict(cost_s=0.0), dict(cost_s=[*SIGNED_ARRAYS, np.zeros(7)])),
    (TWIN.decide, dict(value=TWIN.step_s), dict(value=[*SIGNED_ARRAYS, 1.0])),
    (TWIN.evaluate, dict(choice=TWIN.rule("myopic")), dict(choice=[*ARRAYS, 1, TWIN.rule("myopic") + 9, TWIN.rule("myopic") + 0.5])),
    # policies
    (e.make_policy, dict(name="first_come", edges=[EDGE]), dict(
        name=NAMES, edges=EDGES, arrivals=OBJECTS[1:], parameters=OBJECTS)),
    (e.register_policy, dict(name="mine", maker=len), dict(name=[None, 3, "", ["a"], b"x"], maker=FUNCTIONS)),
    (PostedPrice, dict(price_s=[0.1], system=SYSTEM), dict(price_s=[*ARRAYS, [0.1, 0.2]], system=OBJECTS)),
    (StatePrice, dict(fixed_s=0.1, slope=1.0), dict(fixed_s=SIGNED, slope=SIGNED)),
    (AdaptivePrice, dict(rates_hz=[1.0, 2.0], numbers=[[0.0, 1.0]] * 2), dict(
        rates_hz=[*ROWS, [2.0, 1.0]], numbers=[*SIGNED_ARRAYS, [[1.0, 1.0]]], scale=[*WHOLE, 3])),
    (Fluid, dict(demand=(e.demand_of(e.Users(), 0.1),), system=SYSTEM), dict(
        demand=[*OBJECTS, [5]], system=OBJECTS, horizon_s=POSITIVE, futures=WHOLE, choose=NAMES, scale=[*WHOLE, 3])),
    (MirrorDescent, dict(system=SYSTEM), dict(system=OBJECTS, first_price_s=POSITIVE, rate=NUMBERS)),
    (MirrorDescent(SYSTEM).reset, dict(runs=1), dict(runs=COUNTS)),
    (DriftPlusPenalty, {}, dict(patience=POSITIVE)),
    (WindowPlan, {}, dict(window_s=POSITIVE, count_those_inside=FLAGS, charge_waiting=FLAGS)),
    (Rollout, dict(base=AllLocal()), dict(
        base=FUNCTIONS, users=OBJECTS, futures=[*COUNTS, 1], horizon_s=POSITIVE, fractions=ROWS, seed=WHOLE)),
    (e.LearnedCurve, dict(weights=CURVE.weights, biases=CURVE.biases, features=("free",)), dict(
        weights=[*OBJECTS, [np.zeros((3, 1))], [[float("nan")]]], biases=[*OBJECTS, [np.zeros(3)], [[float("nan")]]],
        features=[None, 3, "free", (), ("x",), (3,)], output=NAMES, activation=NAMES, base=NAMES,
        knots=[[float("nan")], "x", [-1.0]], mean=ROWS[1:], scale=ROWS[1:])),
    (e.save_curve, dict(path="x.safetensors", curve=CURVE), dict(path=PATHS, curve=OBJECTS)),
    (e.load_curve, dict(path="x.safetensors"), dict(path=[*PATHS, "none.safetensors"])),
    *((tune, dict(system=SYSTEM, arrivals=POISSON), dict(system=OBJECTS, arrivals=OBJECTS))
      for tune in (posted_price, fluid)),
    *((tune, dict(system=SYSTEM, arrivals=POISSON), dict(system=OBJECTS, arrivals=OBJECTS, seed=WHOLE, replications=COUNTS))
      for tune in (tune_state_price, tune_patience)),
    (tune_adaptive_price, dict(system=SYSTEM, arrivals=POISSON), dict(
        system=OBJECTS, arrivals=OBJECTS, rates_hz=ROWS, replications=COUNTS)),
    # one window
    (window_game.draw_windows, dict(count=1), dict(
        count=COUNTS, num_edge_gpus=COUNTS, num_users=[None, 5, "x", (3, 1), (0, 1), (1.5, 2), (1,), True], seed=WHOLE,
        parameters=OBJECTS)),
    (window_game.run_online, dict(instance=WINDOW, policy=window_game.first_come), dict(
        instance=OBJECTS, policy=[*FUNCTIONS, lambda arrival: None, lambda arrival: 0.5])),
    (window_game.threshold, dict(batch_size=2, price_s=1.0), dict(batch_size=COUNTS, price_s=SIGNED)),
    (window_game.tune_threshold, dict(past=[WINDOW]), dict(past=[*OBJECTS, [5]], num_prices=COUNTS)),
    (window_game.users_still_to_come, dict(past_counts=[4], seen=1, elapsed=0.5), dict(
        past_counts=[*ARRAYS, [1.5], [], 4], seen=COUNTS, elapsed=[*NUMBERS, 1.5])),
    (window_game.rolling, dict(past=[WINDOW]), dict(past=[*OBJECTS, [5]], futures=COUNTS, seed=WHOLE)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(scratch_project, monkeypatch):
    """Nothing of this may be written into the project."""
    monkeypatch.chdir(scratch_project)


@pytest.mark.filterwarnings("ignore")
def test_bad_input_over_time_is_refused_by_name():
    check_face(FACE, 3000)


def test_the_table_over_time_names_arguments_that_exist():
    check_names(FACE)

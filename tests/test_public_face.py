"""Bad input of every public function of the planning rooms: a ValueError that names the argument, before any work."""

import datetime
import inspect
import itertools

import numpy as np
import pytest

from splitpoint import offloading as o
from splitpoint.offloading import fits, hardware
from splitpoint.offloading.solvers import genetic
from splitpoint.offloading.windows import Scenario, stack_windows
from splitpoint.study import sweeps
from splitpoint.tables import load_or_run

RAGGED = [[1.0, 2.0], [3.0]]
NUMBERS = [None, "0.1", "x", "1e3", b"1", True, float("nan"), float("inf"), -float("inf"), -1, 10**400, 1 + 2j, [1], (), {},
           set(), object(), len, datetime.date(2026, 1, 1), np.float64("nan"), np.array([1.0]), np.bool_(True)]  # fmt: skip
WHOLE = [*NUMBERS, 1.5, 3.0, np.array(2), np.arange(2), "3"]
ARRAYS = [None, "0.1", ["a", "b"], [None, 1.0], [True, False], [float("nan"), 1.0], [float("inf"), 1.0], [-1.0, -1.0],
          RAGGED, {}, object(), np.ma.masked_array([1.0, 2.0], [True, False]), [datetime.date(2026, 1, 1)] * 2,
          np.array("x"), [1 + 2j, 1.0], [10**400, 1], "text", b"12", {1.0, 2.0}, [[], [1.0]], [{}, 1.0], [len, 1.0], True,
          np.array([1.0, None]), np.array(["1", "2"]), [-float("inf"), 0.0]]  # fmt: skip
NAMES = [
    None,
    3,
    True,
    "",
    "nothing",
    ["exact"],
    b"exact",
    float("nan"),
    object(),
    ("static",),
    {},
    len,
    np.array(["x"]),
]
OBJECTS = [None, 5, "x", {}, [], object(), len, float("nan"), np.zeros(2), (1, 2)]
GENERATORS = [None, 0, "0", np.random.RandomState(0), object()]

RNG = np.random.default_rng(0)
INSTANCE = o.sample_instance(3, 4, RNG)
PLAN = o.solve(INSTANCE)
LINE = o.LatencyModel(0.01, 0.02)
PARAMETERS = o.SystemParameters()
BATCH, SECONDS = np.array([1.0, 2, 4, 8]), np.array([0.1, 0.2, 0.4, 0.8])
SPLIT = np.linspace(0, 200, 11)

#: function, arguments that are fine, and for each of some arguments what is not
FACE = [
    (o.LatencyModel, dict(slope_s=0.1, intercept_s=0.1), dict(slope_s=NUMBERS, intercept_s=[n for n in NUMBERS if n != -1])),
    (LINE.shared_by, dict(num_gpus=2), dict(num_gpus=NUMBERS)),
    (o.AccuracyModel, dict(steepness=0.1, midpoint=1.0, ceiling=1.0), dict(
        steepness=NUMBERS, midpoint=[n for n in NUMBERS if n != -1], ceiling=NUMBERS)),
    (o.AccuracyModel(0.1, 1).rescaled, dict(num_steps=50, of=200), dict(num_steps=NUMBERS, of=NUMBERS)),
    (o.TableLatency, dict(batch=(1, 2), seconds=(0.1, 0.2)), dict(batch=ARRAYS, seconds=ARRAYS)),
    (o.SystemParameters, {}, dict(
        num_steps=[*WHOLE, 0], min_split=[*WHOLE, 300], max_batch=WHOLE, bandwidth_hz=[*NUMBERS, 0],
        spectral_efficiency=[*NUMBERS, 0], prompt_bits=NUMBERS, intermediate_bits=NUMBERS, window_s=NUMBERS,
        transmission=NAMES, accuracy=OBJECTS, edge_step_cost_s=[n for n in NUMBERS if n != -1],
        device_step_cost_s=[n for n in NUMBERS if n != -1], handover_cost_s=[n for n in NUMBERS if n != -1])),
    (o.Instance, dict(edge=LINE, device_step_s=[0.1, 0.2], alpha=[1.0, 2.0], arrival_s=[0.0, 0.0]), dict(
        edge=OBJECTS, device_step_s=[*ARRAYS, [0.0, 1.0], [300.0, 1.0], [1.0]], alpha=[*ARRAYS, [1.0]],
        arrival_s=[*ARRAYS, [2.0, 0.0]], parameters=OBJECTS)),
    (o.sample_instance, dict(num_users=2, num_edge_gpus=2, rng=RNG), dict(
        num_users=[*WHOLE, 0], num_edge_gpus=[*WHOLE, 0], rng=GENERATORS, parameters=OBJECTS)),
    (o.released_instance, dict(num_users=2, num_edge_gpus=2, seed=0), dict(
        num_users=[*WHOLE, 0], num_edge_gpus=[*WHOLE, 0], seed=WHOLE, parameters=OBJECTS)),
    (o.evaluate, dict(instance=INSTANCE, plan=PLAN), dict(instance=OBJECTS, plan=OBJECTS, batching=NAMES)),
    (o.check_plan, dict(instance=INSTANCE, plan=PLAN), dict(instance=OBJECTS, plan=OBJECTS)),
    (o.solve, dict(instance=INSTANCE), dict(instance=OBJECTS, method=NAMES)),
    (o.optimal_split, dict(alpha=1.0, step_saving_s=0.1, parameters=PARAMETERS), dict(
        alpha=ARRAYS, step_saving_s=[a for a in ARRAYS if a is not ARRAYS[7]], parameters=OBJECTS)),
    (genetic, dict(instance=INSTANCE, generations=1), dict(
        population=[*WHOLE, 1], generations=[*WHOLE, 0], mutation=[*NUMBERS, 2])),
    (o.grant_gains, dict(instance=INSTANCE, batch_sizes=[1, 2]), dict(instance=OBJECTS, batch_sizes=[*ARRAYS, [0], 1])),
    (o.plan_rows, dict(instance=INSTANCE, plan=PLAN), dict(instance=OBJECTS, plan=OBJECTS, batching=NAMES)),
    (o.read_users, dict(path="none.csv", edge=LINE), dict(path=[None, 3, "", "none.csv", b"x\0"], edge=OBJECTS)),
    (o.register, dict(name="mine", solver=len), dict(name=[None, 3, "", ["a"]], solver=[None, 3, "x", []])),
    (fits.fit_latency, dict(batch=BATCH, seconds=SECONDS), dict(
        batch=[*ARRAYS, BATCH[:2], [0.0, 1, 2, 3]], seconds=[*ARRAYS, SECONDS[:2], [0.0, 1, 2, 3]])),
    (fits.fit_two_piece, dict(batch=BATCH, seconds=SECONDS), dict(batch=[*ARRAYS, [0.0, 1, 2, 3]], seconds=ARRAYS)),
    (fits.fit_accuracy, dict(split=SPLIT, pai=SPLIT / 200), dict(
        split=[*ARRAYS, SPLIT[:2], np.zeros(11)], pai=[*ARRAYS, SPLIT[:2], SPLIT, np.zeros(11), 1 - SPLIT / 200])),
    (fits.line_error, dict(line=LINE, batch=BATCH, seconds=SECONDS), dict(seconds=ARRAYS)),
    (hardware.edge, dict(name="A100"), dict(name=NAMES, software=NAMES)),
    (hardware.device, dict(name="iPhone 14 Pro Max"), dict(name=NAMES)),
    (hardware.population, dict(name="the released devices"), dict(name=NAMES)),
    (Scenario, dict(num_users=(1, 3), num_edge_gpus=(4, 4)), dict(
        num_users=[None, 5, "x", (3, 1), (0, 1), (1.5, 2), (1,), True], num_edge_gpus=[None, 5, "x", (3, 1), (0, 1), (1.5, 2)],
        parameters=OBJECTS)),
    (Scenario((1, 3), (4, 4)).sample, dict(n=2, rng=RNG), dict(n=[*WHOLE, 0], rng=GENERATORS, max_users=[1, "x", 1.5, True])),
    (stack_windows, dict(instances=[INSTANCE]), dict(instances=[None, 5, [], [5], ["x"]], max_users=[0, 1, "x", 1.5])),
    (sweeps.reward_sweep, dict(name="t", num_users=(2,), num_edge_gpus=(2,), num_seeds=1, methods=("exact",)), dict(
        name=[None, 3, "", "../evil", "a/b"], num_users=[None, 5, "x", (0,), (1.5,), (True,), ()],
        num_edge_gpus=[None, 5, "x", (0,), (1.5,), (True,), ()], num_seeds=[*WHOLE, 0], first_seed=WHOLE, batching=NAMES,
        methods=[None, 5, "x", (), ("nothing",), (3,)], parameters=[5, "x", {}])),
    (load_or_run, dict(name="t", function=len, tasks=[{}], settings={}), dict(
        name=[None, 3, "", "../evil", "a/b", "..", "a\n"], tasks=[None, 5, []], kind=NAMES)),
]  # fmt: skip


def combinations(face):
    for function, fine, bad in face:
        for argument, values in bad.items():
            for value in values:
                yield function, fine, argument, value


@pytest.fixture(autouse=True)
def elsewhere(scratch_project):
    """Nothing of this may reach the project's own results."""


def answered(function, fine, argument, value) -> str | None:
    """None if the call was refused by name, else what happened instead."""
    try:
        function(**fine | {argument: value})
    except ValueError as error:
        named = argument.removesuffix("s") in str(error) or argument in str(error)
        return None if named else f"ValueError without the name: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def check_face(face, at_least):
    """Fails with a list of all calls of a table that were not refused by name."""
    cases = list(combinations(face))
    wrong = {}
    for function, fine, argument, value in cases:
        if said := answered(function, fine, argument, value):
            name = getattr(function, "__qualname__", str(function))
            wrong.setdefault(f"{name}({argument})", []).append(f"{value!r:.40} -> {said:.90}")
    count = sum(map(len, wrong.values()))
    assert len(cases) >= at_least, len(cases)
    assert not wrong, f"{count} of {len(cases)}:\n" + "\n".join(
        f"{name}: {len(said)}: " + " | ".join(said[:3]) for name, said in wrong.items()
    )


def check_names(face):
    """The table itself: arguments that exist, and calls that are fine without the bad one."""
    for function, fine, bad in face:
        known = inspect.signature(function).parameters
        assert set(itertools.chain(fine, bad)) <= set(known), function


@pytest.mark.filterwarnings("ignore")
def test_bad_input_is_refused_by_name():
    check_face(FACE, 1500)


def test_the_table_names_arguments_that_exist():
    check_names(FACE)

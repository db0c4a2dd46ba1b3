"""Bad input of the experiments: a ValueError that names the argument, before any work."""

import numpy as np
import pandas as pd
import pytest

from splitpoint.diffusion.accuracy import Calibration
from splitpoint.edge import Poisson, draw_paths
from splitpoint.edge.policies import AllLocal
from splitpoint.edge.window_game import draw_windows, first_come
from splitpoint.offloading import AccuracyModel, LatencyModel
from splitpoint.offloading.hardware import read_profile
from splitpoint.study import accuracy, latency, living_edge, online, sweeps
from tests.test_public_face import ARRAYS, NAMES, NUMBERS, OBJECTS, WHOLE, check_face, check_names

EDGE = living_edge.released_edge()
PATHS = draw_paths([EDGE], Poisson(2.0, 1.0), 1)
WINDOWS, CURVE = draw_windows(1), AccuracyModel(0.05, 100)
MEASURED = next(iter(read_profile(latency.profile_files()[0]).values()))
SAMPLES = pd.DataFrame(dict(prompt=["a", "b"], n=[0, 1], pai=[0.0, 1.0], split_point=[0, 1], num_steps=[50, 50]))
SAMPLES = SAMPLES.assign(seed=0, distance=0.1, text_score=0.2)

COUNTS, POSITIVE = [*WHOLE, 0], [*NUMBERS, 0]
ROWS = [*ARRAYS, [], 1.0, [[1.0]]]
TABLES = [*OBJECTS, pd.DataFrame()]
SEVERAL = [None, 5, "x", (0,), (1.5,), (True,), (), ("4",)]

FACE = [
    (living_edge.released_edge, {}, dict(num_gpus=COUNTS, compute=NAMES)),
    (living_edge.named_edge, dict(scenario=None), dict(scenario=OBJECTS)),
    (living_edge.play, dict(edges=[EDGE], paths=PATHS, named={"home": AllLocal()}), dict(
        edges=[*OBJECTS, [5]], paths=[*OBJECTS, [5]], named=[None, 5, "x", [], len, {"home": 5}][:5],
        bounds=[*(r for r in ROWS if r is not None), [1.0, 2.0]])),
    (living_edge.policy_sweep, dict(name="t", names=["all_local"], rates_hz=[2.0], num_paths=1, horizon_s=1.0), dict(
        name=[None, 3, "", "../evil", "a/b"], rates_hz=[*ROWS, [0.0]], names=[5, "x", ["nothing"], [3], len], num_paths=COUNTS,
        horizon_s=POSITIVE, compute=NAMES, seed=WHOLE)),
    (online.compare_online, dict(windows=WINDOWS, policies={"first": first_come}), dict(
        windows=[*OBJECTS, [5]], policies=[None, 5, "x", [], len, {"first": 5}])),
    (accuracy.on_released_scale, dict(samples=SAMPLES), dict(samples=TABLES)),
    (accuracy.accuracy_fit, dict(samples=SAMPLES), dict(
        samples=TABLES, resamples=COUNTS, seed=WHOLE, free_ceiling=[None, 1, "yes"])),
    (accuracy.loss_of_the_wrong_curve, dict(believed=CURVE, truth=CURVE, num_seeds=1), dict(
        believed=OBJECTS, truth=OBJECTS, num_users=COUNTS, num_edge_gpus=COUNTS, num_seeds=COUNTS, parameters=OBJECTS)),
    (accuracy.recalibrated, dict(samples=SAMPLES, calibration=Calibration(0.3, 0.2)), dict(
        samples=TABLES, calibration=OBJECTS)),
    (latency.measured_window, dict(edge_gpu=LatencyModel(0.1, 0.1), packet_bits=1.0), dict(
        edge_gpu=OBJECTS, packet_bits=NUMBERS)),
    (latency.loss_of_the_line, dict(curve=MEASURED, seeds=[0]), dict(
        curve=OBJECTS, seeds=[None, 5, "x", [1.5], [True], ["1"], [-1]], num_users=COUNTS, num_edge_gpus=COUNTS,
        packet_bits=NUMBERS)),
    (latency.fit_line, dict(curve=MEASURED), dict(curve=OBJECTS)),
    (latency.fit_gap, dict(curve=MEASURED), dict(curve=OBJECTS)),
    (sweeps.solve_times, dict(name="t", num_users=(2,), methods={"exact": {"method": "exact"}}, num_seeds=1), dict(
        name=[None, 3, "", "../evil", "a/b"], num_users=SEVERAL, methods=[None, 5, "x", [], {"exact": 5}],
        num_edge_gpus=COUNTS, num_seeds=COUNTS, give_up_s=POSITIVE)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(scratch_project):
    """Nothing of this may reach the project's own results."""


@pytest.mark.filterwarnings("ignore")
def test_bad_input_of_experiments_is_refused_by_name():
    check_face(FACE, 500)


def test_the_table_of_experiments_names_arguments_that_exist():
    check_names(FACE)
    assert np.isfinite(accuracy.loss_of_the_wrong_curve(CURVE, CURVE, num_seeds=1).lost_s).all()

"""Bad input of the learning room: a ValueError that names the argument, before any work."""

import numpy as np
import pytest
from gymnasium import spaces

from splitpoint import learning as l
from splitpoint.learning.decisions import feature_names, num_features
from splitpoint.learning.training import train_agent
from tests.test_public_face import ARRAYS, GENERATORS, NAMES, NUMBERS, OBJECTS, WHOLE, check_face, check_names

SCENARIO = l.Scenario((1, 3), (4, 4))
WINDOWS = SCENARIO.sample(2, np.random.default_rng(0))
WIDE = l.Scenario((9, 9), (4, 4)).sample(2, np.random.default_rng(0))
SETTINGS = l.TrainingSettings(scenario=SCENARIO, hidden=(2,))
WEIGHTS = {"layer0.weight": (2, 46), "layer0.bias": (2,), "layer1.weight": (2, 2), "layer1.bias": (2,)}
WEIGHTS = {name: np.zeros(shape, np.float32) for name, shape in WEIGHTS.items()}
AGENT = l.Agent(SETTINGS, WEIGHTS)
ENV, MANY = l.OffloadingEnv(SCENARIO), l.OffloadingVecEnv(SCENARIO, 2)
ENV.reset(seed=0)
REPLAY = l.PrioritizedReplay(8, spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2))
for action in range(4):
    REPLAY.add(np.zeros((1, 1)), np.zeros((1, 1)), np.array([action % 2]), np.ones(1), np.zeros(1), [{}])

COUNTS, POSITIVE, SHARES = [*WHOLE, 0], [*NUMBERS, 0], [*NUMBERS, 1.5]
THINGS = [o for o in OBJECTS if o is not None]
FLAGS = [None, "yes", 1, 0.0, [], object()]
PATHS = [3, "", b"x", [], object(), "a\0b"]
PAIRS = [5, "x", (), (0.5,), (0.5, 0.1, 0.2), (0.5, -1), (None, 1), ("0.1", 1), (True, 1), (0.5, float("nan")), {}, len]
ACTIONS = [None, 7, -1, 0.5, float("nan"), "1", "grant", [1], [], {}, True, len, np.array([0, 1]), 1.0, b"1"]
BATCHES = [None, 7, [7, 0], [float("nan")] * 2, [0.5, 1], [1.0, 0.0], ["1", "0"], [None, 1], [1], [0, 1, 1], "01", {}, [-1, 0],
           [True, False], [[0, 1]], len]  # fmt: skip
GRANTS = [None, "x", [1], np.ones(WINDOWS.alpha.shape), np.full(WINDOWS.alpha.shape, 2), np.ones(2, bool), {}, 5]

FACE = [
    (l.TrainingSettings, {}, dict(
        learner=NAMES, scenario=OBJECTS, features=NAMES, reward=NAMES, order=NAMES, max_users=[*WHOLE[1:], 0, 19],
        seed=WHOLE, hidden=[None, 5, "x", (), (0,), (1.5,), (True,), (None,)], activation=NAMES, learning_rate=POSITIVE,
        anneal=FLAGS, weight_decay=NUMBERS, max_grad_norm=POSITIVE, learning_starts=WHOLE, epsilon=[None, *PAIRS],
        exploration=SHARES, priority=SHARES, beta=PAIRS, two_buffers=FLAGS, double=FLAGS, gae=SHARES, clip=POSITIVE,
        entropy=NUMBERS, fixed_windows=WHOLE,
        **{name: COUNTS for name in ("decisions", "num_envs", "batch_size", "buffer_size", "updates_per_step",
                                     "target_update", "n_steps", "rollout", "epochs")})),
    (train_agent, dict(settings=SETTINGS), dict(
        settings=OBJECTS, checkpoint=PATHS, held_out=[*THINGS, WIDE], looks=COUNTS, progress=FLAGS, stop_after=COUNTS[1:])),
    (l.Agent, dict(settings=SETTINGS, weights=WEIGHTS), dict(
        settings=OBJECTS, weights=[*OBJECTS, WEIGHTS | {"layer1.bias": np.zeros(3)}, WEIGHTS | {"more": np.zeros(3)},
                                   WEIGHTS | {"layer1.bias": np.full(2, np.nan)}, WEIGHTS | {"layer1.bias": ["a", "b"]}])),
    (AGENT.preferences, dict(observations=np.zeros((1, 46))), dict(
        observations=[*(a for a in ARRAYS), np.zeros(46), np.zeros((1, 45)), np.full((1, 46), np.nan)])),
    (AGENT.decide, dict(windows=WINDOWS), dict(windows=OBJECTS)),
    (AGENT.solve, dict(instance=WINDOWS.instance(0)), dict(instance=OBJECTS, whole_steps=FLAGS)),
    (AGENT.save, dict(path="x"), dict(path=[None, *PATHS])),
    (l.load_agent, {}, dict(path=PATHS, features=NAMES[1:])),
    (l.evaluate_agent, dict(agent=AGENT, windows=WINDOWS), dict(agent=OBJECTS, windows=OBJECTS)),
    (num_features, dict(features="gains"), dict(features=NAMES, max_users=COUNTS)),
    (feature_names, dict(features="gains"), dict(features=NAMES, max_users=COUNTS)),
    (WINDOWS.outcomes, dict(granted=WINDOWS.exact()), dict(granted=GRANTS)),
    (WINDOWS.gain, dict(granted=WINDOWS.exact()), dict(granted=GRANTS)),
    (WINDOWS.optimality, dict(granted=WINDOWS.exact()), dict(granted=GRANTS)),
    (SCENARIO.sample, dict(n=1, rng=np.random.default_rng(0)), dict(n=COUNTS, rng=GENERATORS)),
    (l.OffloadingEnv, {}, dict(
        scenario=OBJECTS, features=NAMES, reward=NAMES, order=NAMES, max_users=[*WHOLE[1:], 0, 19])),
    (ENV.reset, {}, dict(seed=WHOLE[1:], options=[5, "x", [1], len, *({"instance": o} for o in THINGS)])),
    (ENV.step, dict(action=0), dict(action=ACTIONS)),
    (l.OffloadingVecEnv, dict(source=SCENARIO), dict(
        source=OBJECTS, num_envs=COUNTS, seed=WHOLE, features=NAMES, reward=NAMES, order=NAMES, max_users=[*WHOLE[1:], 0])),
    (MANY.step_async, dict(actions=[0, 1]), dict(actions=BATCHES)),
    (l.SumTree, dict(capacity=4), dict(capacity=COUNTS)),
    (l.SumTree(4).update, dict(index=[0, 1], priority=[1.0, 1.0]), dict(
        index=[None, "x", [0.5, 1], [-1, 0], [0, 4], [True, False], {}, len], priority=ARRAYS)),
    (l.SumTree(4).find, dict(mass=[0.0]), dict(mass=ARRAYS)),
    (l.PrioritizedReplay, dict(buffer_size=8, observation_space=REPLAY.observation_space, action_space=REPLAY.action_space), dict(
        buffer_size=COUNTS, n_envs=COUNTS, alpha=SHARES, two_buffers=FLAGS, n_steps=COUNTS, seed=WHOLE)),
    (REPLAY.draw, dict(batch_size=2, beta=1.0), dict(batch_size=COUNTS, beta=SHARES)),
    (REPLAY.sample, dict(batch_size=2), dict(batch_size=COUNTS, beta=SHARES)),
    (REPLAY.update_priorities, dict(index=[0], errors=[1.0]), dict(index=[None, "x", [0.5], [-1], [8], {}])),
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(scratch_project, monkeypatch):
    """Nothing of this may be written into the project."""
    monkeypatch.chdir(scratch_project)


@pytest.mark.filterwarnings("ignore")
def test_bad_input_of_learning_is_refused_by_name():
    check_face(FACE, 1000)


def test_the_table_of_learning_names_arguments_that_exist():
    check_names(FACE)

"""The living edge as an environment: its rewards are the simulator's gains, and it plays what the base curve plays."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from splitpoint.edge import Edge, MarkovCapacity, Poisson, System, load_curve, simulate
from splitpoint.edge.policies import StatePrice
from splitpoint.files import data_path
from splitpoint.learning import EdgeEnv, EdgeGame, EdgeVecEnv
from splitpoint.offloading import published_latency


def system(edges=1):
    line = published_latency()[0].shared_by(8)
    return System(tuple(Edge(line, MarkovCapacity((1.0, 0.5), 3.0), transfer_s=0.02 * i) for i in range(edges)))


def test_both_checkers_find_nothing():
    check_env(gymnasium.make("splitpoint/Edge-v0").unwrapped, skip_render_check=True)
    check_env_for_sb3(EdgeEnv(system(2), Poisson(6.0)))


@pytest.mark.parametrize("edges", [1, 2])
def test_paid_rewards_add_up_to_the_simulators_gains(edges):
    game = EdgeGame(system(edges), Poisson(6.0, 40.0), num_envs=5, decisions=120, seed=4)
    game.begin()
    rng, cut, total = np.random.default_rng(0), False, np.zeros(5)
    while not cut:
        _, rewards, cut = game.step(rng.uniform(-1, 1, (5, edges, 2)))
        total += rewards
    play = game.plays[0].simulation
    rows = play._rows_of(np.arange(5)).ravel()
    play.rows.close(rows, play.clock(game.number, np.arange(5)).ravel())
    table = play.table()
    table = table[table.request < game.number]
    gains = np.bincount(table.replication, table.gain_s, minlength=5)
    # a step under way is not paid yet, and is lost at the end: the same
    assert total == pytest.approx(gains)


def test_no_action_plays_the_base_rule():
    one = EdgeGame(system(), Poisson(6.0, 40.0), num_envs=3, decisions=100, reward="relative", seed=1)
    one.begin()
    cut = False
    while not cut:
        _, rewards, cut = one.step(np.zeros((3, 1, 2)))
        assert np.abs(rewards).max() < 1e-9
    table = simulate(one.system.edges, one.plays[0].paths, StatePrice(0.0, 2.0))
    table = table[table.request < one.number]
    played = one.plays[0].simulation.granted[:, : one.number]
    assert np.array_equal(played.ravel(), table.granted_steps.to_numpy().reshape(3, -1).ravel())


def test_a_learned_curve_can_be_the_base():
    curve = load_curve(data_path("agents", "edge_curve.safetensors"))
    game = EdgeGame(system(), Poisson(6.0, 40.0), num_envs=2, decisions=60, base=curve, seed=1)
    game.begin()
    cut = False
    while not cut:
        *_, cut = game.step(np.zeros((2, 1, 2)))
    table = simulate(game.system.edges, game.plays[0].paths, curve)
    table = table[table.request < game.number]
    played = game.plays[0].simulation.granted[:, : game.number]
    assert np.array_equal(played.ravel(), table.granted_steps.to_numpy())


def test_one_environment_and_many_see_the_same():
    env = EdgeEnv(system(), Poisson(6.0, 40.0), decisions=50)
    seen, _ = env.reset(seed=7)
    game = EdgeGame(system(), Poisson(6.0, 40.0), decisions=50)
    assert np.array_equal(seen, game.begin(7)[0])
    for _ in range(30):
        action = np.array([0.3, -0.5])
        one, reward, ended, _, _ = env.step(action)
        many, rewards, _ = game.step(action[None])
        assert np.array_equal(one, many[0]) and reward == rewards[0] and not ended


def test_an_episode_that_is_cut_says_what_comes_next():
    env = EdgeVecEnv(EdgeGame(system(), Poisson(6.0, 40.0), num_envs=2, decisions=20))
    env.reset()
    for _ in range(19):
        seen, _, done, infos = env.step(np.zeros((2, 2), np.float32))
    assert done.all() and infos[0]["TimeLimit.truncated"] and infos[0]["episode"]["l"] == 19
    assert not np.array_equal(infos[0]["terminal_observation"], seen[0])


def test_relative_rewards_are_the_difference_of_two_plays():
    settings = dict(num_envs=3, decisions=60, seed=2)
    relative = EdgeGame(system(), Poisson(6.0, 40.0), reward="relative", **settings)
    paid = EdgeGame(system(), Poisson(6.0, 40.0), **settings)
    nothing = EdgeGame(system(), Poisson(6.0, 40.0), **settings)
    for game in (relative, paid, nothing):
        game.begin()
    rng, cut = np.random.default_rng(0), False
    while not cut:
        action = rng.uniform(-1, 1, (3, 1, 2))
        _, one, cut = relative.step(action)
        assert one == pytest.approx(paid.step(action)[1] - nothing.step(np.zeros((3, 1, 2)))[1])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(system=1),
        dict(arrivals=1),
        dict(num_envs=0),
        dict(decisions=0),
        dict(reward="x"),
        dict(base=1),
        dict(seed=-1),
    ],
)
def test_a_game_that_is_none_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EdgeGame(**dict(system=system(), arrivals=Poisson(6.0)) | wrong)


@pytest.mark.parametrize("action", [np.zeros(3), np.full(2, np.nan), np.zeros((2, 2))])
def test_an_action_of_another_shape_is_refused(action):
    game = EdgeGame(system(), Poisson(6.0))
    game.begin()
    with pytest.raises(ValueError, match="action"):
        game.step(action)

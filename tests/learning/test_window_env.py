from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from splitpoint.learning import OffloadingEnv, OffloadingVecEnv, Scenario, stack_windows
from splitpoint.learning.decisions import FEATURES, ORDERS, REWARDS, Decisions, feature_names, num_features
from splitpoint.offloading import SystemParameters, evaluate, grant_gains, sample_instance
from splitpoint.offloading.solvers import plan_for
from tests.offloading.strategies import instances

OPTIONS = st.tuples(st.sampled_from(FEATURES), st.sampled_from(REWARDS), st.sampled_from(ORDERS))


def play(env, instance, rng):
    """Observations, rewards and the plan of one window under random decisions."""
    observation, _ = env.reset(options={"instance": instance})
    seen, rewards, actions, done = [observation], [], [], False
    while not done:
        actions.append(int(rng.random() < 0.7))
        observation, reward, done, _, _ = env.step(actions[-1])
        seen.append(observation)
        rewards.append(reward)
    return seen, rewards, actions, env.plan()


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.filterwarnings("error")
def test_checkers_find_nothing(features):
    env = gymnasium.make("splitpoint/Offloading-v0", features=features).unwrapped
    check_env(env, skip_render_check=True)
    check_env_for_sb3(env)


@given(instances(max_users=20), OPTIONS, st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_rewards_sum_to_the_plan_evaluated_directly(instance, options, seed):
    features, reward, order = options
    env = OffloadingEnv(features=features, reward=reward, order=order, max_users=20)
    seen, rewards, actions, plan = play(env, instance, np.random.default_rng(seed))
    assert plan.granted.sum() == sum(actions)
    assert all(np.abs(observation).max() <= 10 for observation in seen) and not seen[-1].any()
    outcome = evaluate(instance, plan)
    if reward == "share":
        gain = outcome.utility - evaluate(instance, plan_for(instance, np.zeros_like(plan.granted))).utility
        expected = gain / env._decisions.scale[0]
        tolerance = 1e-9 * abs(outcome.utility) / env._decisions.scale[0]
    else:
        expected, tolerance = outcome.reward, 1e-9 * (1 + abs(outcome.reward))
    assert sum(rewards) == pytest.approx(expected, rel=1e-9, abs=tolerance + 1e-12)


def test_the_episode_ends_when_the_batch_is_full_and_the_rest_is_denied():
    instance = sample_instance(10, 16, np.random.default_rng(0), SystemParameters(max_batch=3))
    env = OffloadingEnv()
    env.reset(options={"instance": instance})
    steps = [env.step(1) for _ in range(3)]
    assert [step[2] for step in steps] == [False, False, True]
    assert env.plan().granted.tolist() == [True] * 3 + [False] * 7


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=12), OPTIONS, st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_one_window_and_many_agree_exactly(seeds, options, seed):
    features, reward, order = options
    drawn = [sample_instance(1 + s % 20, 4 + s % 13, np.random.default_rng(s)) for s in seeds]
    many = OffloadingVecEnv(stack_windows(drawn, 20), len(drawn), 0, features, reward, order)
    singles = [OffloadingEnv(features=features, reward=reward, order=order) for _ in drawn]
    first = [env.reset(options={"instance": instance})[0] for env, instance in zip(singles, drawn)]
    assert np.array_equal(many.reset(), first)
    rng, running = np.random.default_rng(seed), np.ones(len(drawn), bool)
    while running.any():
        actions = rng.integers(0, 2, len(drawn))
        observations, rewards, dones, infos = many.step(actions)
        for i in np.flatnonzero(running):
            observation, reward, done, _, _ = singles[i].step(int(actions[i]))
            assert np.float32(reward) == rewards[i] and done == dones[i]
            shown = infos[i]["terminal_observation"] if done else observations[i]
            assert np.array_equal(observation, shown)
            running[i] = not done


@pytest.mark.parametrize("gpus", [4, 16])
def test_gain_features_are_what_they_say(gpus):
    instance = sample_instance(6, gpus, np.random.default_rng(gpus))
    process = Decisions(1, 20, instance.parameters, "gains", "share", "given")
    process.load(np.array([0]), stack_windows([instance], 20))
    for action in (1, 0):
        process.step(np.array([action]))
    observation = process.observe()[0]

    def worth(granted):
        return evaluate(instance, plan_for(instance, np.isin(np.arange(6), granted))).utility

    scale = process.scale[0]
    marginal = (worth([0, 2]) - worth([0])) / scale * 6
    assert observation[8] == pytest.approx(np.clip(marginal, -10, 10), rel=1e-5)
    assert observation[9] == pytest.approx((worth([0]) - worth([])) / scale, rel=1e-5)
    assert observation[:4] == pytest.approx([1 / 20, 4 / 20, 5 / 20, 6 / 20])


def test_the_single_and_the_batched_environment_have_the_same_defaults():
    instance = sample_instance(6, 8, np.random.default_rng(0))
    many, one = OffloadingVecEnv(stack_windows([instance], 20), 1), OffloadingEnv()
    assert np.array_equal(many.reset()[0], one.reset(options={"instance": instance})[0])
    assert many.step(np.array([1]))[1][0] == np.float32(one.step(1)[1])


def test_released_features_put_the_user_being_decided_first():
    instance = sample_instance(4, 8, np.random.default_rng(3))
    env = OffloadingEnv(features="released")
    env.reset(options={"instance": instance})
    observation = env.step(1)[0]
    rows, shared = observation[:140].reshape(20, 7), observation[140:]
    assert rows[0, :4].tolist() == [0, 1, 0, 0] and rows[0, 4] == pytest.approx(
        min(10, 0.01 * instance.alpha[1]), rel=1e-5
    )
    assert rows[-1, :4].tolist() == [0, 0, 1, 0]
    assert shared[:4] == pytest.approx([1.7, 0.3, 0.1, 0.0])


def loaded(instance, features="gains", order="given"):
    process = Decisions(1, 20, instance.parameters, features, "share", order)
    process.load(np.array([0]), stack_windows([instance], 20))
    return process


@pytest.mark.parametrize("bits, gainers", [(4.4e6, 8), (2e8, 3), (3e8, 0)])  # most lose by a long hand-over
def test_the_scale_of_a_window_is_what_its_users_gain_alone(bits, gainers):
    instance = sample_instance(8, 4, np.random.default_rng(0), SystemParameters(intermediate_bits=bits))
    alone = grant_gains(instance, [1])[0][0]
    assert (alone > 0).sum() == gainers
    expected = max(np.maximum(alone, 0).sum(), 0.05 * np.abs(alone).sum())
    assert loaded(instance).scale[0] == pytest.approx(expected)


def test_order_by_gain_begins_with_who_gains_most_in_half_a_batch():
    instance = sample_instance(9, 8, np.random.default_rng(1))
    gains = grant_gains(instance, [5])[0][0]
    assert loaded(instance, order="gain").sequence[0, :9].tolist() == np.argsort(-gains).tolist()


def test_places_left_above_ones_own_rank():
    instance = sample_instance(6, 8, np.random.default_rng(2))
    gains = grant_gains(instance, [1])[0][0]
    name = feature_names("gains").index("places left above own rank / 5 @0%")
    assert loaded(instance).observe()[0, name] == pytest.approx((1 - (gains > gains[0]).sum() - 0.5) / 5)


def test_the_gain_at_the_cut_is_that_of_joining_those_who_gain_more():
    fitted = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        instance = sample_instance(4, 8, rng, SystemParameters(max_batch=2))
        order = rng.permutation(4)  # drawn users are sorted by speed, and the first is rarely among the best
        instance = replace(instance, device_step_s=instance.device_step_s[order], alpha=instance.alpha[order])
        process = loaded(instance, "cut")
        gains = grant_gains(instance, [1])[0][0]
        better = gains > gains[0]
        marginal, batch = process.observe()[0, 10:12]
        fitted.add(fits := bool(better.sum() < 2))
        if fits:
            with_user = better | (np.arange(4) == 0)
            joined, without = (evaluate(instance, plan_for(instance, g)).utility for g in (with_user, better))
            expected = (joined - without) / process.scale[0] * 4
        assert marginal == pytest.approx(np.clip(expected, -10, 10) if fits else -1, rel=1e-5)
        assert batch == pytest.approx(min(better.sum() + 1, 2) / 20)
    assert fitted == {True, False}


def test_the_released_reward_pays_accuracy_at_once():
    instance = sample_instance(5, 8, np.random.default_rng(4))
    env = OffloadingEnv(reward="released")
    env.reset(options={"instance": instance})
    split = plan_for(instance, np.arange(5) == 0).split_points[0]
    pai = instance.parameters.accuracy.pai([split, instance.parameters.num_steps])
    assert env.step(1)[1] == pytest.approx(0.1 * instance.alpha[0] * pai[0] / 5)
    assert env.step(0)[1] == pytest.approx(0.1 * instance.alpha[1] * pai[1] / 5)


def test_features_of_fixed_size_do_not_grow_with_the_users():
    assert {num_features("gains", users) for users in (1, 20, 40)} == {46}
    assert num_features("released", 40) > num_features("released", 20)
    for features in FEATURES:
        assert len(feature_names(features, 7)) == num_features(features, 7)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: OffloadingEnv(features="nice"), "features='nice'"),
        (lambda: OffloadingEnv(reward="nice"), "reward='nice'"),
        (lambda: OffloadingEnv(order="nice"), "order='nice'"),
        (lambda: OffloadingVecEnv(Scenario(), num_envs=0), "num_envs=0"),
        (lambda: OffloadingVecEnv(Scenario(), max_users=5), r"max_users=5 is outside \[20, inf\)"),
        (lambda: OffloadingVecEnv(Scenario().sample(4, np.random.default_rng(0)), max_users=40), r"\[20, 20\]"),
        (lambda: OffloadingEnv(max_users=0), r"max_users=0 is outside \[20, inf\)"),
        (lambda: Scenario().sample(1, np.random.default_rng(0), max_users=19), r"max_users=19 is outside \[20, inf\)"),
        (lambda: Scenario(num_users=(0, 3)), r"num_users\[0\]=0"),
        (lambda: Scenario(num_edge_gpus=(4, 3)), r"num_edge_gpus\[1\]=3"),
        (lambda: Scenario(devices=(99,)), "devices=99"),
        (lambda: OffloadingEnv().step(1), "reset"),
        (lambda: OffloadingEnv().plan(), "reset"),
        (lambda: stack_windows([]), "instances is empty"),
        (
            lambda: OffloadingEnv().reset(options={"instance": sample_instance(21, 4, np.random.default_rng(0))}),
            r"num_users=21 is outside \[1, 20\]",
        ),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()


def test_an_action_that_is_none_is_refused():
    env = OffloadingEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action=2"):
        env.step(2)


def test_a_restored_batch_goes_on_as_if_never_stopped():
    env = OffloadingVecEnv(Scenario(), 16, seed=1)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(30):
        env.step(rng.integers(0, 2, 16))
    arrays, rest = env.state()
    other = OffloadingVecEnv(Scenario(), 16, seed=99)
    actions = rng.integers(0, 2, (200, 16))
    ours = [env.step(row)[:3] for row in actions]  # the state taken before must not go on with it
    other.restore(arrays, rest)
    for step, row in zip(ours, actions):
        assert all(np.array_equal(a, b) for a, b in zip(step, other.step(row)[:3]))


@pytest.mark.parametrize("actions", [[7, 0], [float("nan"), 1.0], [None, 1], None, [True, False], [0], [[0, 1]], "01"])
def test_many_windows_take_no_action_that_is_none(actions):
    env = OffloadingVecEnv(Scenario((2, 3), (4, 4)), num_envs=2)
    before = env.reset()
    with pytest.raises(ValueError, match=r"actions=.*valid are 0 \(deny\) and 1 \(grant\), shape \(2,\)"):
        env.step(actions)
    np.testing.assert_array_equal(env.decisions.observe(), before)

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from splitpoint.files import data_path
from splitpoint.learning import (
    Agent,
    Scenario,
    TrainingSettings,
    evaluate_agent,
    load_agent,
    stack_windows,
    train_agent,
)
from splitpoint.learning.training import PrioritizedDQN, make_learner, network_weights
from splitpoint.learning.window_env import OffloadingVecEnv
from splitpoint.offloading import check_plan, evaluate, sample_instance, solve, solvers

TINY = TrainingSettings(
    scenario=Scenario((1, 6), (4, 16)),
    decisions=256,
    num_envs=8,
    hidden=(16, 16),
    batch_size=32,
    buffer_size=128,
    learning_starts=64,
    rollout=8,
    epochs=2,
    target_update=64,
)
VARIANTS = {
    "dqn": {},
    "ppo": {"learner": "ppo"},
    "uniform": {"priority": 0.0, "beta": None},
    "no weights": {"beta": None},
    "two buffers, three steps, single": {"two_buffers": True, "n_steps": 3, "double": False},
    "released": {"features": "released", "reward": "released", "activation": "leaky_relu", "fixed_windows": 1},
    "ordered": {"features": "cut", "order": "gain", "reward": "difference", "activation": "tanh"},
}


def same(one: Agent, other: Agent) -> bool:
    return all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_learner_trains_decides_and_comes_back(variant, tmp_path, capsys):
    agent = train_agent(TINY, **VARIANTS[variant], looks=2, progress=False)
    assert [row["decisions"] for row in agent.curve] == [128, 256] and np.isfinite(agent.curve[-1]["reward"])
    agent.save(tmp_path / "small")
    back = load_agent(tmp_path / "small")
    assert same(agent, back) and back.settings == agent.settings and back.curve == agent.curve
    instance = sample_instance(6, 8, np.random.default_rng(0))
    plan = back.solve(instance)
    check_plan(instance, plan)
    assert np.array_equal(plan.granted, agent.solve(instance).granted)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("learner", ["dqn", "ppo"])
def test_the_same_settings_train_the_same_agent(learner):
    first, again = (train_agent(TINY, learner=learner, progress=False) for _ in range(2))
    assert same(first, again)
    assert not same(first, train_agent(TINY, learner=learner, seed=1, progress=False))


@pytest.mark.parametrize("changes", [{}, {"learner": "ppo"}, {"two_buffers": True, "n_steps": 2}])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(changes, tmp_path):
    through = train_agent(TINY, **changes, looks=4, progress=False)
    path = tmp_path / "state"
    assert train_agent(TINY, **changes, looks=4, checkpoint=path, stop_after=128, progress=False) is None
    torch.manual_seed(123)
    np.random.seed(123)
    resumed = train_agent(TINY, **changes, looks=4, checkpoint=path, progress=False)
    assert same(through, resumed) and resumed.curve == through.curve


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train_agent(TINY, looks=4, checkpoint=tmp_path / "state", stop_after=64, progress=False)
    with pytest.raises(ValueError, match="other settings"):
        train_agent(TINY, seed=5, checkpoint=tmp_path / "state", progress=False)


def test_a_checkpoint_with_any_flipped_bit_is_refused(tmp_path):
    train_agent(TINY, looks=4, checkpoint=tmp_path / "state", stop_after=64, progress=False)
    path = tmp_path / "state.training.safetensors"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(whole), size=60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="delete it to start over"):
            train_agent(TINY, looks=4, checkpoint=tmp_path / "state", progress=False)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_numpy_and_torch_decide_alike(activation):
    for learner in ("dqn", "ppo"):
        settings = replace(TINY, learner=learner, activation=activation)
        env = OffloadingVecEnv(settings.scenario, 64)
        model = make_learner(settings, env)
        agent, observations = Agent(settings, network_weights(model)), env.reset()
        preferences = agent.preferences(observations)
        assert np.array_equal(np.argmax(preferences, axis=1), model.predict(observations, deterministic=True)[0])
        if learner == "dqn":
            values = model.q_net(torch.from_numpy(observations)).detach().numpy()
            np.testing.assert_allclose(preferences, values, rtol=1e-4, atol=1e-6)


def test_importance_weights_reach_the_gradient():
    """With one state-action pair per error size, the weighted step must differ from the plain one."""

    def weights_after(beta):
        settings = replace(TINY, beta=beta, learning_starts=0, decisions=64)
        model = make_learner(settings, OffloadingVecEnv(settings.scenario, settings.num_envs))
        assert isinstance(model, PrioritizedDQN)
        model.learn(64)
        model.replay_buffer.update_priorities(np.arange(64), np.geomspace(1e-3, 10, 64))
        model.replay_buffer.rng = np.random.default_rng(0)
        model.train(1, 32)
        return network_weights(model)["layer0.weight"]

    assert not np.allclose(weights_after(None), weights_after((1.0, 1.0)))


@pytest.mark.parametrize("double", [True, False])
def test_errors_rates_and_exponents_of_an_update_are_by_the_book(double, monkeypatch):
    settings = replace(TINY, double=double, max_grad_norm=1e-3)
    model = make_learner(settings, OffloadingVecEnv(settings.scenario, settings.num_envs))
    model.learn(256)
    for weight in model.q_net_target.parameters():
        weight.data += 0.3 * torch.randn(weight.shape)  # or the two networks would agree
    replay, sample, betas, expected, found = model.replay_buffer, model.replay_buffer.sample, [], [], []

    def watched(batch_size, beta):
        data, rows = sample(batch_size, beta=beta), np.arange(batch_size)
        online, target, now = (
            net(x).detach().numpy()
            for net, x in (
                (model.q_net, data.next_observations),
                (model.q_net_target, data.next_observations),
                (model.q_net, data.observations),
            )
        )
        value = target[rows, (online if double else target).argmax(axis=1)]
        rewards, ended, actions = (x.numpy().ravel() for x in (data.rewards, data.dones, data.actions))
        assert 0 < ended.mean() < 1
        expected.append(rewards + np.where(ended == 1, 0, value) - now[rows, actions.astype(int)])
        betas.append(beta)
        return data

    monkeypatch.setattr(replay, "sample", watched)
    monkeypatch.setattr(replay, "update_priorities", lambda index, errors: found.append(errors))
    for remaining in (1.0, 0.25):
        model._current_progress_remaining = remaining
        model.train(1, 128)
        assert torch.cat([w.grad.ravel() for w in model.q_net.parameters()]).norm() <= 1e-3 * 1.001
        rate = model.policy.optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(settings.learning_rate * (0.01 + 0.99 * remaining))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert betas == pytest.approx([0.3, 0.825])


def test_random_decisions_are_as_many_as_epsilon_says():
    env = OffloadingVecEnv(TINY.scenario, 2000)
    model, observations = make_learner(replace(TINY, target_update=2000), env), env.reset()
    greedy = model.predict(observations, deterministic=True)[0]
    for epsilon in (0.0, 0.2, 1.0):
        model.exploration_rate = epsilon
        other = np.mean(model.predict(observations)[0] != greedy)
        assert other == pytest.approx(epsilon / 2, abs=0.04 if epsilon else 0)


def test_learning_helps():
    windows = Scenario((1, 6), (4, 16)).sample(200, np.random.default_rng(9))
    settings = replace(TINY, decisions=8_000, buffer_size=8_000, learning_starts=500, num_envs=32, learning_rate=3e-3)
    before = evaluate_agent(train_agent(settings, decisions=32, progress=False), windows)["optimality"].mean()
    after = evaluate_agent(train_agent(settings, progress=False), windows)["optimality"].mean()
    assert after > 0.93 and after > before


def test_the_agent_is_a_solver():
    assert "agent" in solvers()
    for users in (1, 4, 20):
        instance = sample_instance(users, 8, np.random.default_rng(users))
        reached, best, local = (
            evaluate(instance, solve(instance, name)).utility for name in ("agent", "exact", "all_local")
        )
        assert local <= reached <= best + 1e-9


def test_the_committed_agent_reaches_its_goal():
    windows = Scenario((4, 20), (4, 16)).sample(1000, np.random.default_rng(2026))
    share = evaluate_agent(load_agent(), windows)["optimality"]
    assert share.mean() >= 0.998 and np.percentile(share, 1) >= 0.975


def test_more_users_than_admitted_are_refused():
    agent = train_agent(TINY, decisions=64, progress=False)
    with pytest.raises(ValueError, match=r"num_users=7 is outside \[1, 6\]"):
        agent.solve(sample_instance(7, 8, np.random.default_rng(0)))
    wider = train_agent(TINY, decisions=64, max_users=40, progress=False)
    check_plan(instance := sample_instance(40, 8, np.random.default_rng(0)), wider.solve(instance))


@pytest.mark.parametrize("features", ["gains", "released"])
def test_decisions_do_not_depend_on_the_padding(features):
    agent = train_agent(TINY, decisions=64, features=features, progress=False)
    drawn = [sample_instance(users, 8, np.random.default_rng(users)) for users in (1, 3, 4)]
    alone = [agent.solve(instance).granted.tolist() for instance in drawn]
    for width in (4, 6, 9):
        windows = stack_windows(drawn, width)
        granted = agent.decide(windows)
        assert granted.shape == (3, width) and not granted[~windows.present].any()
        assert [row[:users].tolist() for row, users in zip(granted, (1, 3, 4))] == alone
        assert np.isfinite(evaluate_agent(agent, windows)["utility_s"]).all()


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    agent = train_agent(TINY, decisions=64, progress=False)
    agent.save(tmp_path / "a")
    with pytest.raises(ValueError, match="features='gains', not 'released'"):
        load_agent(tmp_path / "a", features="released")
    with pytest.raises(ValueError, match="missing is not an agent"):
        load_agent("missing")
    assert same(load_agent("drl_convex"), load_agent())
    text = json.loads((tmp_path / "a.json").read_text())
    for change in ({"features": "released"}, {"hidden": [8, 8]}):
        wrong = text | {"settings": text["settings"] | change}
        (tmp_path / "a.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="weights have the shapes"):
            load_agent(tmp_path / "a")
    (tmp_path / "a.json").write_text(json.dumps(text | {"settings": text["settings"] | {"colour": 1}}))
    with pytest.raises(ValueError, match="unknown settings: colour"):
        load_agent(tmp_path / "a")
    (tmp_path / "a.json").write_text(json.dumps(text))
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is not an agent"):
        load_agent(tmp_path / "a")


def test_an_agent_that_ships_is_checked_against_its_sidecar(tmp_path, monkeypatch):
    shutil.copytree(data_path("agents"), tmp_path / "data" / "agents")
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    assert same(load_agent("dqn"), load_agent(tmp_path / "data" / "agents" / "dqn.json"))
    load_agent("drl_convex").save(tmp_path / "data" / "agents" / "dqn")
    with pytest.raises(ValueError, match="dqn.json does not match the checksum"):
        load_agent("dqn")


def test_observations_that_are_not_numbers_are_refused():
    agent = train_agent(TINY, decisions=64, progress=False)
    with pytest.raises(ValueError, match="not finite"):
        agent.preferences(np.full((2, 46), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"\(n, 46\)"):
        agent.preferences(np.zeros((2, 45), np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"learner": "sac"},
        {"decisions": 0},
        {"learning_rate": 0.0},
        {"priority": 2.0},
        {"epsilon": (0.5, -1)},
        {"epsilon": (0.5,)},
        {"beta": (0.5, 0.6, 0.7)},
        {"hidden": (0,)},
        {"max_users": 3},
        {"activation": "gelu"},
    ],
)
def test_bad_settings_are_named(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=name):
        replace(TINY, **change)


def test_settings_come_back_from_text():
    settings = replace(TINY, scenario=Scenario((2, 3), (5, 6), (0, 2)), beta=None)
    assert TrainingSettings.from_json(settings.to_json()) == settings


def test_windows_wider_than_the_agent_admits_are_refused_before_any_training(monkeypatch):
    from splitpoint.learning import training

    monkeypatch.setattr(training, "OffloadingVecEnv", lambda *_: pytest.fail("work has begun"))
    wide = Scenario((9, 9), (4, 4)).sample(2, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"held_out has windows of 9 users; this agent admits \[1, 3\]"):
        train_agent(scenario=Scenario((1, 3), (4, 4)), held_out=wide)


def test_a_checkpoint_that_cannot_be_written_is_refused_before_any_training(monkeypatch, tmp_path):
    from splitpoint.learning import training

    monkeypatch.setattr(training, "OffloadingVecEnv", lambda *_: pytest.fail("work has begun"))
    tmp_path.joinpath("a_file").write_text("in the way")
    with pytest.raises(ValueError, match="checkpoint=.* cannot be written"):
        train_agent(checkpoint=tmp_path / "a_file" / "agent")

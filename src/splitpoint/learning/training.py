"""The learners behind ``train_agent``: SB3's DQN with prioritized replay, and SB3's PPO."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from torch.nn.functional import smooth_l1_loss

from splitpoint.checks import a_path, instance_of, whole_number
from splitpoint.files import can_write
from splitpoint.learning.agent import Agent, evaluate_agent
from splitpoint.learning.checkpoint import read_checkpoint, write_checkpoint
from splitpoint.learning.replay import PrioritizedReplay
from splitpoint.learning.settings import TrainingSettings
from splitpoint.learning.window_env import OffloadingVecEnv
from splitpoint.offloading.windows import Windows
from splitpoint.progress import progress_bar

ACTIVATIONS = {"relu": torch.nn.ReLU, "leaky_relu": torch.nn.LeakyReLU, "tanh": torch.nn.Tanh}


class PrioritizedDQN(DQN):
    """SB3's DQN with importance weights in the loss, priorities fed back, and double Q-learning.

    SB3 fixes the loss inside ``train``, so that method is replaced. Every window explores by itself: SB3 tosses one
    coin for all of them.

    Args:
        beta: importance exponent at the start and at the end of training; None leaves the weights out.
        double: let the online network choose the action that the target network values.
    """

    def __init__(self, *args, beta=(0.3, 1.0), double=True, **kwargs):
        self.beta, self.double = beta, double
        super().__init__(*args, **kwargs)
        self.rng = np.random.default_rng([self.seed or 0, 1])

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        """Greedy actions; unless ``deterministic``, each row takes a random one with probability epsilon."""
        action, state = self.policy.predict(observation, state, episode_start, True)
        if not deterministic:
            explore = self.rng.random(np.shape(action)) < self.exploration_rate
            action = np.where(explore, self.rng.integers(self.action_space.n, size=np.shape(action)), action)
        return action, state

    def _sample_action(self, learning_starts, action_noise=None, n_envs=1):
        action, _ = self.predict(self._last_obs)  # no random warm-up: with epsilon 0 it is greedy from the first step
        return action, action

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Updates on batches drawn by priority."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        beta = 1.0 - self._current_progress_remaining
        beta = self.beta[0] + beta * (self.beta[1] - self.beta[0]) if self.beta else 0.0
        for _ in range(gradient_steps):
            data = self.replay_buffer.sample(batch_size, beta=min(beta, 1.0))
            with torch.no_grad():
                following = self.q_net_target(data.next_observations)
                best = (self.q_net(data.next_observations) if self.double else following).argmax(1, keepdim=True)
                target = data.rewards + (1 - data.dones) * following.gather(1, best)
            current = self.q_net(data.observations).gather(1, data.actions.long())
            loss = (data.weights * smooth_l1_loss(current, target, reduction="none")).mean()
            self.policy.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.q_net.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            errors = (target - current).detach().numpy().ravel()
            self.replay_buffer.update_priorities(data.index, errors)
        self._n_updates += gradient_steps


def make_learner(settings: TrainingSettings, env: OffloadingVecEnv) -> BaseAlgorithm:
    """The SB3 algorithm that the settings describe."""
    rate = settings.learning_rate
    rate = LinearSchedule(rate, rate / 100, 1.0) if settings.anneal else rate
    common = dict(
        policy="MlpPolicy",
        env=env,
        learning_rate=rate,
        batch_size=settings.batch_size,
        gamma=1.0,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        device="cpu",
    )
    policy = dict(
        net_arch=list(settings.hidden),
        activation_fn=ACTIVATIONS[settings.activation],
        optimizer_kwargs={"weight_decay": settings.weight_decay},
    )
    if settings.learner == "ppo":
        policy["net_arch"] = dict(pi=list(settings.hidden), vf=list(settings.hidden))
        return PPO(
            **common,
            n_steps=settings.rollout,
            n_epochs=settings.epochs,
            gae_lambda=settings.gae,
            clip_range=settings.clip,
            ent_coef=settings.entropy,
            policy_kwargs=policy,
        )
    replay = dict(
        alpha=settings.priority, two_buffers=settings.two_buffers, n_steps=settings.n_steps, seed=settings.seed
    )
    return PrioritizedDQN(
        **common,
        beta=settings.beta,
        double=settings.double,
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        train_freq=1,
        gradient_steps=settings.updates_per_step,
        target_update_interval=settings.target_update,
        replay_buffer_class=PrioritizedReplay,
        replay_buffer_kwargs=replay,
        exploration_initial_eps=settings.epsilon[0],
        exploration_final_eps=settings.epsilon[1],
        exploration_fraction=settings.exploration,
        policy_kwargs=policy,
    )


def network_weights(learner: BaseAlgorithm) -> dict[str, np.ndarray]:
    """The deciding network's layers, in the form that Agent holds."""
    if isinstance(learner, DQN):
        modules = [learner.q_net.q_net]
    else:
        modules = [learner.policy.mlp_extractor.policy_net, learner.policy.action_net]
    linear = [layer for module in modules for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    return {
        f"layer{i}.{kind}": getattr(layer, kind).detach().numpy().copy()
        for i, layer in enumerate(linear)
        for kind in ("weight", "bias")
    }


def train_agent(
    settings: TrainingSettings = TrainingSettings(),
    *,
    checkpoint: str | Path | None = None,
    held_out: Windows | None = None,
    looks: int = 20,
    progress: bool = True,
    stop_after: int | None = None,
    **changes,
) -> Agent | None:
    """Train an agent; the same settings give the same weights on the same machine.

    Args:
        settings: TrainingSettings.
        checkpoint: file to keep the state of the training in, without ending; if it exists, training goes on from
            there, and the result is that of an uninterrupted run.
        held_out: windows for the learning curve; 200 of the scenario if left out.
        looks: rows of the learning curve, and of checkpoints.
        progress: whether to show a progress bar.
        stop_after: stop at the first look after this many decisions, as an interruption would; returns None.
        changes: settings to change, for instance ``learner="ppo", decisions=20_000``.

    Returns:
        The trained Agent.

    Raises:
        ValueError: for settings out of range, a checkpoint of other settings, or windows wider than the agent admits.
    """
    instance_of("settings", settings, TrainingSettings)
    return _run_training(replace(settings, **changes), checkpoint, held_out, looks, progress, stop_after)


def _run_training(
    settings: TrainingSettings, checkpoint, held_out: Windows | None, looks: int, progress: bool, stop_after: int | None
) -> Agent | None:
    """See ``train_agent``."""
    whole_number("looks", looks, 1)
    instance_of("progress", progress, bool)
    if stop_after is not None:
        whole_number("stop_after", stop_after, 1)
    if held_out is not None:
        instance_of("held_out", held_out, Windows)
        if held_out.num_users.max() > settings.users_admitted:
            raise ValueError(
                f"held_out has windows of {held_out.num_users.max()} users; this agent admits [1, "
                f"{settings.users_admitted}] (max_users in its settings)"
            )
    if checkpoint is not None:
        a_path("checkpoint", checkpoint)
        can_write("checkpoint", Path(checkpoint).with_suffix(".training.safetensors"))
    source = settings.scenario
    if settings.fixed_windows:
        source = source.sample(
            settings.fixed_windows, np.random.default_rng([settings.seed, 2]), settings.users_admitted
        )
    env = OffloadingVecEnv(
        source,
        settings.num_envs,
        settings.seed,
        settings.features,
        settings.reward,
        settings.order,
        settings.users_admitted,
    )
    if held_out is None:
        fixed = isinstance(source, Windows)
        held_out = source if fixed else settings.scenario.sample(200, np.random.default_rng(10**6))
    learner = make_learner(settings, env)
    watch = _Watch(settings, env, held_out, looks, Path(checkpoint) if checkpoint else None, progress, stop_after)
    watch.resume(learner)
    remaining = settings.decisions - learner.num_timesteps
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small are slower on several, and their sums differ
    try:
        if remaining > 0:
            learner.learn(remaining, callback=watch, log_interval=None, reset_num_timesteps=False)
    finally:
        torch.set_num_threads(threads)
        watch.bar.close()
    if watch.interrupted:
        return None
    if not watch.curve or watch.curve[-1]["decisions"] < learner.num_timesteps:
        watch.look(learner)
    return Agent(settings, network_weights(learner), watch.curve, round(watch.seconds(), 1))


class _Watch(BaseCallback):
    """Progress bar, learning curve, checkpoints; between rollouts, where the state is whole."""

    def __init__(self, settings, env, held_out, looks, checkpoint, progress, stop_after):
        super().__init__()
        self.settings, self.env, self.held_out, self.checkpoint = settings, env, held_out, checkpoint
        self.every, self.stop_after = settings.decisions / looks, stop_after
        self.curve, self.next_look, self.before_s, self.start = [], self.every, 0.0, time.process_time()
        self.interrupted = False
        self.bar = progress_bar(
            f"training ({settings.learner})", settings.decisions, None if progress else False, unit=" decisions"
        )

    def seconds(self) -> float:
        return self.before_s + time.process_time() - self.start

    def look(self, learner) -> None:
        agent = Agent(self.settings, network_weights(learner))
        means = {name: float(values.mean()) for name, values in evaluate_agent(agent, self.held_out).items()}
        self.curve.append({"decisions": learner.num_timesteps, "episodes": self.env.episodes, **means})
        self.bar.set_postfix(optimality=f"{means['optimality']:.4f}")

    def _on_rollout_start(self) -> None:
        self.bar.update(self.num_timesteps - self.bar.n)
        if self.num_timesteps >= self.next_look:
            self.look(self.model)
            self.next_look += self.every
            if self.checkpoint:
                self.store()
            self.interrupted = bool(self.stop_after and self.num_timesteps >= self.stop_after)

    def _on_step(self) -> bool:
        return not self.interrupted

    def store(self) -> None:
        arrays, rest = {}, {}
        parts = {"env": self.env.state()}
        if isinstance(self.model, DQN):
            parts["replay"] = self.model.replay_buffer.state()
            rest["explore_rng"] = self.model.rng.bit_generator.state
        for part, (values, more) in parts.items():
            arrays |= {f"{part}.{name}": np.ascontiguousarray(array) for name, array in values.items()}
            rest[part] = more
        arrays |= {f"policy.{name}": tensor.numpy() for name, tensor in self.model.policy.state_dict().items()}
        for index, state in self.model.policy.optimizer.state_dict()["state"].items():
            arrays |= {f"adam.{index}.{name}": tensor.numpy() for name, tensor in state.items()}
        kind, key, *position = np.random.get_state()
        arrays |= {
            "last_obs": self.model._last_obs,
            "last_starts": np.asarray(self.model._last_episode_starts),
            "numpy_key": key,
            "torch_rng": torch.get_rng_state().numpy(),
        }
        counts = {name: getattr(self.model, name) for name in _COUNTERS if hasattr(self.model, name)}
        rest |= {
            "numpy_rng": [kind, *position],
            "counts": counts,
            "curve": self.curve,
            "next_look": self.next_look,
            "seconds": self.seconds(),
            "settings": json.loads(self.settings.to_json()),
        }
        rest["arrays"] = sorted(arrays)
        write_checkpoint(self.checkpoint.with_suffix(".training.safetensors"), arrays, rest)

    def resume(self, learner: BaseAlgorithm) -> None:
        path = self.checkpoint and self.checkpoint.with_suffix(".training.safetensors")
        if not path or not path.exists():
            return
        arrays, rest = read_checkpoint(path)
        if rest["settings"] != json.loads(self.settings.to_json()):
            raise ValueError(f"{path.name} is a checkpoint of other settings; delete it to start over")
        self.env.restore(_part(arrays, "env"), rest["env"])
        learner.policy.load_state_dict({name: torch.from_numpy(v) for name, v in _part(arrays, "policy").items()})
        adam = learner.policy.optimizer.state_dict()
        state: dict = {}
        for name, array in _part(arrays, "adam").items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = torch.from_numpy(array)
        learner.policy.optimizer.load_state_dict({"state": state, "param_groups": adam["param_groups"]})
        if isinstance(learner, DQN):
            learner.replay_buffer.restore(_part(arrays, "replay"), rest["replay"])
            learner.rng.bit_generator.state = rest["explore_rng"]
        for name, value in rest["counts"].items():
            setattr(learner, name, value)
        learner._last_obs = arrays["last_obs"]
        learner._last_episode_starts = arrays["last_starts"]
        np.random.set_state((rest["numpy_rng"][0], arrays["numpy_key"], *rest["numpy_rng"][1:]))
        torch.set_rng_state(torch.from_numpy(arrays["torch_rng"]))
        self.curve, self.next_look, self.before_s = rest["curve"], rest["next_look"], rest["seconds"]


_COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_n_calls",
    "_episode_num",
    "exploration_rate",
    "_current_progress_remaining",
)


def _part(arrays: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(part + "."): values for name, values in arrays.items() if name.startswith(part + ".")}

"""Train, save, load; and an agent as a solver.

Training is Stable-Baselines3's, with a DQN whose update uses prioritized replay. A trained agent is a small network,
which NumPy evaluates faster than torch would.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from splitpoint.checks import finite_array, finite_number, one_of, whole_number
from splitpoint.files import data_path, project_root, read_meta, write_atomically
from splitpoint.learning.env import FEATURES, ORDERS, REWARDS, Decisions, num_features, plan_of
from splitpoint.offloading import AccuracyModel, Instance, Plan, SystemParameters
from splitpoint.offloading.solvers import keep
from splitpoint.offloading.windows import Scenario, Windows, stack_windows

LEARNERS = ("dqn", "ppo")
ACTIVATIONS: dict[str, Callable] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, x, np.float32(0.01) * x),
    "tanh": np.tanh,
}
COMMITTED = ("agents", "drl_convex")


@dataclass(frozen=True)
class TrainingSettings:
    """How an agent is trained.

    Args:
        learner: ``dqn`` with prioritized replay, the paper's method; or ``ppo``.
        scenario: windows to train on.
        features, reward, order: see ``env.Decisions``.
        max_users: most users the agent admits; the scenario's if left out. Features of fixed size allow more.
        decisions: length of the training.
        seed: of everything random.
        num_envs: windows at a time.
        hidden: widths of the hidden layers.
        activation: ``relu``, ``leaky_relu`` or ``tanh``.
        learning_rate: Adam's at the start; falls linearly to a hundredth where ``anneal`` is set.
        anneal: whether the learning rate falls.
        weight_decay: Adam's.
        batch_size: transitions per update.
        max_grad_norm: gradients are clipped to this norm.
        buffer_size: DQN: transitions kept.
        learning_starts: DQN: transitions stored before the first update.
        updates_per_step: DQN: updates after each step of all windows.
        target_update: DQN: decisions between copies into the target network.
        epsilon: DQN: share of random decisions at the start and at the end.
        exploration: DQN: share of the training over which epsilon falls.
        priority: DQN: exponent alpha of the priorities; 0 is uniform replay.
        beta: DQN: importance exponent at the start and at the end; None leaves the weights out.
        two_buffers: DQN: 1/8 of each batch from ends of episodes, as released.
        double: DQN: double Q-learning.
        n_steps: DQN: rewards summed before the next value.
        rollout: PPO: decisions per window between updates.
        epochs: PPO: passes over each rollout.
        gae: PPO: lambda of the advantage estimate.
        clip: PPO: range of the probability ratio.
        entropy: PPO: weight of the entropy bonus.
        fixed_windows: train on this many windows again and again instead of drawing new ones; 0 draws.
    """

    learner: str = "dqn"
    scenario: Scenario = Scenario()
    features: str = "gains"
    reward: str = "share"
    order: str = "given"
    max_users: int | None = None
    decisions: int = 300_000
    seed: int = 0
    num_envs: int = 64
    hidden: tuple[int, ...] = (128, 128)
    activation: str = "relu"
    learning_rate: float = 1e-3
    anneal: bool = True
    weight_decay: float = 0.0
    batch_size: int = 256
    max_grad_norm: float = 10.0
    buffer_size: int = 100_000
    learning_starts: int = 5_000
    updates_per_step: int = 2
    target_update: int = 2_000
    epsilon: tuple[float, float] = (0.5, 0.001)
    exploration: float = 0.5
    priority: float = 0.7
    beta: tuple[float, float] | None = (0.3, 1.0)
    two_buffers: bool = False
    double: bool = True
    n_steps: int = 1
    rollout: int = 32
    epochs: int = 4
    gae: float = 0.95
    clip: float = 0.2
    entropy: float = 0.0
    fixed_windows: int = 0

    def __post_init__(self):
        for name, choices in (
            ("learner", LEARNERS),
            ("features", FEATURES),
            ("reward", REWARDS),
            ("order", ORDERS),
            ("activation", ACTIVATIONS),
        ):
            one_of(name, getattr(self, name), choices)
        for name in (
            "decisions",
            "num_envs",
            "batch_size",
            "buffer_size",
            "updates_per_step",
            "target_update",
            "n_steps",
            "rollout",
            "epochs",
        ):
            whole_number(name, getattr(self, name), 1)
        for name in ("seed", "learning_starts", "fixed_windows"):
            whole_number(name, getattr(self, name), 0)
        for width in self.hidden:
            whole_number("hidden", width, 1)
        finite_number("learning_rate", self.learning_rate, 0.0, open_end=True)
        for name in ("priority", "exploration", "gae"):
            finite_number(name, getattr(self, name), 0.0, 1.0)
        for name in ("weight_decay", "entropy"):
            finite_number(name, getattr(self, name), 0.0)
        for name in ("max_grad_norm", "clip"):
            finite_number(name, getattr(self, name), 0.0, open_end=True)
        for name in ("epsilon", "beta"):
            for value in getattr(self, name) or ():
                finite_number(name, value, 0.0, 1.0)
        if self.max_users is not None:
            whole_number("max_users", self.max_users, self.scenario.num_users[1])
        for name in ("hidden", "epsilon", "beta"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def users_admitted(self) -> int:
        """Most users that the agent decides about."""
        return self.max_users or self.scenario.num_users[1]

    @property
    def layers(self) -> tuple[int, ...]:
        """Widths of the network, from the observation to the two actions."""
        return (num_features(self.features, self.users_admitted), *self.hidden, 2)

    def to_json(self) -> str:
        """As text; ``from_json`` reads it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "TrainingSettings":
        """Settings from text.

        Raises:
            ValueError: if the text is not the JSON of settings, or a setting is unknown or out of range.
        """
        try:
            values = json.loads(text)
            unknown = set(values) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
            scenario = dict(values["scenario"])
            parameters = dict(scenario["parameters"])
            parameters["accuracy"] = AccuracyModel(**parameters["accuracy"])
            devices = scenario["devices"]
            scenario = Scenario(
                tuple(scenario["num_users"]),
                tuple(scenario["num_edge_gpus"]),
                None if devices is None else tuple(devices),
                SystemParameters(**parameters),
            )
            return cls(**(values | {"scenario": scenario}))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are not the settings of an agent: {error}") from error


@dataclass(frozen=True, eq=False)
class Agent:
    """A trained agent.

    Args:
        settings: how it was trained.
        weights: ``layer0.weight`` (out, in), ``layer0.bias`` (out,), ``layer1.weight``, … as float32.
        curve: rows of ``decisions, episodes, reward, accuracy, latency_s, optimality`` on held-out windows, one per
            look that training took.
        train_s: processor seconds that training took (what a clock shows where one thread has a core to itself).
    """

    settings: TrainingSettings
    weights: dict[str, NDArray[np.float32]]
    curve: list[dict] = field(default_factory=list)
    train_s: float = float("nan")

    def __post_init__(self):
        layers = self.settings.layers
        expected = {
            f"layer{i}.{kind}": shape
            for i, (before, after) in enumerate(zip(layers, layers[1:]))
            for kind, shape in (("weight", (after, before)), ("bias", (after,)))
        }
        found = {name: np.shape(values) for name, values in self.weights.items()}
        if found != expected:
            raise ValueError(
                f"weights have the shapes {found}; an agent with features={self.settings.features!r}, "
                f"hidden={self.settings.hidden} needs {expected}"
            )
        for name, values in self.weights.items():
            finite_array(name, values)

    def preferences(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """What speaks for denying and for granting, shape (n, width) -> (n, 2).

        Raises:
            ValueError: for another width or numbers that are not finite.
        """
        x = np.asarray(observations, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.settings.layers[0]:
            raise ValueError(f"observations have shape {x.shape}; valid is (n, {self.settings.layers[0]})")
        if not np.isfinite(x).all():
            raise ValueError("observations hold numbers that are not finite")
        act, last = ACTIVATIONS[self.settings.activation], len(self.settings.hidden)
        for i in range(last + 1):
            x = x @ self.weights[f"layer{i}.weight"].T + self.weights[f"layer{i}.bias"]
            x = act(x) if i < last else x
        return x

    def decide(self, windows: Windows) -> NDArray[np.bool_]:
        """Users granted in each of many windows, shape (n, U).

        Raises:
            ValueError: if a window has more users than the agent admits.
        """
        settings = self.settings
        if windows.num_users.max() > settings.users_admitted:
            raise ValueError(
                f"num_users={windows.num_users.max()} is outside [1, {settings.users_admitted}], what "
                "this agent admits (max_users in its settings)"
            )
        asked = windows.alpha.shape[1]
        width = settings.users_admitted if settings.features == "released" else asked
        if asked != width:
            windows = stack_windows([windows.instance(row) for row in range(len(windows))], width)
        process = Decisions(len(windows), width, windows.parameters, settings.features, "share", settings.order)
        process.load(process.rows, windows)
        granted, done = process.granted, process.done
        while not done.all():
            preferences = self.preferences(process.observe())
            process.step(preferences[:, 1] > preferences[:, 0])
            granted = np.where(done[:, None], granted, process.granted)
            done = done | process.done
        return np.pad(granted, ((0, 0), (0, max(asked - width, 0))))[:, :asked]

    def solve(self, instance: Instance, whole_steps: bool = False) -> Plan:
        """Decide one window, user by user; split points, whole ones if asked, fit the resulting batch."""
        return plan_of(instance, self.decide(stack_windows([instance]))[0], whole_steps)

    def save(self, path: str | Path) -> None:
        """Write ``<path>.safetensors`` (weights) and ``<path>.json`` (settings, curve, seconds)."""
        path = Path(path)
        text = {"settings": json.loads(self.settings.to_json()), "train_s": self.train_s, "curve": self.curve}
        write_atomically(path.with_suffix(".safetensors"), save(self.weights))
        write_atomically(path.with_suffix(".json"), json.dumps(text, indent=1).encode())


def load_agent(path: str | Path | None = None, features: str | None = None) -> Agent:
    """An agent from its two files.

    Args:
        path: with or without ending, or the name of an agent in ``data/agents``; the one that ships as
            ``method="agent"`` if left out.
        features: refuse an agent that was made for other features.

    Raises:
        ValueError: if a file is missing or damaged, or the weights do not fit the settings or ``features``.
    """
    path = Path(path or COMMITTED[-1])
    if path.parent == Path() and not path.with_suffix(".json").exists():
        path = data_path(COMMITTED[0], path.name)
    for file in (path.with_suffix(".json"), path.with_suffix(".safetensors")):
        if file.exists() and project_root().joinpath("data") in file.absolute().parents:
            read_meta(file)  # what ships has a sidecar; an agent of one's own need not
    try:
        text = json.loads(path.with_suffix(".json").read_text())
        settings = TrainingSettings.from_json(json.dumps(text["settings"]))
        weights = load_file(path.with_suffix(".safetensors"))
    except (OSError, json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{path.name} is not an agent: {type(error).__name__}, its .json or .safetensors is missing or damaged"
        ) from error
    if features is not None and features != settings.features:
        raise ValueError(f"{path.name} was trained on features={settings.features!r}, not {features!r}")
    return Agent(settings, weights, text.get("curve", []), text.get("train_s", float("nan")))


def evaluate_agent(agent: Agent, windows: Windows) -> dict[str, NDArray[np.float64]]:
    """Outcome and optimality of an agent's plans, one number a window; see ``Windows.outcomes``."""
    granted = agent.decide(windows)
    return windows.outcomes(granted) | {"optimality": windows.optimality(granted)}


_loaded: dict[str, Agent] = {}


def _solve_with_committed_agent(instance: Instance, whole_steps: bool = False) -> Plan:
    if "agent" not in _loaded:
        _loaded["agent"] = load_agent()
    return _loaded["agent"].solve(instance, whole_steps)


keep("agent", _solve_with_committed_agent)


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
        ValueError: for settings out of range, or a checkpoint of other settings.
    """
    from splitpoint.learning.training import run_training  # which imports this module

    return run_training(replace(settings, **changes), checkpoint, held_out, looks, progress, stop_after)

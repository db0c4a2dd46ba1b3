"""How an agent is trained, and what it sees."""

import json
from dataclasses import asdict, dataclass, field, fields

from splitpoint.checks import a_sequence, finite_number, instance_of, one_of, whole_number
from splitpoint.learning.decisions import FEATURES, ORDERS, REWARDS, num_features
from splitpoint.offloading import AccuracyModel, SystemParameters
from splitpoint.offloading.windows import Scenario

LEARNERS = ("dqn", "ppo")
ACTIVATION_NAMES = ("relu", "leaky_relu", "tanh")


def _two_shares(name: str, ends: tuple[float, float]) -> None:
    """Refuse what is not two numbers within [0, 1], at the start and at the end."""
    if len(a_sequence(name, ends)) != 2:
        raise ValueError(f"{name}={ends!r} must be two numbers, at the start and at the end")
    for value in ends:
        finite_number(name, value, 0.0, 1.0)


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
    scenario: Scenario = field(default_factory=Scenario)
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
        instance_of("scenario", self.scenario, Scenario)
        for name in ("anneal", "two_buffers", "double"):
            instance_of(name, getattr(self, name), bool)
        for name, choices in (
            ("learner", LEARNERS),
            ("features", FEATURES),
            ("reward", REWARDS),
            ("order", ORDERS),
            ("activation", ACTIVATION_NAMES),
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
        for width in a_sequence("hidden", self.hidden):
            whole_number("hidden", width, 1)
        finite_number("learning_rate", self.learning_rate, 0.0, open_end=True)
        for name in ("priority", "exploration", "gae"):
            finite_number(name, getattr(self, name), 0.0, 1.0)
        for name in ("weight_decay", "entropy"):
            finite_number(name, getattr(self, name), 0.0)
        for name in ("max_grad_norm", "clip"):
            finite_number(name, getattr(self, name), 0.0, open_end=True)
        _two_shares("epsilon", self.epsilon)
        if self.beta is not None:
            _two_shares("beta", self.beta)
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

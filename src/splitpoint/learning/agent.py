"""A trained agent: saved, loaded, and as a solver.

It is a small network, which NumPy evaluates faster than torch would; running one needs neither torch nor
Stable-Baselines3.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from splitpoint.checks import a_path, finite_array, instance_of, one_of
from splitpoint.files import data_path, project_root, read_meta, write_atomically
from splitpoint.learning.decisions import FEATURES, Decisions, plan_of
from splitpoint.learning.settings import TrainingSettings
from splitpoint.offloading import Instance, Plan
from splitpoint.offloading.solvers import keep
from splitpoint.offloading.windows import Windows, stack_windows

COMMITTED = ("agents", "drl_convex")
ACTIVATIONS: dict[str, Callable] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, x, np.float32(0.01) * x),
    "tanh": np.tanh,
}


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
        instance_of("settings", self.settings, TrainingSettings)
        instance_of("weights", self.weights, dict)
        layers = self.settings.layers
        expected = {
            f"layer{i}.{kind}": shape
            for i, (before, after) in enumerate(pairwise(layers))
            for kind, shape in (("weight", (after, before)), ("bias", (after,)))
        }
        found = {name: np.shape(values) for name, values in self.weights.items()}
        if found != expected:
            raise ValueError(
                f"weights have the shapes {found}; an agent with features={self.settings.features!r}, "
                f"hidden={self.settings.hidden} needs {expected}"
            )
        for name, values in self.weights.items():
            finite_array(f"weights[{name!r}]", values)

    def preferences(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """What speaks for denying and for granting, shape (n, width) -> (n, 2).

        Raises:
            ValueError: for another width or numbers that are not finite.
        """
        x = observations if isinstance(observations, np.ndarray) else finite_array("observations", observations)
        if x.dtype.kind not in "iuf" or x.ndim != 2 or x.shape[1] != self.settings.layers[0]:
            raise ValueError(
                f"observations have shape {x.shape} of {x.dtype}; valid is (n, {self.settings.layers[0]}) of numbers"
            )
        x = x.astype(np.float32, copy=False)
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
        instance_of("windows", windows, Windows)
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
        instance_of("instance", instance, Instance)
        instance_of("whole_steps", whole_steps, bool)
        return plan_of(instance, self.decide(stack_windows([instance]))[0], whole_steps)

    @property
    def key(self) -> str:
        """Tells this agent from every other: changes with weights and settings."""
        return "agent " + hashlib.sha256(save(self.weights) + self.settings.to_json().encode()).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write ``<path>.safetensors`` (weights) and ``<path>.json`` (settings, curve, seconds, the weights' checksum).

        The two are one unit: whoever is cut off between them leaves a pair that ``load_agent`` refuses.
        """
        a_path("path", path)
        path, weights = Path(path), save(self.weights)
        text = {
            "settings": json.loads(self.settings.to_json()),
            "train_s": self.train_s,
            "curve": self.curve,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        write_atomically(path.with_suffix(".safetensors"), weights)
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
    if path is not None:
        a_path("path", path)
    if features is not None:
        one_of("features", features, FEATURES)
    path = Path(path or COMMITTED[-1])
    if path.parent == Path() and not path.with_suffix(".json").exists():
        path = data_path(COMMITTED[0], path.name)
    for file in (path.with_suffix(".json"), path.with_suffix(".safetensors")):
        if file.exists() and project_root().joinpath("data") in file.absolute().parents:
            read_meta(file)  # what ships has a sidecar; an agent of one's own need not
    try:
        text = json.loads(path.with_suffix(".json").read_text())
        settings = TrainingSettings.from_json(json.dumps(text["settings"]))
        content = path.with_suffix(".safetensors").read_bytes()
        weights = load(content)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{path.name} is not an agent: {type(error).__name__}, its .json or .safetensors is missing or damaged"
        ) from error
    if text.get("weights_sha256", checksum := hashlib.sha256(content).hexdigest()) != checksum:
        raise ValueError(f"{path.name} holds weights and settings of two different agents; save it again")
    if features is not None and features != settings.features:
        raise ValueError(f"{path.name} was trained on features={settings.features!r}, not {features!r}")
    return Agent(settings, weights, text.get("curve", []), text.get("train_s", float("nan")))


def evaluate_agent(agent: Agent, windows: Windows) -> dict[str, NDArray[np.float64]]:
    """Outcome and optimality of an agent's plans, one number a window; see ``Windows.outcomes``."""
    instance_of("agent", agent, Agent)
    granted = agent.decide(windows)
    return windows.outcomes(granted) | {"optimality": windows.optimality(granted)}


_loaded: dict[str, Agent] = {}


def _solve_with_committed_agent(instance: Instance, whole_steps: bool = False) -> Plan:
    if "agent" not in _loaded:
        _loaded["agent"] = load_agent()
    return _loaded["agent"].solve(instance, whole_steps)


keep("agent", _solve_with_committed_agent)

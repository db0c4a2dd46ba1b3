"""Deciding one request at a time: the decision process, prioritized replay, the agent.

Importing this room adds ``method="agent"`` to ``splitpoint.offloading.solve``: the agent that ships with the project,
loaded when it is first used. What trains (torch, Stable-Baselines3) is imported on first use; running an agent needs
NumPy alone.
"""

from importlib import import_module

import gymnasium

from splitpoint.learning.agent import Agent, evaluate_agent, load_agent
from splitpoint.learning.settings import TrainingSettings
from splitpoint.offloading.windows import Scenario, Windows, stack_windows

_HOMES = {
    "OffloadingEnv": "window_env",
    "OffloadingVecEnv": "window_env",
    "PrioritizedReplay": "replay",
    "SumTree": "replay",
    "train_agent": "training",
}

__all__ = [
    "Agent",
    "OffloadingEnv",
    "OffloadingVecEnv",
    "PrioritizedReplay",
    "Scenario",
    "SumTree",
    "TrainingSettings",
    "Windows",
    "evaluate_agent",
    "load_agent",
    "stack_windows",
    "train_agent",
]

gymnasium.register(id="splitpoint/Offloading-v0", entry_point="splitpoint.learning.window_env:OffloadingEnv")


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value

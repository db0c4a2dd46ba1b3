"""Deciding one request at a time: the decision process, prioritized replay, the agent.

Importing this room adds ``method="agent"`` to ``splitpoint.offloading.solve``: the agent that ships with the project,
loaded when it is first used. What trains (torch, Stable-Baselines3) is imported on first use; running an agent needs
NumPy alone.
"""

import gymnasium

from splitpoint.lazy import on_first_use
from splitpoint.learning.agent import Agent, evaluate_agent, load_agent
from splitpoint.learning.settings import TrainingSettings
from splitpoint.offloading.windows import Scenario, Windows, stack_windows

_HOMES = {
    "EdgeEnv": "edge_env",
    "EdgeGame": "edge_env",
    "EdgeGround": "rollouts",
    "EdgeVecEnv": "edge_env",
    "OffloadingEnv": "window_env",
    "OffloadingVecEnv": "window_env",
    "PrioritizedReplay": "replay",
    "SumTree": "replay",
    "TwinGround": "rollouts",
    "load_policy": "rollouts",
    "train_agent": "training",
    "train_policy": "curve_training",
}

__all__ = [
    "Agent",
    "EdgeEnv",
    "EdgeGame",
    "EdgeGround",
    "EdgeVecEnv",
    "OffloadingEnv",
    "OffloadingVecEnv",
    "PrioritizedReplay",
    "Scenario",
    "SumTree",
    "TrainingSettings",
    "TwinGround",
    "Windows",
    "evaluate_agent",
    "load_agent",
    "load_policy",
    "stack_windows",
    "train_agent",
    "train_policy",
]

gymnasium.register(id="splitpoint/Edge-v0", entry_point="splitpoint.learning.edge_env:EdgeEnv")
gymnasium.register(id="splitpoint/Offloading-v0", entry_point="splitpoint.learning.window_env:OffloadingEnv")

__getattr__ = on_first_use(__name__, _HOMES)

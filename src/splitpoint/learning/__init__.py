"""Deciding one request at a time: the decision process, prioritized replay, the agent.

Importing this room adds ``method="agent"`` to ``splitpoint.offloading.solve``: the agent that ships with the project,
loaded when it is first used.
"""

from splitpoint.learning.agent import Agent, TrainingSettings, evaluate_agent, load_agent, train_agent
from splitpoint.learning.env import OffloadingEnv, OffloadingVecEnv
from splitpoint.learning.replay import PrioritizedReplay, SumTree
from splitpoint.offloading.windows import Scenario, Windows, stack_windows

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

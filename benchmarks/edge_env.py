"""Decisions a second of the living edge as an environment, on one core: medians of interleaved repeats, with spread.

Run with OMP_NUM_THREADS=1 on a quiet machine: python benchmarks/edge_env.py
"""

import time

import numpy as np
import pandas as pd

from splitpoint.edge import Poisson, System
from splitpoint.learning.edge_env import EdgeGame
from splitpoint.study.living_edge import released_edge

REPEATS = 5


def decisions_per_second(num_envs: int, reward: str, seed: int) -> float:
    """One episode of every environment, the drawing of its path included."""
    game = EdgeGame(System((released_edge(),)), Poisson(8.0, 40.0), num_envs, 200, reward, seed=seed)
    action, cut, decided = np.zeros((num_envs, 1, 2)), False, 0
    began = time.perf_counter()
    game.begin()
    while not cut:
        *_, cut = game.step(action)
        decided += num_envs
    return decided / (time.perf_counter() - began)


if __name__ == "__main__":
    cases = [(num_envs, reward) for num_envs in (1, 64, 256) for reward in ("paid", "grant", "relative")]
    rows = [
        dict(num_envs=num_envs, reward=reward, rate=decisions_per_second(num_envs, reward, repeat))
        for repeat in range(REPEATS)
        for num_envs, reward in cases
    ]
    table = pd.DataFrame(rows).groupby(["num_envs", "reward"], sort=False).rate.agg(["median", "min", "max"])
    print(table.round(-2).astype(int).to_string())

"""Deep reinforcement learning on the living edge, whether or not it helps: notebook 11's ablation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO

from splitpoint.checks import one_of, whole_number
from splitpoint.edge import Decision, HiddenRegimes, LearnedCurve, Observation, System, draw_paths, load_curve, simulate
from splitpoint.edge.policies import StatePrice
from splitpoint.files import sha256
from splitpoint.learning.curve_training import CONTEXT, train_policy
from splitpoint.learning.edge_env import MOST, EdgeGame, EdgeVecEnv
from splitpoint.learning.replay import PrioritizedReplay
from splitpoint.learning.rollouts import EdgeGround
from splitpoint.learning.training import PrioritizedDQN
from splitpoint.study import learned_price
from splitpoint.study.living_edge import released_edge
from splitpoint.tables import code_digest, load_or_run

#: where they learn; the scenarios that they are judged on are others
SCHOOL = HiddenRegimes((2.0, 8.0, 24.0), 12.0, 40.0)
GAMMA = 0.99


@dataclass(frozen=True)
class Learner:
    """What learns, and from what.

    Args:
        what: ``ppo``, ``maskable``, ``recurrent`` or ``dqn``, from rewards; or ``curve``, from samples of a cost.
        base: ``price`` (twice the marginal cost), ``curve`` (the learned one that ships) or ``nothing`` (one price).
        reward: see ``EdgeGame``; of a ``curve``, ``cost_of`` of ``EdgeGround``.
    """

    what: str
    base: str
    reward: str


LEARNERS = {
    "PPO from scratch": Learner("ppo", "nothing", "paid"),
    "PPO, credit at the grant": Learner("ppo", "price", "grant"),
    "PPO on the price rule": Learner("ppo", "price", "paid"),
    "PPO on the price rule, less the rule's own path": Learner("ppo", "price", "relative"),
    "PPO on the learned curve": Learner("ppo", "curve", "relative"),
    "recurrent PPO on the price rule": Learner("recurrent", "price", "relative"),
    "maskable PPO on the price rule": Learner("maskable", "price", "relative"),
    "DQN with prioritized replay on the price rule": Learner("dqn", "price", "relative"),
    "curve of everybody's cost, same school": Learner("curve", "price", "everybody"),
    "curve of one's own time (a bandit)": Learner("curve", "price", "own"),
    "curve of the re-solver's price (imitation)": Learner("curve", "price", "price"),
}
#: paths and generations of those that learn a cost curve
CURVES = dict(count=1_000, generations=3, epochs=60, knots=learned_price.EDGE_KNOTS)


def base_curve(name: str) -> LearnedCurve | None:
    """The curve that is corrected."""
    one_of("name", name, ("nothing", "price", "curve"))
    if name == "curve":
        return load_curve(learned_price.EDGE_CURVE)
    if name == "price":
        return None
    flat = (np.zeros((2, 1)),), (np.array([0.0, 0.06]),)  # a price of nobody's making; the factor reaches 0.02 to 0.18
    return LearnedCurve(*flat, features=("free",))


@dataclass(eq=False)
class Acted:
    """A trained network as a policy of the living edge; many paths at once, or one path after the other if it
    remembers.

    Args:
        network: of Stable-Baselines3.
        env: that it learned in.
    """

    network: Any
    env: EdgeVecEnv
    many = True

    def reset(self, runs: int) -> None:
        """Forget."""
        self.memory, self.first, self.runs = None, np.ones(runs, dtype=bool), runs

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        seen = observation.features(CONTEXT)
        seen = np.minimum(seen.reshape(len(seen), -1), MOST).astype(np.float32)
        if isinstance(self.network, RecurrentPPO):
            everyone = np.zeros((self.runs, seen.shape[1]), np.float32)
            everyone[observation.run] = seen
            action, self.memory = self.network.predict(everyone, self.memory, self.first, deterministic=True)
            self.first[:] = False
            action = action[observation.run]
        else:
            action = self.network.predict(seen, deterministic=True)[0]
        if self.env.factors is not None:
            action = self.env.acted(action)
        return self.env.game.decide(observation, np.clip(action.reshape(len(seen), -1, 2), -1, 1))


def school(name: str, decisions: int, seed: int) -> Acted | LearnedCurve:
    """Train one of ``LEARNERS``.

    Args:
        name: which.
        decisions: to learn from rewards; cost curves have their paths (``CURVES``).
        seed: of everything random.
    """
    one_of("name", name, LEARNERS)
    whole_number("decisions", decisions, 1)
    learner = LEARNERS[name]
    if learner.what == "curve":
        system, rule = System((released_edge(),)), StatePrice(0.0, 2.0)
        ground = EdgeGround(system, SCHOOL, rule, 2.0, 15.0, learner.reward)
        return train_policy([ground], features=CONTEXT, seed=1_000 + seed, **CURVES)
    game = EdgeGame(
        System((released_edge(),)), SCHOOL, 64, 128, learner.reward, base_curve(learner.base), seed=1_000 + seed
    )
    env = EdgeVecEnv(game, 7 if learner.what in ("dqn", "maskable") else None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = _network(learner, env, seed, decisions)
        network.learn(decisions)
    finally:
        torch.set_num_threads(threads)
    return Acted(network, env)


def _network(learner: Learner, env: EdgeVecEnv, seed: int, decisions: int):
    common = dict(env=env, gamma=GAMMA, seed=seed, device="cpu")
    if learner.what == "dqn":
        return PrioritizedDQN(
            policy="MlpPolicy", beta=(0.4, 1.0), double=True, buffer_size=100_000, learning_starts=2_000, train_freq=1,
            gradient_steps=2, target_update_interval=500, replay_buffer_class=PrioritizedReplay,
            replay_buffer_kwargs=dict(alpha=0.6, two_buffers=False, n_steps=1, seed=seed), exploration_final_eps=0.02,
            policy_kwargs=dict(net_arch=[64, 64]), batch_size=256, **common,
        )  # fmt: skip
    ppo = dict(n_steps=127, batch_size=1016, n_epochs=5, learning_rate=3e-4, **common)
    if learner.what == "maskable":
        return MaskablePPO("MlpPolicy", **ppo)
    if learner.what == "recurrent":
        return RecurrentPPO("MlpLstmPolicy", policy_kwargs=dict(lstm_hidden_size=32, log_std_init=-1.0), **ppo)
    network = PPO("MlpPolicy", policy_kwargs=dict(log_std_init=-1.0), **ppo)
    if learner.base != "nothing":  # begin as the rule that is corrected
        torch.nn.init.zeros_(network.policy.action_net.weight)
        torch.nn.init.zeros_(network.policy.action_net.bias)
    return network


def learn_and_play(name: str, decisions: int, seed: int, num_paths: int) -> list[dict]:
    """One learner, judged before and after on scenarios that it never saw.

    Args:
        name: of ``LEARNERS``.
        decisions, seed: see ``school``.
        num_paths: the first of each scenario's.
    """
    policy = school(name, decisions, seed)
    rows = []
    for case in ("8 a second", "16 a second", "hidden regimes", "ramp from 2 to 20"):
        unseen = learned_price.scenarios()[case]
        paths = draw_paths(unseen.edges, unseen.arrivals, learned_price.JUDGE_SEED, num_paths)
        table = simulate(unseen.edges, paths, policy)
        gains = np.bincount(table.replication, table.gain_s, minlength=num_paths)
        rows += [dict(learner=name, seed=seed, scenario=case, path=i, gain_s=gain) for i, gain in enumerate(gains)]
    return rows


def ablation(
    names: Sequence[str] = tuple(LEARNERS), seeds: int = 2, decisions: int = 100_000, num_paths: int = 48
) -> pd.DataFrame:
    """Every learner from several seeds; stored and resumed.

    Returns:
        ``learner, seed, scenario, path, gain_s``, one row a path.
    """
    tasks = [
        dict(name=name, decisions=decisions, seed=seed, num_paths=num_paths) for name in names for seed in range(seeds)
    ]
    settings = dict(names=list(names), seeds=seeds, decisions=decisions, num_paths=num_paths)
    settings |= dict(curve=sha256(learned_price.EDGE_CURVE), learners=repr(LEARNERS))
    settings |= dict(code=code_digest("edge", "learning", "offloading"))
    return load_or_run(
        "edge_learners", learn_and_play, tasks, settings=settings, command="splitpoint train-policy ablation"
    )

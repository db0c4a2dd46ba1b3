"""A living edge as a decision process: one decision an arrival, and the action is the edge's cost curve.

What a grant is worth to the person who asks is known; the action says what it costs everybody, as a correction of a
base curve: a fee, and a factor on the cost of the steps. The person's split then follows by itself.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from splitpoint.checks import instance_of, one_of, whole_number
from splitpoint.edge import Arrivals, Decision, Edge, LearnedCurve, Observation, Poisson, Simulation, System, draw_paths
from splitpoint.edge.policies import at_costs, full_s, marginal_step_s, next_step_s
from splitpoint.edge.request import grant_value_s
from splitpoint.edge.simulator import NEVER
from splitpoint.learning.curve_training import CONTEXT
from splitpoint.offloading import published_latency

REWARDS = ("paid", "grant", "relative")
#: largest number that is seen
MOST = 1_000.0
#: the factor of the action 1; that of -1 is its inverse
FACTOR = 3.0
#: the fee of the action 1, in steps as long as the next one is
FEE_STEPS = 60.0


class EdgeGame:
    """Many edges side by side: the environment's rules, for one and for many.

    Args:
        system: the edges.
        arrivals: that every episode draws from.
        num_envs: episodes at a time; they begin and end together.
        decisions: of an episode, which is cut off there (truncated, never terminated).
        reward: ``paid`` (what every executed step is worth, less a second for every second that somebody is inside),
            ``grant`` (all of a grant at once, at its own expected time), or ``relative`` (``paid`` less that of the
            base curve on the same path).
        base: the curve that actions correct; twice the marginal cost of a step if left out.
        seed: of everything random.
    """

    def __init__(
        self,
        system: System,
        arrivals: Arrivals,
        num_envs: int = 1,
        decisions: int = 200,
        reward: str = "paid",
        base: LearnedCurve | None = None,
        seed: int = 0,
    ):
        instance_of("system", system, System)
        instance_of("arrivals", arrivals, Arrivals)
        whole_number("num_envs", num_envs, 1)
        whole_number("decisions", decisions, 1)
        one_of("reward", reward, REWARDS)
        if base is not None:
            instance_of("base", base, LearnedCurve)
        whole_number("seed", seed, 0)
        self.system, self.arrivals, self.num_envs, self.decisions = system, arrivals, num_envs, decisions
        self.reward, self.base, self.seed, self.episode = reward, base, seed, 0
        self.width = len(system.edges) * len(CONTEXT)

    def costs(self, observation: Observation) -> NDArray[np.float64]:
        """The base curve: cost of 1, 2, … steps, shape (…, E, M), seconds."""
        if self.base is not None:
            return self.base.costs(observation)
        steps = np.arange(1.0, self.system.most_steps + 1)
        return 2 * marginal_step_s(observation)[..., None] * steps

    def decide(self, observation: Observation, action: NDArray[np.float64]) -> Decision:
        """What follows from the action, shape (…, E, 2), of which no number is outside [-1, 1]."""
        fee = action[..., 0] * FEE_STEPS * next_step_s(observation) + full_s(observation)
        return at_costs(observation, self.costs(observation) * FACTOR ** action[..., [1]] + fee[..., None])

    def begin(self, seed: int | None = None) -> NDArray[np.float32]:
        """New episodes; everything random is drawn here. Returns what is seen, shape (num_envs, width)."""
        self.seed, self.episode = (self.seed, self.episode + 1) if seed is None else (seed, 0)
        drawn = int(np.random.SeedSequence([self.seed, self.episode]).generate_state(1)[0])
        paths = draw_paths(self.system.edges, self.arrivals, drawn, self.num_envs)
        self.last = min(self.decisions, *map(len, paths)) - 1
        if self.last < 1:
            raise ValueError(f"arrivals bring {self.last + 1} requests in an episode; valid are 2 or more")
        self.plays = [_Play(self.system, paths) for _ in range(2 if self.reward == "relative" else 1)]
        self.number = 0
        return self._look()

    def step(self, action: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float64], bool]:
        """Decide about the request that asks in every episode.

        Args:
            action: fee and factor for each edge, shape (num_envs, E, 2) or flat, in [-1, 1].

        Returns:
            What is seen next, shape (num_envs, width), rewards in seconds, shape (num_envs,), and whether all are cut.
        """
        action = np.asarray(action, dtype=float)
        if action.size != self.num_envs * len(self.system.edges) * 2 or not np.all(np.isfinite(action)):
            raise ValueError(f"action={action!r}; valid are {self.num_envs * len(self.system.edges) * 2} numbers")
        action = np.clip(action.reshape(self.num_envs, -1, 2), -1.0, 1.0)
        here = self.observations[0]
        decision = self.decide(here, action)
        self.plays[0].answer(self.number, decision)
        for play, seen in zip(self.plays[1:], self.observations[1:]):
            play.answer(self.number, at_costs(seen, self.costs(seen) + full_s(seen)[..., None]))
        self.number += 1
        see = self._look()
        if self.reward == "grant":
            rewards = _at_once(here, decision)
        else:
            gained = [play.paid(self.number) for play in self.plays]
            rewards = gained[0] - (gained[1] if len(gained) > 1 else 0.0)
        return see, rewards, self.number == self.last

    def _look(self) -> NDArray[np.float32]:
        self.observations = [play.simulation.arrive(self.number)[1] for play in self.plays]
        seen = self.observations[0].features(CONTEXT).reshape(self.num_envs, self.width)
        return np.minimum(seen, MOST).astype(np.float32)


def _at_once(observation: Observation, decision: Decision) -> NDArray[np.float64]:
    """What a grant is worth to the person alone, if the batch stayed as it is."""
    system, edge = observation.system, np.maximum(decision.edge, 0)
    worth = grant_value_s(
        observation.alpha, observation.device_step_s, decision.steps, system.transfer_s[edge], system.parameters
    )
    step_s = np.take_along_axis(next_step_s(observation), edge[:, None], axis=1)[:, 0]
    return worth - decision.steps * step_s


class _Play:
    """A simulation, and what was paid in it so far."""

    def __init__(self, system: System, paths):
        self.simulation, self.paths = Simulation(system, paths), paths
        shape = self.simulation.time_s.shape
        self.open, self.settled, self.before = np.zeros(shape, bool), np.zeros(shape[0]), np.zeros(shape[0])

    def answer(self, number: int, decision: Decision) -> None:
        """Carry out one decision in every run."""
        play, runs = self.simulation, np.arange(len(self.paths))
        edge, steps = np.asarray(decision.edge), np.asarray(decision.steps)
        play.grant(runs, np.full(len(runs), number), edge, steps, play.clock(number, runs))
        self.open[:, number] = steps > 0

    def paid(self, number: int) -> NDArray[np.float64]:
        """Seconds that were gained between two arrivals, shape (runs,)."""
        play, rows, system = self.simulation, self.simulation.rows, self.simulation.system
        now, shape = play.time_s[:, number], play.time_s.shape
        left = rows.left[: play.time_s.size].reshape(shape)
        run, which = np.nonzero(self.open[:, :number] & ~np.isnan(left[:, :number]))
        edge = play.edge[run, which]
        gone_s = np.array([self.paths[r].capacity[e].seconds(left[r, w]) for r, w, e in zip(run, which, edge)])
        self.open[run, which] = False
        gained = self._worth(run, which, edge, play.granted[run, which]) - (gone_s - play.time_s[run, which])
        self.settled += np.bincount(run, gained, minlength=shape[0])
        row, slot = np.nonzero(rows.exits != NEVER)
        ticket = rows.who[row, slot]
        done = rows.steps[ticket] - (rows.exits[row, slot] - rows.counter[row])
        run, which = np.divmod(ticket, shape[1])
        so_far = np.bincount(run, self._worth(run, which, row % len(system.edges), done), minlength=shape[0])
        waited = np.where(self.open[:, :number], now[:, None] - play.time_s[:, :number], 0.0).sum(axis=1)
        total = self.settled + so_far - waited
        gained, self.before = total - self.before, total
        return gained

    def _worth(self, run, which, edge, steps) -> NDArray[np.float64]:
        play, system = self.simulation, self.simulation.system
        return grant_value_s(
            play.alpha[run, which], play.device_step_s[run, which], steps, system.transfer_s[edge], system.parameters
        )


def _spaces(game: EdgeGame) -> tuple[spaces.Box, spaces.Box]:
    edges = len(game.system.edges)
    return spaces.Box(0.0, MOST, (game.width,), np.float32), spaces.Box(-1.0, 1.0, (2 * edges,), np.float32)


def _released_system() -> System:
    return System((Edge(published_latency()[0].shared_by(16)),))


class EdgeEnv(gymnasium.Env):
    """One edge, or several, over time, as a Gymnasium environment; registered as ``splitpoint/Edge-v0``.

    Args:
        system, arrivals, decisions, reward, base: see ``EdgeGame``; the released edge and eight requests a second if
            left out.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        system: System | None = None,
        arrivals: Arrivals | None = None,
        decisions: int = 200,
        reward: str = "paid",
        base: LearnedCurve | None = None,
    ):
        self.game = EdgeGame(system or _released_system(), arrivals or Poisson(8.0), 1, decisions, reward, base)
        self.observation_space, self.action_space = _spaces(self.game)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """A new episode; the same seed gives the same."""
        if seed is not None:
            whole_number("seed", seed, 0)
        super().reset(seed=seed)
        return self.game.begin(seed)[0], {}

    def step(self, action):
        """Decide about the request that asks: fee and factor for each edge."""
        seen, rewards, cut = self.game.step(np.asarray(action)[None])
        return seen[0], float(rewards[0]), False, cut, {}


class EdgeVecEnv(VecEnv):
    """Many of them at a time for Stable-Baselines3, on one simulation; cut-off episodes say what they would see next.

    Args:
        game: the rules.
        choices: for learners of values: so many factors, evenly spaced, of which one holds for all edges, and no fee;
            actions are as they stand in ``EdgeGame`` if left out.
    """

    def __init__(self, game: EdgeGame, choices: int | None = None):
        instance_of("game", game, EdgeGame)
        self.game, self._return, self.factors = game, np.zeros(game.num_envs), None
        seen, actions = _spaces(game)
        if choices is not None:
            whole_number("choices", choices, 2)
            self.factors, actions = np.linspace(-1, 1, choices), spaces.Discrete(choices)
        super().__init__(game.num_envs, seen, actions)

    def reset(self) -> NDArray[np.float32]:
        """Begin new episodes."""
        self._return[:] = 0
        return self.game.begin()

    def step_async(self, actions: NDArray) -> None:
        """Take the actions, shape (num_envs, 2 E), or (num_envs,) of choices."""
        self._actions = actions if self.factors is None else self.acted(actions)

    def acted(self, choices: NDArray) -> NDArray[np.float64]:
        """Choices as actions, shape (num_envs,) -> (num_envs, E, 2)."""
        factors = np.asarray(self.factors)[np.asarray(choices)]
        action = np.zeros((len(factors), len(self.game.system.edges), 2))
        action[..., 1] = factors[:, None]
        return action

    def masks(self) -> NDArray[np.bool_]:
        """Choices that differ, shape (num_envs, choices): where every edge is full, only the first is left."""
        assert self.factors is not None
        here = self.game.observations[0]
        room = (here.inside < self.game.system.limits).any(axis=-1)
        return room[:, None] | (np.arange(len(self.factors)) == 0)

    def step_wait(self):
        """Observations, rewards, ends and infos."""
        seen, rewards, cut = self.game.step(self._actions)
        self._return += rewards
        infos: list[dict] = [{} for _ in range(self.num_envs)]
        if cut:
            for row, info in enumerate(infos):
                info["terminal_observation"], info["TimeLimit.truncated"] = seen[row], True
                info["episode"] = {"r": self._return[row], "l": self.game.number, "t": 0.0}
            seen = self.reset()
        return seen, rewards.astype(np.float32), np.full(self.num_envs, cut), infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices=None) -> list:
        """See ``VecEnv``."""
        if attr_name == "action_masks":
            return [self.masks] * self.num_envs
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value, indices=None) -> None:
        """Not possible.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("one simulation plays all; make a new one")

    def env_method(self, method_name: str, *args, indices=None, **kwargs) -> list:
        """Masks of choices, or see ``set_attr``."""
        if method_name == "action_masks":
            return list(self.masks())
        raise NotImplementedError("one simulation plays all; make a new one")

    def env_is_wrapped(self, wrapper_class, indices=None) -> list[bool]:
        """Never."""
        return [False] * self.num_envs

"""One window as an episode: a Gymnasium environment, and many windows at a time for Stable-Baselines3.

The single and the batched environment run the same array code (``decisions``), so they agree to the last bit.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from splitpoint.checks import instance_of, whole_number
from splitpoint.learning.decisions import Decisions, plan_of
from splitpoint.offloading import Instance, Plan
from splitpoint.offloading.windows import Scenario, Windows, stack_windows

_POOL = 1024


class OffloadingEnv(gymnasium.Env):
    """One window at a time, as a Gymnasium environment; registered as ``splitpoint/Offloading-v0``.

    Args:
        scenario: what windows ``reset`` draws.
        features, reward, order: see Decisions.
        max_users: most users that a window may have, at least the scenario's; those if left out.

    ``reset(options={"instance": Instance})`` begins that very window; ``plan()`` is the plan of those granted so far.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        scenario: Scenario = Scenario(),
        features: str = "gains",
        reward: str = "share",
        order: str = "given",
        max_users: int | None = None,
    ):
        instance_of("scenario", scenario, Scenario)
        self.scenario, self.max_users = scenario, scenario.width(max_users)
        self.features, self.reward, self.order = features, reward, order
        self._decisions = Decisions(1, self.max_users, scenario.parameters, features, reward, order)
        self._instance = None
        self.action_space = spaces.Discrete(2)
        self.observation_space = spaces.Box(-10.0, 10.0, (self._decisions.width,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begin a window: a drawn one, or ``options["instance"]``."""
        if seed is not None:
            whole_number("seed", seed, 0)
        if options is not None:
            instance_of("options", options, dict)
        super().reset(seed=seed)
        instance = (options or {}).get("instance")
        if instance is not None:
            instance_of('options["instance"]', instance, Instance)
        if instance is None:
            windows = self.scenario.sample(1, self.np_random, self.max_users)
        else:
            windows = stack_windows([instance], self.max_users)
        parameters = windows.parameters
        self._decisions = Decisions(1, self.max_users, parameters, self.features, self.reward, self.order)
        self._decisions.load(np.array([0]), windows)
        self._instance = instance or windows.instance(0)
        return self._decisions.observe()[0], {}

    def step(self, action: int):
        """Deny (0) or grant (1) the user whose turn it is."""
        if self._instance is None or self._decisions.done[0]:
            raise ValueError("the window is decided; call reset() first")
        if np.shape(action) != () or np.asarray(action).dtype.kind not in "iu" or action not in (0, 1):
            raise ValueError(f"action={action!r} is not one of 0 (deny), 1 (grant)")
        reward = float(self._decisions.step(np.array([action]))[0])
        return self._decisions.observe()[0], reward, bool(self._decisions.done[0]), False, {}

    def plan(self) -> Plan:
        """Those granted so far, with optimal split points; everyone else is denied."""
        if self._instance is None:
            raise ValueError("there is no window yet; call reset() first")
        return plan_of(self._instance, self._decisions.granted[0])


class OffloadingVecEnv(VecEnv):
    """Many windows at a time for Stable-Baselines3, in NumPy; a decided window is replaced by the next one at once.

    Args:
        source: a Scenario to draw from, or Windows to go through again and again.
        num_envs: windows at a time.
        seed: of the drawing.
        features, reward, order: see Decisions.
        max_users: width of the arrays, at least the source's; that if left out. For Windows it is theirs.
    """

    def __init__(
        self,
        source: Scenario | Windows,
        num_envs: int = 128,
        seed: int = 0,
        features: str = "gains",
        reward: str = "share",
        order: str = "given",
        max_users: int | None = None,
    ):
        instance_of("source", source, Scenario | Windows)
        whole_number("num_envs", num_envs, 1)
        whole_number("seed", seed, 0)
        self.source = source
        fixed = isinstance(source, Windows)
        self.max_users = source.alpha.shape[1] if fixed else source.width(max_users)
        if fixed and max_users is not None:
            whole_number("max_users", max_users, self.max_users, self.max_users)
        self.decisions = Decisions(num_envs, self.max_users, source.parameters, features, reward, order)
        self.rng = np.random.default_rng(seed)
        self.episodes, self._pool, self._cursor = 0, source if fixed else None, 0
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        self._nothing: dict = {}
        super().__init__(num_envs, spaces.Box(-10.0, 10.0, (self.decisions.width,), np.float32), spaces.Discrete(2))

    def reset(self) -> NDArray[np.float32]:
        """Begin a new window in every row."""
        self.decisions.load(self.decisions.rows, self._next(self.num_envs))
        self._returns[:], self._lengths[:] = 0, 0
        return self.decisions.observe()

    def step_async(self, actions: NDArray) -> None:
        """Take the actions, shape (num_envs,): deny (0) or grant (1).

        Raises:
            ValueError: for another shape, or anything else in it.
        """
        taken = np.asarray(actions)
        if taken.shape != (self.num_envs,) or taken.dtype.kind not in "iu" or taken.min() < 0 or taken.max() > 1:
            raise ValueError(f"actions={actions!r}; valid are 0 (deny) and 1 (grant), shape ({self.num_envs},)")
        self._actions = taken

    def step_wait(self):
        """Observations, rewards, ends and infos of the step; rows that ended show their next window."""
        rewards = self.decisions.step(self._actions)
        dones = self.decisions.done
        self._returns += rewards
        self._lengths += 1
        infos = [self._nothing] * self.num_envs
        ended = np.flatnonzero(dones)
        if len(ended):
            terminal = np.zeros(self.decisions.width, np.float32)
            for row in ended:
                infos[row] = {
                    "terminal_observation": terminal,
                    "episode": {"r": self._returns[row], "l": self._lengths[row], "t": 0.0},
                }
            self.episodes += len(ended)
            self._returns[ended], self._lengths[ended] = 0, 0
            self.decisions.load(ended, self._next(len(ended)))
        return self.decisions.observe(), rewards.astype(np.float32), dones, infos

    def state(self) -> tuple[dict[str, NDArray], dict]:
        """Everything that ``restore`` needs to go on as if never stopped: arrays, and JSON-serialisable rest."""
        arrays = {f"decisions.{name}": values.copy() for name, values in self.decisions.arrays.items()}
        arrays |= {"returns": self._returns.copy(), "lengths": self._lengths.copy()}
        rest = {
            "rng": self.rng.bit_generator.state,
            "cursor": self._cursor,
            "episodes": self.episodes,
            "pool_rng": getattr(self, "_pool_rng", None),
        }
        return arrays, rest

    def restore(self, arrays: dict[str, NDArray], rest: dict) -> None:
        """Go back to a state."""
        if rest["pool_rng"] is not None:
            self.rng.bit_generator.state = rest["pool_rng"]
            self._draw()
        self.rng.bit_generator.state = rest["rng"]
        self._cursor, self.episodes = rest["cursor"], rest["episodes"]
        for name, values in self.decisions.arrays.items():
            values[...] = arrays[f"decisions.{name}"]
        self._returns[...], self._lengths[...] = arrays["returns"], arrays["lengths"]

    def _next(self, count: int) -> Windows:
        if isinstance(self.source, Windows):
            rows = (self._cursor + np.arange(count)) % len(self._pool)
            self._cursor = int((self._cursor + count) % len(self._pool))
            return self._pool[rows]
        if count > _POOL:
            return self.source.sample(count, self.rng, self.max_users)
        if self._pool is None or self._cursor + count > len(self._pool):
            self._draw()
        rows = slice(self._cursor, self._cursor + count)
        self._cursor += count
        return self._pool[rows]

    def _draw(self):
        self._pool_rng = self.rng.bit_generator.state
        self._pool, self._cursor = self.source.sample(_POOL, self.rng, self.max_users), 0

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices=None) -> list:
        """The attribute, once a row."""
        return [
            getattr(self, attr_name, None) if attr_name == "render_mode" else getattr(self, attr_name)
            for _ in self._get_indices(indices)
        ]

    def set_attr(self, attr_name: str, value: Any, indices=None) -> None:
        """Rows share their attributes, so single ones cannot be set."""
        raise ValueError(f"attr_name={attr_name!r} cannot be set: rows share their attributes")

    def env_method(self, method_name: str, *method_args, indices=None, **method_kwargs) -> list:
        """Rows have no methods of their own."""
        raise ValueError(f"method_name={method_name!r} cannot be called: rows have no methods of their own")

    def env_is_wrapped(self, wrapper_class, indices=None) -> list[bool]:
        """Rows are never wrapped."""
        return [False for _ in self._get_indices(indices)]

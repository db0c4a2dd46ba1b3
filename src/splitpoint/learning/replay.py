"""Prioritized replay for Stable-Baselines3's DQN: proportional priorities, importance weights, n-step returns.

The tree is NumPy's own here because cpprb's draws from a random device, which cannot be seeded or resumed.
Source: Schaul et al. 2016, "Prioritized experience replay", arXiv 1511.05952.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.buffers import ReplayBuffer

from splitpoint.checks import finite_array, finite_number, instance_of, whole_number

EPSILON = 1e-4  # keeps a transition without error drawable


class SumTree:
    """Priorities in the leaves, sums above: draw in proportion and update, many at a time, in O(log capacity).

    Args:
        capacity: number of leaves, at least 1.
    """

    def __init__(self, capacity: int):
        whole_number("capacity", capacity, 1)
        self.capacity = capacity
        self.depth = max(int(np.ceil(np.log2(capacity))), 0)
        self.nodes = np.zeros(2 ** (self.depth + 1))

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self.nodes[1])

    @property
    def leaves(self) -> NDArray[np.float64]:
        """Priorities, shape (capacity,)."""
        return self.nodes[2**self.depth : 2**self.depth + self.capacity]

    def update(self, index: ArrayLike, priority: ArrayLike) -> None:
        """Set priorities.

        Args:
            index: leaves, shape (m,), within [0, capacity).
            priority: shape (m,), not negative.

        Raises:
            ValueError: for an index or a priority outside its range.
        """
        index = np.asarray(index)
        if index.dtype.kind not in "iu":
            raise ValueError(f"index holds {index.dtype}; valid are whole numbers in [0, {self.capacity - 1}]")
        if index.size and (index.min() < 0 or index.max() >= self.capacity):
            raise ValueError(f"index holds {index.min()} … {index.max()}; valid is [0, {self.capacity - 1}]")
        self.nodes[2**self.depth + index] = finite_array("priority", priority, minimum=0.0)
        node = 2**self.depth + index
        for _ in range(self.depth):
            node = node >> 1
            self.nodes[node] = self.nodes[2 * node] + self.nodes[2 * node + 1]

    def find(self, mass: ArrayLike) -> NDArray[np.int64]:
        """The leaf at which the running sum of priorities passes each mass, shape (m,)."""
        mass = np.array(finite_array("mass", mass, 0.0))
        node = np.ones(np.shape(mass), np.int64)
        for _ in range(self.depth):
            left = self.nodes[2 * node]
            right = (mass >= left) & (self.nodes[2 * node + 1] > 0)  # never into an empty branch by rounding
            mass -= np.where(right, left, 0.0)
            node = 2 * node + right
        return node - 2**self.depth


class PrioritizedSamples(NamedTuple):
    """A batch of transitions; ``weights`` are importance weights, ``index`` is for ``update_priorities``."""

    observations: torch.Tensor
    actions: torch.Tensor
    next_observations: torch.Tensor
    dones: torch.Tensor
    rewards: torch.Tensor
    weights: torch.Tensor
    index: NDArray[np.int64]


class PrioritizedReplay(ReplayBuffer):
    """Transitions drawn in proportion to ``(|error| + 1e-4) ** alpha``.

    Args:
        buffer_size: transitions kept, over all environments.
        observation_space, action_space, device, n_envs: as for SB3's ReplayBuffer.
        alpha: 0 draws uniformly, 1 in proportion to the error.
        two_buffers: draw 1/8 of each batch from the transitions that ended an episode and 7/8 from the others, each
            by its own priorities, as in the released code. (It keeps two stores; here one store has two trees.)
        n_steps: rewards summed before the value of the state that follows is used; the discount is 1.
        seed: of the drawing.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space,
        action_space,
        device="cpu",
        n_envs: int = 1,
        alpha: float = 0.7,
        two_buffers: bool = False,
        n_steps: int = 1,
        seed: int = 0,
        **_unused,
    ):
        whole_number("buffer_size", buffer_size, 1)
        whole_number("n_envs", n_envs, 1)
        finite_number("alpha", alpha, 0.0, 1.0)
        instance_of("two_buffers", two_buffers, bool)
        whole_number("n_steps", n_steps, 1)
        whole_number("seed", seed, 0)
        super().__init__(buffer_size, observation_space, action_space, device, n_envs, handle_timeout_termination=False)
        self.alpha, self.two_buffers, self.n_steps = alpha, two_buffers, n_steps
        self.rng = np.random.default_rng(seed)
        self.trees = [SumTree(self.buffer_size * n_envs) for _ in range(1 + two_buffers)]
        self.largest = 1.0

    def add(self, obs, next_obs, action, reward, done, infos) -> None:
        """Store one transition of every environment, at the largest priority so far."""
        index = self.pos * self.n_envs + np.arange(self.n_envs)
        super().add(obs, next_obs, action, reward, done, infos)
        self._set(index, np.full(self.n_envs, self.largest))

    def update_priorities(self, index: ArrayLike, errors: ArrayLike) -> None:
        """New temporal-difference errors of drawn transitions, shape (m,) each."""
        priority = (np.abs(finite_array("errors", errors)) + EPSILON) ** self.alpha
        self.largest = max(self.largest, float(priority.max()))
        self._set(np.asarray(index), priority)

    def _set(self, index, priority):
        if not self.two_buffers:
            return self.trees[0].update(index, priority)
        ended = self.dones.reshape(-1)[index] > 0
        self.trees[0].update(index, np.where(ended, 0.0, priority))
        self.trees[1].update(index, np.where(ended, priority, 0.0))

    def draw(self, batch_size: int, beta: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Indices drawn by priority, and their importance weights.

        Args:
            batch_size: at least 1.
            beta: 0 corrects nothing, 1 all of the bias.

        Returns:
            index (m,), weights (m,): ``(n P)^-beta`` over the largest of the batch; with two buffers, n and P are
            those of the buffer that a transition was drawn from.

        Raises:
            ValueError: if ``batch_size`` or ``beta`` is outside its range.
        """
        whole_number("batch_size", batch_size, 1)
        finite_number("beta", beta, 0.0, 1.0)
        index, weights = [], []
        for tree, share in zip(self.trees, self._shares(batch_size)):
            if share:
                mass = (np.arange(share) + self.rng.random(share)) * (tree.total / share)
                found = tree.find(mass)
                index.append(found)
                filled = self.size() * self.n_envs if not self.two_buffers else np.count_nonzero(tree.leaves)
                weights.append((filled * tree.leaves[found] / tree.total) ** -beta)
        weights = np.concatenate(weights)
        return np.concatenate(index), weights / weights.max()

    def _shares(self, batch_size):
        if not self.two_buffers:
            return (batch_size,)
        ended = batch_size // 8 if self.trees[1].total > 0 else 0
        return (batch_size - ended, ended) if self.trees[0].total > 0 else (0, batch_size)

    def sample(self, batch_size: int, env=None, beta: float = 1.0) -> PrioritizedSamples:
        """A batch with its importance weights, see ``draw``."""
        index, weights = self.draw(batch_size, beta)
        position, row = np.divmod(index, self.n_envs)
        rewards, last = self.rewards[position, row].astype(np.float64), position.copy()
        running = self.dones[position, row] == 0
        for _ in range(self.n_steps - 1):
            following = (last + 1) % self.buffer_size
            running &= following != self.pos
            rewards += np.where(running, self.rewards[following, row], 0.0)
            last = np.where(running, following, last)
            running &= self.dones[last, row] == 0
        columns = (
            self.observations[position, row],
            self.actions[position, row],
            self.next_observations[last, row],
            self.dones[last, row][:, None],
            rewards[:, None].astype(np.float32),
            weights[:, None].astype(np.float32),
        )
        return PrioritizedSamples(*map(self.to_torch, columns), index=index)

    def state(self) -> tuple[dict[str, NDArray], dict]:
        """Everything that ``restore`` needs: arrays, and JSON-serialisable rest."""
        filled = self.size()
        arrays = {
            name: getattr(self, name)[:filled].copy()
            for name in ("observations", "next_observations", "actions", "rewards", "dones")
        }
        arrays |= {f"tree{i}": tree.nodes.copy() for i, tree in enumerate(self.trees)}
        return arrays, {
            "pos": self.pos,
            "full": self.full,
            "largest": self.largest,
            "rng": self.rng.bit_generator.state,
        }

    def restore(self, arrays: dict[str, NDArray], rest: dict) -> None:
        """Go back to a state."""
        for i, tree in enumerate(self.trees):
            tree.nodes[...] = arrays[f"tree{i}"]
        for name in ("observations", "next_observations", "actions", "rewards", "dones"):
            getattr(self, name)[: len(arrays[name])] = arrays[name]
        self.pos, self.full, self.largest = rest["pos"], rest["full"], rest["largest"]
        self.rng.bit_generator.state = rest["rng"]

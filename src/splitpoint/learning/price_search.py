"""The learned price, found by playing: evolution strategies on common random numbers.

Each iteration draws directions, plays the same paths with the weights a little that way and a little the other way,
and goes where the gains were higher. Nothing is differentiated and no cost is assigned to a decision: what counts is
what everybody gained on the whole path.

Source: Salimans, Ho, Chen, Sidor and Sutskever, Evolution strategies as a scalable alternative to reinforcement
learning, 2017; mirrored sampling: Brockhoff et al. 2010; averaging of iterates: Polyak and Juditsky 1992.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from splitpoint.checks import a_path, a_sequence, finite_number, instance_of, whole_number
from splitpoint.edge import Arrivals, Decision, Observation, Simulation, System, draw_paths
from splitpoint.edge.learned_price import CONTEXT, ENTERING, LOADS, LearnedPrice, PriceWeights, learned_price
from splitpoint.edge.policies import at_prices
from splitpoint.files import can_write
from splitpoint.learning.checkpoint import read_checkpoint, recipe_of, write_checkpoint

_LOADS, _CONTEXT, _ENTERING = len(LOADS), len(CONTEXT), len(ENTERING)
#: rounded from earlier searches of some hundred iterations, which began at about half the closed form and the marginal
#: cost; ``inside_if…`` by hand, from a dozen trials on other scenarios than those of the judge
START = PriceWeights(
    np.array([0.7, 0.58, 0.56, 0.55, 0.7, 0.86, 0.75, 0.04, 0.04, 0.32, 0.0, -0.14, 0.08, -0.32, -0.2, 0.5]),
    np.array([1.0, 1.02, 0.92, 0.9, 0.74, 0.7, 0.75, -0.05, 0.15, -0.2, 0.2, 0.3, 0.7, 0.0, 0.0, 0.0]),
    np.array([0.15, 0.15, 0.3, -0.5, -0.05, -0.15, 0.0, 0.0, 0.0, 0.15, 0.8, 1.5, 0.0]),
    np.array([0.1, 0.0]),
)
#: how far a step goes, for each number
_WIDTH = PriceWeights(
    np.array([0.08] * _LOADS + [0.06, 0.06, 0.12, 0.2, 0.12, 0.12, 0.15, 0.15, 0.25]),
    np.array([0.12] * _LOADS + [0.08, 0.08, 0.15, 0.25, 0.15, 0.2, 0.2, 0.2, 0.35]),
    np.array([0.1, 0.1, 0.12, 0.2, 0.12, 0.06, 0.12, 0.12, 0.25, 0.06, 0.3, 0.3, 0.15]),
    np.array([0.08, 0.15]),
)
#: the part of a width that is tried. What is found is best for somebody who errs by so much: tried at whole widths,
#: prices became worse than the start, since one that is too low costs more than one that is too high
_NEAR = 0.35


@dataclass(frozen=True, eq=False)
class Population:
    """Many weights at once: each plays some of the replications.

    Args:
        price: the policy; its own weights are not used.
        flat: one row of weights each, shape (members, 47).
        paths: replications of each.
    """

    price: LearnedPrice
    flat: NDArray[np.float64]
    paths: int
    many = True

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        return at_prices(observation, *self.price.price_and_fee(observation, self.flat[observation.run // self.paths]))


def search_price(
    grounds: Sequence[tuple[System, Arrivals]],
    iterations: int = 160,
    start: PriceWeights = START,
    pairs: int = 24,
    paths: int = 4,
    at_once: int = 8,
    rate: float = 0.05,
    seed: int = 0,
    jobs: int = 1,
    folder: str | Path | None = None,
    after: Callable[[int, PriceWeights], None] | None = None,
) -> PriceWeights:
    """One set of weights for all grounds.

    Args:
        grounds: edges and arrivals; so many of them an iteration, all in turn.
        iterations: at least 1.
        start: to begin from.
        pairs: of opposite directions an iteration.
        paths: of a ground in an iteration, the same for all directions.
        at_once: grounds of an iteration.
        rate: length of a step at first, in widths of the directions; it falls as ``1 / (1 + iteration / 300)``.
        seed: of everything random.
        jobs: processes that play.
        folder: to keep the state in; an interrupted search goes on from there with the same result.
        after: called every twenty iterations with their number and the weights so far.

    Returns:
        The average of the later iterates: their noise cancels.

    Raises:
        ValueError: for a number outside its range, or a folder of another search or damaged.
    """
    for system, arrivals in a_sequence("grounds", grounds):
        instance_of("grounds", system, System)
        instance_of("grounds", arrivals, Arrivals)
    instance_of("start", start, PriceWeights)
    counts = dict(iterations=iterations, pairs=pairs, paths=paths, at_once=at_once, jobs=jobs)
    for name, count in counts.items():
        whole_number(name, count, 1)
    whole_number("seed", seed, 0)
    finite_number("rate", rate, 0.0, open_end=True)
    store = None
    if folder is not None:
        store = _Store(folder, recipe_of(grounds, start.flat.tolist(), pairs, paths, at_once, rate, seed))
    state = _State.begin(start, len(grounds)) if store is None else store.read() or _State.begin(start, len(grounds))
    with Parallel(jobs) as parallel:
        prices = parallel(delayed(learned_price)(system, arrivals, start) for system, arrivals in grounds)
        while state.done < iterations:
            rng = np.random.default_rng([seed, state.done])
            directions = rng.standard_normal((pairs, start.flat.size))
            flat = state.weights + np.concatenate([directions, -directions, 0 * directions[:1]]) * _NEAR * _WIDTH.flat
            turn = [(state.done * at_once + i) for i in range(at_once)]
            chosen = [_order(seed, number // len(grounds), len(grounds))[number % len(grounds)] for number in turn]
            tasks = [(*grounds[i], prices[i], flat, paths, int(rng.integers(2**31))) for i in chosen]
            found = parallel(delayed(_gains)(*task) for task in tasks)
            state.step(directions, np.array(found), np.array(chosen), rate)
            if state.done % 20 == 0 or state.done == iterations:
                if store is not None:
                    store.write(state)
                if after is not None:
                    after(state.done, PriceWeights.of(state.average))
    return PriceWeights.of(state.average)


def _order(seed: int, lap: int, count: int) -> NDArray[np.int64]:
    """In which order the grounds come in a lap."""
    return np.random.default_rng([seed, 1_000_000, lap]).permutation(count)


def _gains(system: System, arrivals: Arrivals, price: LearnedPrice, flat: NDArray, paths: int, seed: int) -> NDArray:
    """Mean gain of each row of weights on the same paths, shape (members,), seconds."""
    drawn = draw_paths(system.edges, arrivals, seed, paths)
    play = Simulation(system, list(drawn) * len(flat))
    play.play(Population(price, flat, paths), close=True)
    table = play.table()
    return np.bincount(table.replication, table.gain_s, minlength=len(flat) * paths).reshape(-1, paths).mean(axis=1)


@dataclass
class _State:
    """Where a search is: the weights, their average, the smoothed slope and its size, and what moves each ground."""

    weights: NDArray[np.float64]
    average: NDArray[np.float64]
    slope: NDArray[np.float64]
    size: float
    moved: NDArray[np.float64]  # (grounds, 2): squares of what opposite directions are apart, summed, and their count
    done: int

    @classmethod
    def begin(cls, start: PriceWeights, grounds: int) -> "_State":
        flat = start.flat
        return cls(flat.copy(), flat.copy(), np.zeros_like(flat), 0.0, np.zeros((grounds, 2)), 0)

    def step(self, directions: NDArray, gains: NDArray, grounds: NDArray, rate: float) -> None:
        """One iteration, ``gains`` of shape (grounds at once, 2 pairs + 1)."""
        pairs = len(directions)
        apart = gains[:, :pairs] - gains[:, pairs:-1]  # (grounds at once, pairs), seconds
        np.add.at(self.moved, grounds, np.column_stack([(apart**2).mean(axis=1), np.ones(len(gains))]))
        usual = np.sqrt(self.moved[grounds, 0] / self.moved[grounds, 1])[:, None]
        say = np.clip(
            apart / (usual + 4e-4 * np.abs(gains[:, -1:]) + 1e-9), -2.0, 2.0
        )  # each ground has the same, and no direction shouts
        slope = say.mean(axis=0) @ directions / pairs
        self.done += 1
        self.slope = 0.9 * self.slope + 0.1 * slope
        self.size = 0.97 * self.size + 0.03 * float(np.mean(slope**2))
        unbiased = self.slope / (1 - 0.9**self.done), np.sqrt(self.size / (1 - 0.97**self.done))
        step = unbiased[0] / (unbiased[1] + 1e-9)  # one size for all: where there is only noise, it stays small
        self.weights = self.weights + rate / (1 + self.done / 300) * _WIDTH.flat * step
        keep = min(0.99, 1 - 1 / (1 + self.done / 4))
        self.average = keep * self.average + (1 - keep) * self.weights


class _Store:
    """A state in a folder."""

    def __init__(self, folder: str | Path, recipe: str):
        a_path("folder", folder)
        self.file = Path(folder) / "search.safetensors"
        can_write("folder", self.file)
        self.recipe = recipe

    def read(self) -> _State | None:
        """The state, if there is one."""
        if not self.file.exists():
            return None
        arrays, said = read_checkpoint(self.file, self.recipe)
        return _State(**arrays, size=said["size"], done=said["done"])

    def write(self, state: _State) -> None:
        """Keep it."""
        arrays = {name: getattr(state, name) for name in ("weights", "average", "slope", "moved")}
        write_checkpoint(self.file, arrays, dict(recipe=self.recipe, size=state.size, done=state.done))

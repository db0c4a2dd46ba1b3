"""A cost curve of the edge that is learned from coupled rollouts, generation by generation.

Each generation plays the curve of the one before, samples what grants cost under it, and fits a new curve to that:
approximate policy iteration. The learner estimates the edge's costs; the person's own side stays exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray

from splitpoint.checks import a_path, a_row, a_sequence, instance_of, one_of, whole_number
from splitpoint.edge import LearnedCurve, load_curve, save_curve
from splitpoint.edge.observation import FEATURES
from splitpoint.files import can_write, sha256
from splitpoint.learning.checkpoint import read_checkpoint, recipe_of, write_checkpoint
from splitpoint.learning.rollouts import KNOTS, Samples

#: what a curve sees of an edge: compute, who is inside and for how long, and how often somebody comes
CONTEXT = (
    "free", "batch", "waiting", "work_left", "stay_20", "stay_40", "stay_60", "stay_80", "stay_100",
    "load_1", "load_10", "load_100", "next_step_s",
)  # fmt: skip


class Ground(Protocol):
    """Where rollouts are played: ``EdgeGround``, ``TwinGround``, or one's own."""

    def sample(self, policy: Any, features: Sequence[str], knots: Sequence[float], count: int, seed: int) -> Samples:
        """See ``EdgeGround.sample``."""
        ...


def train_policy(
    grounds: Sequence[Ground],
    generations: int = 5,
    count: int = 300,
    features: Sequence[str] = CONTEXT,
    knots: Sequence[float] = KNOTS,
    hidden: Sequence[int] = (32, 32),
    epochs: int = 20,
    seed: int = 0,
    jobs: int = 1,
    folder: str | Path | None = None,
    after: Callable[[int, LearnedCurve], None] | None = None,
) -> LearnedCurve:
    """One cost curve for all grounds.

    Args:
        grounds: rates, mixes and machines that the policy shall serve.
        generations: of playing and fitting.
        count: paths on each ground and in each generation.
        features: what the curve sees, of ``edge.observation.FEATURES``.
        knots: steps at which costs are learned.
        hidden: widths of the network's layers; none for a linear curve.
        epochs: passes over the samples of a fit.
        seed: of everything random.
        jobs: processes that play.
        folder: to keep every generation in; an interrupted training goes on from there with the same result.
        after: called with the number of a generation and its curve.

    Returns:
        The curve of the last generation, a policy.

    Raises:
        ValueError: for a number outside its range, or a folder of another training, of other code, or damaged.
    """
    for ground in a_sequence("grounds", grounds):
        if not hasattr(ground, "sample"):
            raise ValueError(f"grounds hold {ground!r}; valid is what can sample, EdgeGround or TwinGround")
    whole_number("generations", generations, 1)
    whole_number("count", count, 1)
    whole_number("seed", seed, 0)
    whole_number("jobs", jobs, 1)
    _check_shape(features, knots, hidden, epochs)
    store = None
    if folder is not None:
        a_path("folder", folder)
        recipe = recipe_of(tuple(grounds), count, tuple(features), tuple(knots), tuple(hidden), epochs, seed)
        store = _Store(Path(folder), recipe)
    done, curve, last = (0, None, None) if store is None else store.read(generations)
    for generation in range(done, generations):
        seeds = np.random.SeedSequence([seed, generation]).generate_state(len(grounds))
        play = (
            delayed(ground.sample)(curve, features, knots, count, int(number)) for ground, number in zip(grounds, seeds)
        )
        new = Samples.together(Parallel(jobs)(play))
        samples = new if last is None or generation < 2 else Samples.together([last, new])
        curve, last = fit_curve(samples, features, knots, hidden, epochs, seed), new
        if store is not None:
            store.write(generation, curve, new)
        if after is not None:
            after(generation, curve)
    assert curve is not None  # there is at least one generation
    return curve


def fit_curve(
    samples: Samples,
    features: Sequence[str] = CONTEXT,
    knots: Sequence[float] = KNOTS,
    hidden: Sequence[int] = (32, 32),
    epochs: int = 20,
    seed: int = 0,
) -> LearnedCurve:
    """A cost curve through noisy samples by least squares: a small network, or a line without hidden layers.

    Fitted is what a grant costs beyond its own marginal time, counted in full steps of the machine as it is then, so
    that a slow one does not count for more.

    Args:
        samples: see ``Samples``; one column of ``cost_s`` for each knot.
        features: what the columns of ``samples.x`` are called.
        knots, hidden, epochs: see ``train_policy``.
        seed: of the first weights and of the order.

    Returns:
        The curve.

    Raises:
        ValueError: for samples of another shape, or a number outside its range.
    """
    instance_of("samples", samples, Samples)
    at = _check_shape(features, knots, hidden, epochs)
    whole_number("seed", seed, 0)
    if len(samples) == 0 or samples.x.shape[1] != len(features) or samples.cost_s.shape[1] != len(at):
        raise ValueError(
            f"samples have shapes {samples.x.shape} and {samples.cost_s.shape}; valid is (n, {len(features)}) and "
            f"(n, {len(at)}), n at least 1"
        )
    target = (samples.cost_s - samples.base_s[:, None] * at) / samples.unit_s[:, None]
    x_mean, x_scale = samples.x.mean(axis=0), samples.x.std(axis=0) + 1e-6
    y_mean, y_scale = target.mean(axis=0), target.std(axis=0) + 1e-9
    layers = _fitted((samples.x - x_mean) / x_scale, (target - y_mean) / y_scale, hidden, epochs, seed)
    weights, biases = ([layer[part].astype(float) for layer in layers] for part in (0, 1))
    weights[-1], biases[-1] = weights[-1] * y_scale[:, None], biases[-1] * y_scale + y_mean
    return LearnedCurve(
        tuple(weights), tuple(biases), tuple(features), "curve", tuple(at), "tanh", x_mean, x_scale, "full_step"
    )


def _fitted(x: NDArray, y: NDArray, hidden: Sequence[int], epochs: int, seed: int) -> list[tuple[NDArray, NDArray]]:
    """Weights and biases of a tanh network, layer by layer; one thread, so that the same seed gives the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    widths = [x.shape[1], *hidden, y.shape[1]]
    layers = [torch.nn.Linear(i, o) for i, o in pairwise(widths)]
    with torch.no_grad():
        for layer in layers:
            for part in (layer.weight, layer.bias):
                part.uniform_(-1, 1, generator=generator).mul_(layer.in_features**-0.5)
    network = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.Tanh())))[:-1]
    rows, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    batch = min(1024, len(rows))
    steps = epochs * max(1, len(rows) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    try:
        for _ in range(steps):
            chosen = torch.randint(len(rows), (batch,), generator=generator)
            loss = (network(rows[chosen]) - targets[chosen]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    finally:
        torch.set_num_threads(threads)
    return [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in layers]


def _check_shape(features, knots, hidden, epochs) -> NDArray[np.float64]:
    for name in a_sequence("features", features):
        one_of("features", name, FEATURES)
    for width in a_sequence("hidden", hidden, empty=True):
        whole_number("hidden", width, 1)
    whole_number("epochs", epochs, 1)
    return a_row("knots", knots, 0.0, open_end=True)


class _Store:
    """Generations in a folder: each one's curve, and its samples with what they are made of."""

    def __init__(self, folder: Path, recipe: str):
        self.folder, self.recipe = folder, recipe
        can_write("folder", folder / "generation")

    def _files(self, generation: int) -> tuple[Path, Path]:
        ending = f"_{generation:02d}.safetensors"
        return self.folder / f"curve{ending}", self.folder / f"samples{ending}"

    def read(self, generations: int) -> tuple[int, LearnedCurve | None, Samples | None]:
        """How many are done, the last curve, and its samples."""
        for last in reversed(range(generations)):
            curve, samples = self._files(last)
            if samples.exists():
                arrays, said = read_checkpoint(samples, self.recipe)
                if not curve.exists() or sha256(curve) != said["curve"]:
                    raise ValueError(f"{curve.name} is missing or damaged; delete {samples.name} to go on before it")
                return last + 1, load_curve(curve), Samples(**arrays)
        return 0, None, None

    def write(self, generation: int, curve: LearnedCurve, new: Samples) -> None:
        """The samples come last: a generation counts once everything of it is there."""
        file, samples = self._files(generation)
        save_curve(file, curve)
        write_checkpoint(samples, asdict(new), dict(recipe=self.recipe, curve=sha256(file)))

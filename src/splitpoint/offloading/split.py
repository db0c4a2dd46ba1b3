"""The optimal split point for a known batch: closed form where there is one, a safe search where not.

Derivation in notebook 05. With the batch fixed, a granted user maximises ``alpha * A(n) - n * saving`` over the split
point ``n``, where ``saving`` is what one step gains by running on the edge.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitpoint.checks import finite_array
from splitpoint.offloading.curves import AccuracyModel
from splitpoint.offloading.problem import Instance, SystemParameters

_PAIRS_AT_A_TIME = 4096  # of the search, so that its table stays in the tens of megabytes
_GOLDEN = (np.sqrt(5) - 1) / 2


def optimal_split(
    alpha: ArrayLike, step_saving_s: ArrayLike, parameters: SystemParameters, whole_steps: bool = False
) -> NDArray[np.float64]:
    """Split points that maximise ``alpha * A(n) - n * step_saving_s`` over ``[min_split, num_steps]``.

    Args:
        alpha: seconds worth one unit of accuracy, any shape, not negative.
        step_saving_s: device step minus edge step, in seconds, any shape that broadcasts with ``alpha``.
        parameters: SystemParameters; any accuracy curve. The logistic one has a closed form, which also compares the
            top of its hill with the lower end where the range begins below the midpoint (not a convex problem there).
            Other curves are searched on a fine grid, then between its points.
        whole_steps: real samplers run whole steps; return the best whole number instead.

    Returns:
        Split points in steps, of the broadcast shape.

    Raises:
        ValueError: for a negative or non-finite ``alpha`` or a non-finite saving.

    Source: stationarity ``alpha * c * a * A (1 - A) = saving`` of the logistic curve ``c * A``, notebook 05.
    """
    alpha = finite_array("alpha", alpha, minimum=0.0)
    saving = finite_array("step_saving_s", step_saving_s)
    curve, low, high = parameters.accuracy, float(parameters.min_split), float(parameters.num_steps)
    if not (isinstance(curve, AccuracyModel) and type(curve).pai is AccuracyModel.pai):
        return _searched_split(alpha, saving, parameters, whole_steps)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.fmax(saving / (alpha * curve.ceiling * curve.steepness), 1e-300)
        root = np.sqrt(np.maximum(1 - 4 * ratio, 0.0))
        logit = np.log((1 + root) ** 2 / (4 * ratio))
    split = np.where(saving > 0, np.clip(curve.midpoint + logit / curve.steepness, low, high), high)
    if not whole_steps and low >= curve.midpoint:
        return split
    candidates = [split]
    if whole_steps:
        candidates = [np.floor(split), np.ceil(split)]
    if low < curve.midpoint:  # not concave below the midpoint: the lower end may be the better one
        candidates.append(np.full_like(split, low))
    values = [alpha * curve.pai(n) - n * saving for n in candidates]
    return np.choose(np.argmax(values, axis=0), candidates)


def _searched_split(alpha, saving, parameters: SystemParameters, whole_steps: bool) -> NDArray[np.float64]:
    """As ``optimal_split``, for any curve: all whole steps, or a grid of eighths of a step and what lies between."""
    curve, low, high = parameters.accuracy, parameters.min_split, parameters.num_steps
    alpha, saving = np.broadcast_arrays(alpha, saving)
    grid = np.linspace(low, high, (high - low) * (1 if whole_steps else 8) + 1)
    level, found = np.asarray(curve.pai(grid), dtype=float), np.empty(alpha.size)
    for start in range(0, alpha.size, _PAIRS_AT_A_TIME):
        pairs = slice(start, start + _PAIRS_AT_A_TIME)
        a, s = alpha.reshape(-1)[pairs, None], saving.reshape(-1)[pairs, None]
        found[pairs] = grid[np.argmax(a * level - grid * s, axis=1)]  # (pairs, grid) -> (pairs,)
    found = found.reshape(alpha.shape)
    if whole_steps or high == low:
        return found

    def value(n):
        return alpha * np.asarray(curve.pai(n), dtype=float) - n * saving

    left, right = np.maximum(found - 1 / 8, low), np.minimum(found + 1 / 8, high)
    for _ in range(40):  # golden section: the interval shrinks to 1e-9 of a step
        inner, outer = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        better = value(inner) >= value(outer)
        left, right = np.where(better, left, inner), np.where(better, outer, right)
    candidates = [found, (left + right) / 2]
    return np.choose(np.argmax([value(n) for n in candidates], axis=0), candidates)


def step_saving_s(
    device_step_s: ArrayLike, edge_step_s: ArrayLike, parameters: SystemParameters
) -> NDArray[np.float64]:
    """What one step is worth on the edge instead of the device, other costs than time included, in seconds.

    Args:
        device_step_s, edge_step_s: seconds of one step, shapes that broadcast.
        parameters: SystemParameters.
    """
    other = parameters.device_step_cost_s - parameters.edge_step_cost_s
    return np.asarray(device_step_s, dtype=float) - np.asarray(edge_step_s, dtype=float) + other


def gains_at(
    alpha: ArrayLike,
    device_step_s: ArrayLike,
    edge_step_s: ArrayLike,
    batch_size: ArrayLike,
    parameters: SystemParameters,
    whole_steps: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What granting is worth at the best split point, and that split point; all shapes broadcast.

    Args:
        alpha: seconds worth one unit of accuracy.
        device_step_s: one step on the user's device, seconds.
        edge_step_s: one step on the edge, seconds.
        batch_size: number of granted users, for the hand-over.
        parameters: SystemParameters.
        whole_steps: see ``optimal_split``.

    Returns:
        Utility of the granted minus the denied user in seconds, and split points in steps.
    """
    saving = step_saving_s(device_step_s, edge_step_s, parameters)
    splits = optimal_split(alpha, saving, parameters, whole_steps)
    return grant_gain(alpha, splits, saving, batch_size, parameters), splits


def grant_gains(
    instance: Instance, batch_sizes: ArrayLike, whole_steps: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What granting each user is worth in a batch of each size, with its own optimal split point.

    Args:
        instance: Instance of U users.
        batch_sizes: shape (m,), numbers of granted users, at least 1.
        whole_steps: see ``optimal_split``.

    Returns:
        gains: shape (m, U), utility of the granted minus the denied user, in seconds.
        splits: shape (m, U), in steps.

    Raises:
        ValueError: if ``batch_sizes`` is not one-dimensional, or holds a number that is not finite or below 1.
    """
    batch = finite_array("batch_sizes", batch_sizes, minimum=1.0)
    if batch.ndim != 1:
        raise ValueError(f"batch_sizes has shape {batch.shape}; valid is (m,)")
    batch = batch[:, None]
    edge_step_s = instance.edge.step_latency_s(batch)
    return gains_at(instance.alpha, instance.device_step_s, edge_step_s, batch, instance.parameters, whole_steps)


def grant_gain(
    alpha: ArrayLike,
    splits: ArrayLike,
    saving_s: ArrayLike,
    batch_size: ArrayLike,
    parameters: SystemParameters,
) -> NDArray[np.float64]:
    """Gain of granting at given split points: accuracy lost, edge steps gained, hand-over paid.

    Args:
        alpha: seconds worth one unit of accuracy, any shape.
        splits: split points in steps, any shape that broadcasts with it, as all below.
        saving_s: see ``step_saving_s``.
        batch_size: number of granted users.
        parameters: SystemParameters.

    Returns:
        Utility of the granted minus the denied user, in seconds, of the broadcast shape.
    """
    curve, steps = parameters.accuracy, parameters.num_steps
    handover_s = parameters.transfer_s_per_user * np.asarray(batch_size) + parameters.handover_cost_s
    lost = np.asarray(alpha) * (curve.pai(splits) - curve.pai(steps))
    return lost + (steps - np.asarray(splits)) * np.asarray(saving_s) - handover_s


def top_sums(gains: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of the largest gains of each row, as many as its size says: what the best set of that size is worth.

    Args:
        gains: shape (…, m, U), seconds; minus infinity where there is no user.
        sizes: shape (m,), at most U.

    Returns:
        Shape (…, m).
    """
    most = int(np.max(sizes))
    if 0 < 4 * most < gains.shape[-1]:  # selecting is linear in the users, sorting all of them is not
        gains = np.partition(gains, gains.shape[-1] - most, axis=-1)[..., -most:]
    descending = -np.sort(-gains, axis=-1)[..., :most]
    return np.sum(descending, axis=-1, where=np.arange(most) < np.asarray(sizes)[:, None])


def top_users(gains: NDArray[np.float64], sizes: ArrayLike) -> NDArray[np.bool_]:
    """The users with the largest gains of each row; of equal ones the first listed.

    Args:
        gains: shape (n, U), seconds; minus infinity where there is no user.
        sizes: how many, shape (n,).

    Returns:
        Shape (n, U), bool.
    """
    order = np.argsort(-gains, axis=1, kind="stable")
    granted = np.zeros(gains.shape, dtype=bool)
    np.put_along_axis(granted, order, np.arange(gains.shape[1]) < np.asarray(sizes)[:, None], axis=1)
    return granted

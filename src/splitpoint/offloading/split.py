"""The optimal split point for a known batch: a convex problem with a closed form.

Derivation in notebook 05. With the batch fixed, a granted user maximises ``alpha * A(n) - n * saving`` over the split
point ``n``, where ``saving`` is what one step gains by running on the edge.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitpoint.checks import finite_array

if TYPE_CHECKING:
    from splitpoint.offloading.problem import Instance, SystemParameters


def optimal_split(
    alpha: ArrayLike, step_saving_s: ArrayLike, parameters: "SystemParameters", whole_steps: bool = False
) -> NDArray[np.float64]:
    """Split points that maximise ``alpha * A(n) - n * step_saving_s`` over ``[min_split, num_steps]``.

    Args:
        alpha: seconds worth one unit of accuracy, any shape, not negative.
        step_saving_s: device step minus edge step, in seconds, any shape that broadcasts with ``alpha``.
        parameters: SystemParameters.
        whole_steps: real samplers run whole steps; return the best whole number instead.

    Returns:
        Split points in steps, of the broadcast shape.

    Raises:
        ValueError: for a negative or non-finite ``alpha`` or a non-finite saving.

    Source: stationarity ``alpha * a * A (1 - A) = saving`` of the logistic curve, notebook 05.
    """
    alpha = finite_array("alpha", alpha, minimum=0.0)
    saving = finite_array("step_saving_s", step_saving_s)
    curve, low, high = parameters.accuracy, float(parameters.min_split), float(parameters.num_steps)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.fmax(saving / (alpha * curve.steepness), 1e-300)
        root = np.sqrt(np.maximum(1 - 4 * ratio, 0.0))
        logit = np.log((1 + root) ** 2 / (4 * ratio))
    split = np.clip(curve.midpoint + logit / curve.steepness, low, high)
    if not whole_steps and low >= curve.midpoint:
        return split
    candidates = [split]
    if whole_steps:
        candidates = [np.floor(split), np.ceil(split)]
    if low < curve.midpoint:  # not concave below the midpoint: the lower end may be the better one
        candidates.append(np.full_like(split, low))
    values = [alpha * curve.pai(n) - n * saving for n in candidates]
    return np.choose(np.argmax(values, axis=0), candidates)


def grant_gains(
    instance: "Instance", batch_sizes: ArrayLike, whole_steps: bool = False
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
    parameters = instance.parameters
    batch = finite_array("batch_sizes", batch_sizes, minimum=1.0)
    if batch.ndim != 1:
        raise ValueError(f"batch_sizes has shape {batch.shape}; valid is (m,)")
    batch = batch[:, None]
    saving = instance.device_step_s - instance.edge.step_latency_s(batch)
    splits = optimal_split(instance.alpha, saving, parameters, whole_steps)
    return grant_gain(instance.alpha, splits, saving, batch, parameters), splits


def grant_gain(
    alpha: ArrayLike, splits: ArrayLike, saving_s: ArrayLike, batch_size: ArrayLike, parameters: "SystemParameters"
) -> NDArray[np.float64]:
    """Gain of granting at given split points: accuracy lost, edge steps gained, hand-over paid.

    Args:
        alpha: seconds worth one unit of accuracy, any shape.
        splits: split points in steps, any shape that broadcasts with it, as all below.
        saving_s: device step minus edge step, in seconds.
        batch_size: number of granted users.
        parameters: SystemParameters.

    Returns:
        Utility of the granted minus the denied user, in seconds, of the broadcast shape.
    """
    curve, steps = parameters.accuracy, parameters.num_steps
    return (
        alpha * (curve.pai(splits) - curve.pai(steps))
        + (steps - splits) * saving_s
        - parameters.transfer_s_per_user * batch_size
    )

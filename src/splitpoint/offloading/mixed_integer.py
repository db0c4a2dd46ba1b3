"""The offloading problem as a mixed-integer program, in a tight and in a loose formulation, for HiGHS via cvxpy."""

import functools
import math
import os
import warnings
from typing import Any

import numpy as np

from splitpoint.checks import finite_number, one_of
from splitpoint.offloading.curves import LatencyModel
from splitpoint.offloading.problem import Instance, Plan
from splitpoint.offloading.solvers import all_local, keep, plan_for
from splitpoint.offloading.split import grant_gains, step_saving_s

FORMULATIONS = ("tight", "gqap")


@functools.cache
def quiet_highs() -> None:
    """Let HiGHS print its banner where nobody reads it; to be called before a process first solves with HiGHS.

    The first solver object of a process writes the banner straight to the process's standard output, past
    ``sys.stdout`` and whatever options the solver is given.
    """
    import highspy

    try:
        print(end="", flush=True)  # what was printed before must not follow into nowhere
        kept = os.dup(1)
    except OSError:  # a process without standard output
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        highspy.Highs()
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@functools.cache
def _forget_threads() -> None:
    """Let HiGHS start anew with one thread: it refuses to, once something in this process solved with more."""
    import highspy

    highspy.Highs.resetGlobalScheduler(True)


def milp(instance: Instance, formulation: str = "tight", time_limit_s: float = 60.0, whole_steps: bool = False) -> Plan:
    """The optimum under static batching by branch and bound.

    Args:
        instance: the window.
        formulation: ``tight`` has one binary per user and batch size, and each gain is known once the size is;
            ``gqap`` has one binary per user and candidate split point, and linearises the product of every pair of
            users on the edge, as a generalized quadratic assignment problem is usually given to a solver.
        time_limit_s: seconds for the solver, positive.
        whole_steps: restrict split points to whole steps.

    Returns:
        Plan with status ``optimal`` if the gap was closed, else ``time_limit`` with the relative gap that was left.

    Raises:
        ValueError: for an unknown formulation, a time limit that is not positive, or the linearised program on an edge
            whose step latency is no line: then users do not slow each other pair by pair.
        RuntimeError: if the solver fails.
    """
    one_of("formulation", formulation, FORMULATIONS)
    finite_number("time_limit_s", time_limit_s, 0.0, open_end=True)
    if formulation == "gqap" and not isinstance(instance.edge, LatencyModel):
        raise ValueError(f"formulation='gqap' needs an edge that is a LatencyModel, not {type(instance.edge).__name__}")
    if instance.largest_batch == 0:
        return all_local(instance)
    import cvxpy as cp

    quiet_highs()
    _forget_threads()
    problem, granted = (_tight if formulation == "tight" else _gqap)(cp, instance, whole_steps)
    with warnings.catch_warnings():  # cvxpy warns that a time-limited solution may be inaccurate; the status says so
        warnings.simplefilter("ignore")
        problem.solve(solver=cp.HIGHS, time_limit=float(time_limit_s), threads=1, mip_rel_gap=1e-9, output_flag=False)
    if problem.status not in (cp.OPTIMAL, cp.USER_LIMIT):
        raise RuntimeError(f"HiGHS ended with status {problem.status}")
    gap = float(problem.solver_stats.extra_stats.mip_gap)
    if granted.value is None or not np.all(np.isfinite(granted.value)) or math.isinf(gap):
        return _with_status(all_local(instance), "time_limit", math.inf)
    status = "optimal" if problem.status == cp.OPTIMAL else "time_limit"
    return plan_for(instance, np.asarray(granted.value).ravel() > 0.5, whole_steps, status=status, gap=gap)


def _with_status(plan: Plan, status: str, gap: float) -> Plan:
    return Plan(plan.granted, plan.split_points, status, gap)


def _in_units_of_the_largest(values):
    """Values over the largest of them: the solver's tolerances are absolute, and gains may be nanoseconds."""
    scale = np.abs(values).max()
    return values / scale if scale > 0 else values


def _tight(cp: Any, instance: Instance, whole_steps: bool) -> tuple[Any, Any]:
    sizes = np.arange(1, instance.largest_batch + 1)
    gains = _in_units_of_the_largest(grant_gains(instance, sizes, whole_steps)[0])
    chosen = cp.Variable((len(sizes), instance.num_users), boolean=True)
    size_is = cp.Variable(len(sizes), boolean=True)
    constraints = [
        cp.sum(chosen, axis=1) == cp.multiply(sizes, size_is),
        cp.sum(size_is) <= 1,
        chosen <= cp.reshape(size_is, (len(sizes), 1), order="C"),
    ]
    return cp.Problem(cp.Maximize(cp.sum(cp.multiply(gains, chosen))), constraints), cp.sum(chosen, axis=0)


def _gqap(cp: Any, instance: Instance, whole_steps: bool) -> tuple[Any, Any]:
    parameters, users, edge = instance.parameters, instance.num_users, instance.edge
    assert isinstance(edge, LatencyModel)  # refused before
    sizes = np.arange(1, instance.largest_batch + 1)
    _, splits = grant_gains(instance, sizes, whole_steps)
    candidates = [np.unique(column) for column in splits.T]  # one for every batch size, equal ones once
    splits, owner = np.concatenate(candidates), np.repeat(np.arange(users), [len(c) for c in candidates])
    edge_steps = parameters.num_steps - splits
    pai = parameters.accuracy.pai
    alone_s = step_saving_s(instance.device_step_s[owner], edge.intercept_s, parameters)
    alone = instance.alpha[owner] * (pai(splits) - pai(parameters.num_steps)) + edge_steps * alone_s
    alone -= parameters.handover_cost_s
    pair_cost = edge_steps * edge.slope_s + parameters.transfer_s_per_user
    scale = max(np.abs(alone).max(), np.abs(pair_cost).max()) or 1.0  # as in the tight program
    alone, pair_cost = alone / scale, pair_cost / scale
    at = cp.Variable(len(splits), boolean=True)
    both = cp.Variable((len(splits), users), nonneg=True)
    on_edge = np.equal.outer(np.arange(users), owner).astype(float) @ at
    constraints = [
        on_edge <= 1,
        cp.sum(at) <= instance.largest_batch,
        both >= cp.reshape(at, (len(splits), 1), order="C") + cp.reshape(on_edge, (1, users), order="C") - 1,
    ]
    utility = alone @ at - cp.sum(cp.multiply(pair_cost[:, None], both))
    return cp.Problem(cp.Maximize(utility), constraints), on_edge


keep("milp", milp)

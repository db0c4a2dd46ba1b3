"""Experiments over many windows: tidy tables of every method's reward, accuracy, latency and time."""

import inspect
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from splitpoint.checks import a_sequence, finite_number, instance_of, one_of, whole_number
from splitpoint.files import data_path, sha256
from splitpoint.offloading import Profiles, SystemParameters, check_plan, evaluate, sample_instance, solve
from splitpoint.offloading.problem import BATCHINGS, share_of_gain
from splitpoint.offloading.solvers import get_solver, is_kept
from splitpoint.tables import code_digest, load_or_run

METHODS = ("exact", "genetic", "greedy", "all_edge", "all_local", "random")
SEEDS_PER_TASK = 20


def reward_sweep(
    name: str,
    *,
    num_users: Sequence[int],
    num_edge_gpus: Sequence[int],
    num_seeds: int = 200,
    methods: Sequence[str] = METHODS,
    parameters: SystemParameters = SystemParameters(),
    batching: str = "static",
    profiles: Profiles | None = None,
    first_seed: int = 0,
) -> pd.DataFrame:
    """Every method on the same random windows.

    Args:
        name: of the stored table, see ``tables.load_or_run``.
        num_users: users per window; all combinations with ``num_edge_gpus`` are run.
        num_edge_gpus: GPUs of the edge.
        num_seeds: windows per combination.
        methods: names known to ``splitpoint.offloading.solve``.
        parameters: SystemParameters.
        batching: how plans are evaluated, ``static`` or ``early_exit``.
        profiles: hardware; the published lines if left out.
        first_seed: seeds run from here.

    Returns:
        One row per window and method: ``num_users, num_edge_gpus, seed, method, reward, utility_s, accuracy`` (mean
        PAI), ``latency_s`` (mean), ``share_granted``, ``optimality`` (share of the optimum's gain over all-local that
        the method reaches; 1 where there is nothing to gain).

    Raises:
        ValueError: for an unknown method or batching, fewer than one window, or a solver that refuses a window.
    """
    instance_of("parameters", parameters, SystemParameters)
    whole_number("num_seeds", num_seeds, 1)
    whole_number("first_seed", first_seed, 0)
    one_of("batching", batching, BATCHINGS)
    for name_of, values in (("num_users", num_users), ("num_edge_gpus", num_edge_gpus)):
        for value in a_sequence(name_of, values):
            whole_number(name_of, value, 1)
    a_sequence("methods", methods)
    solver_functions = {method: get_solver(method) for method in methods}
    common = dict(solver_functions=solver_functions, parameters=parameters, batching=batching, profiles=profiles)
    blocks = [
        range(s, min(s + SEEDS_PER_TASK, first_seed + num_seeds))
        for s in range(first_seed, first_seed + num_seeds, SEEDS_PER_TASK)
    ]
    tasks = [
        dict(num_users=u, num_edge_gpus=c, seeds=list(block), **common)
        for u in num_users
        for c in num_edge_gpus
        for block in blocks
    ]
    settings = dict(
        num_users=list(num_users),
        num_edge_gpus=list(num_edge_gpus),
        num_seeds=num_seeds,
        first_seed=first_seed,
        parameters=asdict(parameters),
        batching=batching,
        profiles=asdict(profiles) if profiles else "published",
        **_digests(solver_functions, "offloading", "study"),
    )
    command = f"reward_sweep({name!r}, num_users={num_users!r}, num_edge_gpus={num_edge_gpus!r}, …)"
    return load_or_run(name, _windows, tasks, settings=settings, command=command)


def _windows(num_users, num_edge_gpus, seeds, solver_functions: dict[str, Callable], parameters, batching, profiles):
    rows = []
    for seed in seeds:
        rng = np.random.default_rng([seed, num_users])
        instance = sample_instance(num_users, num_edge_gpus, rng, parameters, profiles)
        local = evaluate(instance, solve(instance, "all_local")).utility
        best = evaluate(instance, solve(instance, "exact" if batching == "static" else "early_exit"), batching).utility
        for method, solver in solver_functions.items():
            plan = solver(instance, **({"seed": seed} if "seed" in inspect.signature(solver).parameters else {}))
            outcome = evaluate(instance, plan, batching)
            rows.append(
                dict(
                    num_users=num_users,
                    num_edge_gpus=num_edge_gpus,
                    seed=seed,
                    method=method,
                    reward=outcome.reward,
                    utility_s=outcome.utility,
                    accuracy=float(outcome.accuracy.mean()),
                    latency_s=float(outcome.latency_s.mean()),
                    share_granted=float(plan.granted.mean()),
                    optimality=optimality(outcome.utility, best, local),
                )
            )
    return rows


def optimality(utility: float, best: float, local: float) -> float:
    """Share of the optimum's gain over all-local, from utilities in seconds; see ``share_of_gain``."""
    return float(share_of_gain(utility - local, best - local, best))


def solve_times(
    name: str,
    *,
    num_users: Sequence[int],
    methods: dict[str, dict],
    num_edge_gpus: int = 16,
    num_seeds: int = 5,
    give_up_s: float = 10.0,
) -> pd.DataFrame:
    """Seconds that each method takes, against the number of users, one run at a time.

    Args:
        name: of the stored table.
        num_users: ascending; the batch limit is lifted to the number of users.
        methods: ``{label: {"method": name, …options}}``; each stops growing after its median exceeds ``give_up_s`` or
            it refuses the size.
        num_seeds: windows per size; each is solved twice and the second time counts, so that nothing is cold.

    Returns:
        One row per label, size and window: ``label, num_users, seed, solve_s, status``.

    Raises:
        ValueError: for an unknown method, options that it does not take, or fewer than one window.
    """
    for value in a_sequence("num_users", num_users):
        whole_number("num_users", value, 1)
    instance_of("methods", methods, dict)
    for label, options in methods.items():
        instance_of(f"methods[{label!r}]", options, dict)
    whole_number("num_edge_gpus", num_edge_gpus, 1)
    whole_number("num_seeds", num_seeds, 1)
    finite_number("give_up_s", give_up_s, 0.0, open_end=True)
    solver_functions = {label: get_solver(options.get("method", "exact")) for label, options in methods.items()}
    common = dict(
        num_users=list(num_users),
        methods=methods,
        num_edge_gpus=num_edge_gpus,
        num_seeds=num_seeds,
        give_up_s=give_up_s,
    )
    by_name = {options.get("method", "exact"): solver_functions[label] for label, options in methods.items()}
    settings = common | {"depends_on": _digests(by_name, "offloading")}
    return load_or_run(
        name,
        _times,
        [common | {"solver_functions": solver_functions}],
        settings=settings,
        kind="measured",
        command=f"solve_times({name!r}, num_users={num_users!r}, …)",
    )


def _times(num_users, methods, solver_functions, num_edge_gpus, num_seeds, give_up_s):
    rows = []
    for label, solver in solver_functions.items():
        options = {option: value for option, value in methods[label].items() if option != "method"}
        # a wrong option must not pass for a size that is refused
        _time_once(sample_instance(1, num_edge_gpus, np.random.default_rng(0)), solver, options)
        for users in num_users:
            parameters, seconds = SystemParameters(max_batch=users), []
            for seed in range(num_seeds):
                instance = sample_instance(users, num_edge_gpus, np.random.default_rng([seed, users]), parameters)
                try:
                    spent, plan = _time_once(instance, solver, options)
                    if spent < give_up_s / 2:
                        spent, plan = _time_once(instance, solver, options)
                except ValueError:  # the method refuses this size
                    break
                seconds.append(spent)
                rows.append(dict(label=label, num_users=users, seed=seed, solve_s=spent, status=plan.status))
                if spent > give_up_s:
                    break
            if not seconds or np.median(seconds) > give_up_s:
                break
    return rows


def _time_once(instance, solver, options):
    start = time.perf_counter()
    plan = solver(instance, **options)
    check_plan(instance, plan)  # as ``solve`` does
    return time.perf_counter() - start, plan


def _digests(solver_functions: dict[str, Callable], *rooms: str) -> dict:
    """What a table depends on beside its settings: who the solvers are and the package's code."""
    keys = {name: solver_key(name, function) for name, function in solver_functions.items()}
    learned = any(name == "agent" or key.startswith("agent ") for name, key in keys.items())
    return dict(
        methods=keys,
        agent=agent_digest() if learned else None,
        code=code_digest(*rooms, *(["learning"] if learned else [])),
    )


def agent_digest() -> str:
    """Checksum of the committed agent's weights."""
    return sha256(data_path("agents", "drl_convex.safetensors"))


def solver_key(name: str, solver: Callable) -> str:
    """What tells one solver from another under the same name.

    The package's own solvers are their names, since the code is part of a table's settings. Any other says who it is
    with an attribute ``key`` (of the function, or of the object it is bound to: an ``Agent`` has one, which changes
    with its weights). One that does not is never read back: what a function depends on beside its own source cannot
    be seen from outside.
    """
    if is_kept(name):
        return name
    key = getattr(solver, "key", None) or getattr(getattr(solver, "__self__", None), "key", None)
    if isinstance(key, (str, int)):
        return str(key)
    print(f"{name}: has no attribute `key`, so its table is computed anew each time")
    return uuid.uuid4().hex

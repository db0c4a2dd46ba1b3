"""Policies of the one-window game against the exact optimum, which knew everyone from the start."""

from collections.abc import Sequence

import pandas as pd

from splitpoint.checks import a_function, a_sequence, instance_of
from splitpoint.edge.window_game import Policy, run_online
from splitpoint.offloading import Instance, evaluate, solve
from splitpoint.study.sweeps import optimality


def compare_online(windows: Sequence[Instance], policies: dict[str, Policy]) -> pd.DataFrame:
    """Every policy on the same windows.

    Returns:
        One row per window and policy: ``window, num_users, policy, utility_s, share_granted, regret_s`` (per user, to
        the exact optimum) and ``optimality`` (share of the possible gain).

    Raises:
        ValueError: for no windows, or a policy that cannot be called.
    """
    for window in a_sequence("windows", windows):
        instance_of("windows", window, Instance)
    instance_of("policies", policies, dict)
    for name, policy in policies.items():
        a_function(f"policies[{name!r}]", policy)
    rows = []
    for number, instance in enumerate(windows):
        best, local = (evaluate(instance, solve(instance, method)).utility for method in ("exact", "all_local"))
        for name, policy in policies.items():
            plan = run_online(instance, policy)
            utility = evaluate(instance, plan).utility
            rows.append(
                dict(
                    window=number,
                    num_users=instance.num_users,
                    policy=name,
                    utility_s=utility,
                    share_granted=float(plan.granted.mean()),
                    regret_s=(best - utility) / instance.num_users,
                    optimality=optimality(utility, best, local),
                )
            )
    return pd.DataFrame(rows)

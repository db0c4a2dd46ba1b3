"""Time to decide one window against its number of users, the agent beside the solvers; and decisions a second.

Writes data/learning/decision_times.csv with its sidecar. Run on an otherwise idle machine:
python benchmarks/decisions_per_second.py
"""

import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from splitpoint.files import data_path, write_meta, write_rows
from splitpoint.learning import Scenario, load_agent
from splitpoint.offloading import sample_instance, solve

USERS = (1, 2, 4, 8, 12, 16, 20)
SLOWEST_S = 2.0
METHODS = {
    "exact": {"method": "exact"},
    "greedy": {"method": "greedy"},
    "agent": {"method": "agent"},
    "genetic": {"method": "genetic"},
    "MILP, tight": {"method": "milp"},
    "MILP, GQAP-linearised": {"method": "milp", "formulation": "gqap", "time_limit_s": 5.0},
}


def shortest(function, repeats: int) -> tuple[float, object]:
    """Processor seconds of the shortest call, which other work on the machine disturbs least; and what it returned."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        spent.append(time.process_time() - start)
    return min(spent), result


def rows():
    for label, options in METHODS.items():
        for users in USERS:
            seconds = []
            for seed in range(3):
                instance = sample_instance(users, 16, np.random.default_rng([seed, users]))
                spent, plan = shortest(lambda: solve(instance, **options), 2 if "MILP" in label else 15)
                seconds.append(spent)
                yield {
                    "label": label,
                    "num_users": users,
                    "seed": seed,
                    "solve_s": f"{spent:.3g}",
                    "status": plan.status,
                }
                if spent > SLOWEST_S:
                    break
            if np.median(seconds) > SLOWEST_S / 4:
                break
    agent = load_agent()
    for users in USERS:
        windows = Scenario((users, users), (16, 16)).sample(1000, np.random.default_rng(users))
        yield {
            "label": "agent, 1000 windows at once",
            "num_users": users,
            "seed": 0,
            "solve_s": f"{shortest(lambda: agent.decide(windows), 5)[0] / 1000:.3g}",
            "status": "heuristic",
        }


def main():
    table = list(rows())
    path = data_path("learning", "decision_times.csv")
    write_rows(path, table)
    write_meta(
        path,
        kind="measured",
        command="python benchmarks/decisions_per_second.py",
        seed=0,
        settings={
            "num_edge_gpus": 16,
            "gqap_time_limit_s": 5.0,
            "repeats": "shortest of 15 (2 for programs), processor seconds of one thread",
        },
        source="this project",
        licence="MIT",
    )
    for row in table:
        if row["seed"] == 0:
            print(f"{row['label']:30s} U={row['num_users']:3d}  {row['solve_s']} s")


if __name__ == "__main__":
    main()

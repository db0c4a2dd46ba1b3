"""What ``splitpoint plan`` and ``splitpoint sweep`` do."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from splitpoint.files import can_write, write_meta, write_rows
from splitpoint.offloading import (
    LatencyModel,
    SystemParameters,
    evaluate,
    hardware,
    plan_rows,
    published_latency,
    read_users,
    solve,
    solvers,
)


def plan() -> None:
    """Whom to serve and where to split, for the users of a CSV file."""
    parser = argparse.ArgumentParser(
        description="Whom to serve and where to split, for users of your own.",
        epilog="example: splitpoint plan users.csv --edge A100 --software compiled --out plan.csv",
    )
    parser.add_argument("users", type=Path, help="CSV with columns user, device_step_s, alpha_s and maybe arrival_s")
    edge = parser.add_mutually_exclusive_group()
    edge.add_argument("--edge", metavar="NAME", help="a named published machine, for instance A100")
    edge.add_argument("--line", nargs=2, type=float, metavar=("K_S", "H_S"), help="seconds per request, seconds")
    parser.add_argument("--software", default="eager", help="of the named machine")
    parser.add_argument("--gpus", type=int, default=16, help="of the released edge, where no other is named")
    parser.add_argument("--method", default="exact", choices=sorted(solvers()))
    parser.add_argument("--batching", default="static", choices=("static", "early_exit"))
    parser.add_argument("--transmission", default="corrected", choices=("released", "corrected"))
    parser.add_argument("--max-batch", type=int, default=18)
    parser.add_argument("--whole-steps", action="store_true")
    parser.add_argument("--out", type=Path, help="write the plan to this CSV file, too")
    asked = parser.parse_args()
    if asked.out:
        can_write("--out", asked.out)
    if asked.line:
        latency = LatencyModel(*asked.line)
    elif asked.edge:
        latency = hardware.edge(asked.edge, asked.software).table()
    else:
        latency = published_latency()[0].shared_by(asked.gpus)
    parameters = SystemParameters(max_batch=asked.max_batch, transmission=asked.transmission)
    names, instance = read_users(asked.users, latency, parameters)
    found = solve(instance, asked.method, **({"whole_steps": True} if asked.whole_steps else {}))
    rows = plan_rows(instance, found, names, asked.batching)
    width = max(len("user"), *(len(str(row["user"])) for row in rows))
    print(f"{'user':{width}s}  granted  edge steps  device steps  accuracy  latency (s)")
    for row in rows:
        granted = "yes" if row["granted"] else "no"
        print(
            f"{row['user']!s:{width}s}  {granted:7s}  {row['edge_steps']:10.1f}  {row['device_steps']:12.1f}  "
            f"{row['accuracy']:8.3f}  {row['latency_s']:11.2f}"
        )
    outcome = evaluate(instance, found, asked.batching)
    print(f"utility {outcome.utility:.3f} s ({found.status})")
    if asked.out:
        write_rows(asked.out, rows)
        write_meta(asked.out, kind="simulated", command=" ".join(sys.argv))


def sweep() -> None:
    """Every method on many random windows."""
    from splitpoint.study.sweeps import METHODS, reward_sweep

    parser = argparse.ArgumentParser(
        description="Every method on the same random windows; a summary here, the table in results/.",
        epilog="example: splitpoint sweep mine --users 4 12 20 --gpus 4 16 --seeds 100",
    )
    parser.add_argument("name", help="of the table, results/NAME.csv")
    parser.add_argument("--users", nargs="+", type=int, default=[4, 8, 12, 16, 20])
    parser.add_argument("--gpus", nargs="+", type=int, default=[16])
    parser.add_argument("--seeds", type=int, default=200, help="windows for each pair of users and GPUs")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--transmission", default="released", choices=("released", "corrected"))
    parser.add_argument("--batching", default="static", choices=("static", "early_exit"))
    asked = parser.parse_args()
    if "agent" in asked.methods:
        import_module("splitpoint.learning")  # puts the agent among the solvers
    table = reward_sweep(
        asked.name,
        num_users=asked.users,
        num_edge_gpus=asked.gpus,
        num_seeds=asked.seeds,
        methods=asked.methods,
        parameters=SystemParameters(transmission=asked.transmission),
        batching=asked.batching,
    )
    columns = ["reward", "accuracy", "latency_s", "share_granted", "optimality"]
    print(table.groupby("method", sort=False)[columns].mean().round(4).to_string())

"""What ``splitpoint plan`` and ``splitpoint sweep`` do."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from splitpoint.files import can_write, write_meta, write_rows
from splitpoint.offloading import (
    LatencyModel,
    StepLatency,
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
    parser.add_argument(
        "users",
        type=Path,
        help="CSV with columns user, device_step_s (seconds of a step on the device), alpha_s (seconds that one would "
        "wait for accuracy to go from 0 to 1) and maybe arrival_s (moment in the window of one second)",
    )
    edge = parser.add_mutually_exclusive_group()
    edge.add_argument(
        "--edge", metavar="NAME", help="a machine with a name in data/latency_profiles/named.csv, for instance A100"
    )
    edge.add_argument(
        "--line", nargs=2, type=float, metavar=("K_S", "H_S"), help="a step of b requests takes K_S b + H_S"
    )
    parser.add_argument("--software", help="of the named machine, for instance compiled (default eager)")
    parser.add_argument("--gpus", type=int, help="of the released edge, where no other is named (default 16)")
    parser.add_argument("--method", choices=sorted(solvers()), help="default: the exact one of the batching")
    _model_options(parser, "corrected")
    parser.add_argument("--max-batch", type=int, default=18, help="default %(default)d")
    parser.add_argument("--whole-steps", action="store_true", help="split between steps only")
    parser.add_argument("--out", type=Path, help="write the plan to this CSV file, too")
    asked = parser.parse_args()
    if asked.out:
        can_write("--out", asked.out)
    if asked.method == "early_exit" and asked.batching != "early_exit":
        raise ValueError("method='early_exit' plans for another batching; valid beside --batching early_exit")
    method = asked.method or ("early_exit" if asked.batching == "early_exit" else "exact")
    latency, machine = _edge(asked)
    parameters = SystemParameters(max_batch=asked.max_batch, transmission=asked.transmission)
    names, instance = read_users(asked.users, latency, parameters)
    found = solve(instance, method, **({"whole_steps": True} if asked.whole_steps else {}))
    rows = plan_rows(instance, found, names, asked.batching)
    print(
        f"edge: {machine}; {asked.batching.replace('_', ' ')} batching, at most {asked.max_batch}; "
        f"{asked.transmission} hand-over"
    )
    width = max(len("user"), *(len(str(row["user"])) for row in rows))
    print(f"{'user':{width}s}  granted  edge steps  device steps  accuracy  latency (s)")
    for row in rows:
        granted = "yes" if row["granted"] else "no"
        print(
            f"{row['user']!s:{width}s}  {granted:7s}  {row['edge_steps']:10.1f}  {row['device_steps']:12.1f}  "
            f"{row['accuracy']:8.3f}  {row['latency_s']:11.2f}"
        )
    outcome = evaluate(instance, found, asked.batching)
    home = evaluate(instance, solve(instance, "all_local"), asked.batching).utility
    how = f"{found.status} for static batching" if method == "exact" and asked.batching != "static" else found.status
    print(f"utility {outcome.utility:.3f} s ({how}); {home:.3f} s if all stay at home")
    if asked.out:
        write_rows(asked.out, rows)
        write_meta(asked.out, kind="simulated", command=" ".join(sys.argv))


def _model_options(parser: argparse.ArgumentParser, transmission: str) -> None:
    """What changes the model itself."""
    batching = "leave the batch together, or each when its edge steps are done (default %(default)s)"
    parser.add_argument("--batching", default="static", choices=("static", "early_exit"), help=batching)
    units = "of a hand-over: as the authors' code has it, or in the right unit (default %(default)s)"
    parser.add_argument("--transmission", default=transmission, choices=("released", "corrected"), help=units)


def _edge(asked: argparse.Namespace) -> tuple[StepLatency, str]:
    """The edge that was asked for, and what to call it."""
    if asked.software and not asked.edge:
        raise ValueError(f"software={asked.software!r} is of no machine; valid beside --edge")
    if asked.gpus is not None and (asked.edge or asked.line):
        raise ValueError(f"gpus={asked.gpus} are of the released edge; valid without --edge and --line")
    if asked.line:
        return LatencyModel(*asked.line), "a step of b requests takes {:g} b + {:g} s".format(*asked.line)
    if asked.edge:
        software = asked.software or "eager"
        return hardware.edge(asked.edge, software).table(), f"{asked.edge}, {software}"
    gpus = 16 if asked.gpus is None else asked.gpus
    return published_latency()[0].shared_by(gpus), f"the released one, {gpus} GPUs"


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
    names = f"default {' '.join(METHODS)}; agent, too"
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=names)
    _model_options(parser, "released")
    asked = parser.parse_args()
    if not set(asked.methods) <= set(solvers()):
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

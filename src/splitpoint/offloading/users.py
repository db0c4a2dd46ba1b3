"""Users of one's own: a window from a CSV file, and a plan as rows of a table."""

import csv
from pathlib import Path

import numpy as np

from splitpoint.checks import instance_of
from splitpoint.offloading.curves import StepLatency
from splitpoint.offloading.problem import Instance, Plan, SystemParameters, evaluate

COLUMNS = ("user", "device_step_s", "alpha_s", "arrival_s")


def read_users(
    path: Path | str, edge: StepLatency, parameters: SystemParameters = SystemParameters()
) -> tuple[list[str], Instance]:
    """One window from a CSV file with a row a user.

    Args:
        path: file with the columns ``user`` (a name), ``device_step_s`` (one step on the device, seconds), ``alpha_s``
            (seconds worth one unit of accuracy) and, if requests came at different moments, ``arrival_s``.
        edge: latency of one edge step.
        parameters: SystemParameters.

    Returns:
        The users' names and the window.

    Raises:
        ValueError: naming file, line and column, for a missing column, a doubled name or what is no number.
    """
    instance_of("edge", edge, StepLatency)
    try:
        path = Path(path)
    except TypeError as error:
        raise ValueError(f"path={path!r} is no path") from error
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, ValueError) as error:  # what is no UTF-8 is a ValueError
        raise ValueError(f"path={path.name!r} cannot be read as a CSV file: {error}") from error
    for column in COLUMNS[:3]:
        if column not in columns:
            found = f"; there are {', '.join(map(repr, columns))}" if columns else ""
            raise ValueError(f"{path.name}: column {column!r} is missing{found}; valid are {', '.join(COLUMNS)}")
    if not rows:
        raise ValueError(f"{path.name}: no rows; at least one user is needed")
    names = [row["user"] for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path.name}: user={twice!r} stands in two rows")
    numbers = {column: [_number(path, line, row, column) for line, row in enumerate(rows, 2)] for column in COLUMNS[1:]}
    device_step_s, alpha, arrival_s = (np.array(numbers[column]) for column in COLUMNS[1:])
    return names, Instance(edge, device_step_s, alpha, arrival_s, parameters)


def _number(path: Path, line: int, row: dict[str, str], column: str) -> float:
    text = row.get(column) if column != "arrival_s" else row.get(column) or "0"
    try:
        return float(text or "")
    except ValueError as error:
        raise ValueError(f"{path.name}, line {line}: {column}={text!r} is not a number") from error


def plan_rows(instance: Instance, plan: Plan, names: list[str] | None = None, batching: str = "static") -> list[dict]:
    """A plan as rows of a table: what is decided for each user and what it gives.

    Args:
        instance: the window.
        plan: a feasible plan.
        names: of the users; numbers if left out.
        batching: see ``evaluate``.

    Returns:
        One row a user: ``user, granted, edge_steps, device_steps, accuracy, latency_s``.
    """
    outcome = evaluate(instance, plan, batching)  # type: ignore[arg-type]  # refused there if unknown
    return [
        {
            "user": names[i] if names is not None else i,
            "granted": bool(plan.granted[i]),
            "edge_steps": round(float(instance.parameters.num_steps - plan.split_points[i]), 2),
            "device_steps": round(float(plan.split_points[i]), 2),
            "accuracy": round(float(outcome.accuracy[i]), 4),
            "latency_s": round(float(outcome.latency_s[i]), 3),
        }
        for i in range(instance.num_users)
    ]

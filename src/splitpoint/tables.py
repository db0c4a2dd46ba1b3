"""Tables of results: read where they exist, computed where they do not, resumed where they were interrupted."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import joblib
import pandas as pd

from splitpoint.checks import one_of
from splitpoint.files import (
    KINDS,
    data_path,
    meta_path,
    project_root,
    read_meta,
    results_path,
    write_atomically,
    write_meta,
)
from splitpoint.progress import progress_bar


def load_or_run(
    name: str,
    function: Callable[..., list[dict]],
    tasks: Sequence[dict],
    *,
    settings: dict,
    command: str = "make figures",
    kind: str = "simulated",
) -> pd.DataFrame:
    """The table of ``function(**task)`` over all tasks; printed is whether it was read or computed.

    A table with the same settings is read from ``data/results/`` (shipped) or ``results/`` (computed here before).
    Otherwise the tasks run on all cores through joblib (inside ``joblib.parallel_config`` on any of its backends,
    Dask's too). Each finished task is kept at once; an interrupted run continues after the last of them and gives the
    same table, row for row.

    Args:
        name: file name of the table, without ending.
        function: returns a list of rows; importable or picklable.
        tasks: keyword arguments of each call; values JSON-serialisable or functions.
        settings: everything the numbers depend on, JSON-serialisable; include ``code_digest()``.
        command: how to make the table again.
        kind: of the numbers, see ``splitpoint.files``.

    Returns:
        Tidy table in the order of the tasks.

    Raises:
        ValueError: for an unknown kind, no tasks, or a stored table that was changed or damaged.
    """
    one_of("kind", kind, KINDS)
    if len(tasks) == 0:
        raise ValueError(f"tasks of {name} are empty; at least one is needed")
    identity = json.loads(json.dumps(settings))
    for path in (data_path("results", f"{name}.csv"), results_path(f"{name}.csv")):
        if meta_path(path).exists() and (meta := read_meta(path))["settings"] == identity:
            print(f"{name}: read from {path.relative_to(project_root())}; {provenance_line(meta)}")
            return pd.read_csv(path)
    start = time.perf_counter()
    path = results_path(f"{name}.csv")
    draft = results_path(f"{name}.parts", hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16])
    draft.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(len(tasks)) if not (draft / f"{i}.json").exists()]
    calls = (joblib.delayed(_run_one)(function, tasks[i], i) for i in missing)
    finished = joblib.Parallel(n_jobs=-1, return_as="generator_unordered")(calls)
    with progress_bar(name, len(missing)) as bar:
        for index, rows in finished:
            write_atomically(draft / f"{index}.json", json.dumps(rows).encode())
            bar.update()
    rows = [row for i in range(len(tasks)) for row in json.loads((draft / f"{i}.json").read_text())]
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False).encode())
    meta = write_meta(path, kind=kind, command=command, settings=identity)
    for part in draft.iterdir():
        part.unlink()
    draft.rmdir()
    with suppress(OSError):  # another setting of the same table may be under way
        draft.parent.rmdir()
    resumed = f", {len(tasks) - len(missing)} parts of {len(tasks)} from before" if len(missing) < len(tasks) else ""
    print(f"{name}: computed here in {time.perf_counter() - start:.1f} s{resumed}; {provenance_line(meta)}")
    return pd.read_csv(path)


def _run_one(function, task, index):
    return index, function(**task)


def read_table(*parts: str) -> pd.DataFrame:
    """A table that ships under ``data/``, checked against its sidecar; printed is where, when and on what it was made.

    Raises:
        ValueError: if the file or its sidecar is missing or damaged.
    """
    path = data_path(*parts)
    if not path.exists():
        raise ValueError(f"data/{'/'.join(parts)} is missing; restore it with `git checkout -- data`")
    meta = read_meta(path)
    print(f"data/{'/'.join(parts)}: {provenance_line(meta)}")
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def provenance_line(meta: dict) -> str:
    """One line from a sidecar: kind, date, device, command."""
    return f"{meta['kind']} {meta['date_utc']} UTC on {meta['device']}, by `{meta['command']}`"


def code_digest(*rooms: str) -> str:
    """Checksum of the package's source in the named rooms: a stored table goes stale when the code changes."""
    digest = hashlib.sha256()
    for room in rooms:
        for path in sorted(Path(__file__).parent.joinpath(room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

"""Tables of results: read where they exist, computed where they do not, resumed where they were interrupted."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import joblib
import numpy as np
import pandas as pd
from filelock import FileLock

from splitpoint.checks import a_sequence, one_of
from splitpoint.files import (
    KINDS,
    can_write,
    data_path,
    how_to_restore,
    meta_path,
    project_root,
    read_meta,
    results_path,
    safe_name,
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
        ValueError: for an unknown kind, a name that is no file name, no tasks, tasks without rows, or a shipped table
            that was changed or damaged, or ``results/`` cannot be written. (A table in ``results/`` that was cut off or
            changed is made again.)
    """
    one_of("kind", kind, KINDS)
    safe_name("name", name)
    a_sequence(f"tasks of {name}", tasks)
    identity = json.loads(json.dumps(settings, default=_plain))
    path = results_path(f"{name}.csv")
    if (stored := _stored(name, identity)) is not None:
        return stored
    can_write("results", path)
    with FileLock(path.with_name(f".{name}.lock")):  # a second process waits, and then reads what the first has made
        if (stored := _stored(name, identity)) is not None:
            return stored
        return _compute(name, function, tasks, identity, command, kind)


def _stored(name: str, identity: dict) -> pd.DataFrame | None:
    """The table of these settings, if one ships or was made here; a file here that fails its checksum is not there."""
    for path in (data_path("results", f"{name}.csv"), results_path(f"{name}.csv")):
        if not meta_path(path).exists():
            continue
        try:
            meta = read_meta(path)
        except ValueError:
            if path == data_path("results", f"{name}.csv"):
                raise
            continue  # cut off between the table and its sidecar, or changed by hand: made again
        if meta.get("settings") == identity:
            print(f"{name}: read from {path.relative_to(project_root())}; {provenance_line(meta)}")
            return pd.read_csv(path)
    return None


def _compute(name: str, function, tasks: Sequence[dict], identity: dict, command: str, kind: str) -> pd.DataFrame:
    start, path = time.perf_counter(), results_path(f"{name}.csv")
    draft = parts_folder(path, identity)
    found = {i: rows for i in range(len(tasks)) if (rows := read_part(draft / f"{i}.json")) is not None}
    missing = [i for i in range(len(tasks)) if i not in found]
    before = len(found)
    calls = (joblib.delayed(_run_one)(function, tasks[i], i) for i in missing)
    finished = cast(Iterable, joblib.Parallel(n_jobs=-1, return_as="generator_unordered")(calls))
    with progress_bar(name, len(missing)) as bar:
        for index, rows in finished:
            found[index] = write_part(draft / f"{index}.json", rows)
            bar.update()
    rows = [row for i in range(len(tasks)) for row in found[i]]
    if not rows:
        raise ValueError(f"tasks of {name} gave no rows; a table needs at least one")
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False).encode())
    meta = write_meta(path, kind=kind, command=command, settings=identity)
    drop_parts(draft)
    resumed = f", {before} parts of {len(tasks)} from before" if before else ""
    print(f"{name}: computed here in {time.perf_counter() - start:.1f} s{resumed}; {provenance_line(meta)}")
    return pd.read_csv(path)


def _run_one(function, task, index):
    return index, function(**task)


def _plain(value: object):
    """What JSON does not know of NumPy's numbers and of ranges."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (range, np.ndarray)):
        return list(value)
    raise TypeError(f"settings hold {value!r}, which is not JSON serialisable")


def parts_folder(path: Path, settings: dict) -> Path:
    """Where the finished parts of a table wait for the others: beside it, a folder for each of its settings."""
    identity = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    return path.with_name(f"{path.stem}.parts") / identity


def drop_parts(folder: Path) -> None:
    """Remove the parts of a table that is whole."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other settings of the same table may be under way
        folder.parent.rmdir()


def write_part(path: Path, rows: list[dict]) -> list[dict]:
    """Keep a finished part with its checksum, and return it as it is read back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows, default=_plain)
    write_atomically(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
    return json.loads(text)


def read_part(path: Path) -> list[dict] | None:
    """A part that was finished before; none if it is not there, or was cut or changed since."""
    try:
        checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return json.loads(text) if hashlib.sha256(text.encode()).hexdigest() == checksum else None


def read_table(*parts: str) -> pd.DataFrame:
    """A table that ships under ``data/``, checked against its sidecar; printed is where, when and on what it was made.

    Raises:
        ValueError: if the file or its sidecar is missing or damaged.
    """
    path = data_path(*parts)
    if not path.exists():
        raise ValueError(f"data/{'/'.join(parts)} is missing; {how_to_restore()}")
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

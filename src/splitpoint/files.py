"""Where the project's files are, and the provenance that stands beside each of them.

Every file under ``data/`` has a sidecar ``<file name>.meta.json``: what kind of number it holds
(measured, simulated, published or trained), the command that made it, seed, date, device, library
versions and a checksum. Standard library only, so that every room may use it.
"""

import csv
import hashlib
import io
import json
import os
import platform
import re
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

KINDS = ("measured", "simulated", "published", "trained")
_VERSIONS_OF = ("numpy", "scipy", "pandas", "torch", "diffusers", "transformers", "stable-baselines3", "cvxpy")


def project_root() -> Path:
    """The folder that holds ``data/`` and ``notebooks/``; the environment variable SPLITPOINT_ROOT overrides it."""
    return Path(os.environ.get("SPLITPOINT_ROOT", Path(__file__).resolve().parents[2]))


def data_path(*parts: str) -> Path:
    """Path of a file under ``data/``, for instance ``data_path("latency_profiles", "published.csv")``."""
    return project_root().joinpath("data", *parts)


def results_path(*parts: str) -> Path:
    """Path of a file under ``results/``, where what is computed on this machine is kept (git ignores it)."""
    return project_root().joinpath("results", *parts)


def sha256(path: Path) -> str:
    """Checksum of a file, as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of Python and of those libraries that shape a number, where installed."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """The processor in words, without host names."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


def meta_path(path: Path) -> Path:
    """The sidecar of a file."""
    path = Path(path)
    return path.with_name(path.name + ".meta.json")


def write_meta(
    path: Path,
    *,
    kind: str,
    command: str,
    seed: int | None = None,
    device: str | None = None,
    settings: dict | None = None,
    **more: object,
) -> dict:
    """Write the sidecar of a finished file and return it.

    Args:
        path: the file, already written; its checksum is taken.
        kind: one of ``measured``, ``simulated``, ``published``, ``trained``.
        command: what makes the file again, as typed from the project's root.
        seed: seed of the run, where there is one.
        device: hardware in words; this machine's processor if left out.
        settings: everything the numbers depend on, JSON-serialisable.
        more: further entries, for instance ``source`` and ``licence``.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    meta = {
        "kind": kind,
        "command": command,
        "seed": seed,
        "date_utc": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "device": device or device_name(),
        "settings": settings or {},
        "versions": library_versions(),
        "sha256": sha256(path),
        **more,
    }
    write_atomically(meta_path(path), json.dumps(meta, indent=1).encode())
    return meta


def read_meta(path: Path) -> dict:
    """The sidecar of a file, after checking that the file is the one it describes.

    Raises:
        ValueError: if the file or its sidecar is missing or unreadable, or the file does not match its checksum.
    """
    path, sidecar = Path(path), meta_path(path)
    again = how_to_restore() if _ships(path) else "remove both, and it is made again"
    try:
        meta, checksum = json.loads(sidecar.read_text(encoding="utf-8")), sha256(path)
    except (OSError, ValueError, RecursionError) as error:  # what is no JSON or no UTF-8 is a ValueError
        missing = sidecar.name if path.exists() else path.name
        raise ValueError(f"{missing} is missing or unreadable; {again}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{sidecar.name} holds no JSON object; {again}")
    if checksum != meta.get("sha256"):
        raise ValueError(
            f"{path.name} does not match the checksum in {sidecar.name}: it was changed or damaged; "
            f"{again}, or make it again with: {meta.get('command')}"
        )
    return meta


def how_to_restore() -> str:
    """What to do where a file of ``data/`` is missing or damaged, as the end of a message."""
    if data_path().is_dir():
        return "restore it with `git checkout -- data`"
    return (
        "this installation came without the project's data: let the environment variable SPLITPOINT_ROOT name a "
        "checkout of the project, or install from one with `pip install -e .`"
    )


def _ships(path: Path) -> bool:
    """Whether a file is one of ``data/``, which git keeps."""
    return project_root().joinpath("data").resolve() in path.resolve().parents


def safe_name(argument: str, name: str) -> str:
    """A name that is used as a file's: letters, digits, ``_``, ``-`` and single dots, so that it leads nowhere else.

    Raises:
        ValueError: for any other.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*(\.[\w-]+)*", name) or len(name) > 100:
        raise ValueError(f"{argument}={name!r} is no name; valid are letters, digits, '_', '-' and single dots")
    return name


def write_rows(path: Path, rows: Iterable[dict], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, at once.

    Args:
        path: the file.
        rows: one dictionary a row.
        columns: which to write, in order; those of the first row if left out, and then no row may have others.

    Raises:
        ValueError: if there are neither rows nor columns, or a row has others than the first.
    """
    rows = list(rows)
    if not rows and columns is None:
        raise ValueError(f"rows of {Path(path).name} are empty; at least one row or columns are needed")
    text = io.StringIO()
    writer = csv.DictWriter(
        text, columns or list(rows[0]), lineterminator="\n", extrasaction="ignore" if columns else "raise"
    )
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def can_write(argument: str, path: Path) -> Path:
    """Refuse a file that could not be written, before the work whose result it is to hold.

    Args:
        argument: name of the argument, for the message.
        path: the file; its folder is made if it is not there.

    Returns:
        The path.

    Raises:
        ValueError: if it is a folder, or nothing can be written beside it.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{argument}={str(path)!r} cannot be written: {reason}; name a place that can") from error
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that an interruption leaves the old one or the new one, never a half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.draft")  # each writer its own
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)

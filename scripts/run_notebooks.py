"""Execute the notebooks in order: ``python scripts/run_notebooks.py [--mode full] [--in-place] [--jobs 2] [NAME …]``.

Executed copies go to ``build/notebooks/``, figures to ``figures/``. A notebook that ran to its end is not run again
until it, the package, the data or the mode changes, so an interrupted run continues where it stopped. With several
jobs, those that measure time run first, each alone (``runs_alone`` in their metadata), then the others side by side, a
thread each.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

from splitpoint.checks import whole_number
from splitpoint.files import can_write, project_root, sha256, write_atomically

CELL_TIMEOUT_S = 3600


def run_notebooks(names: list[str], mode: str, in_place: bool = False, again: bool = False, jobs: int = 1) -> bool:
    """Execute notebooks, print a line for each, and return whether all ran to their end.

    Args:
        names: stems or their beginnings, for instance ``["04"]``; all if empty.
        mode: ``fast`` or ``full``, set in each notebook's ``parameters`` cell.
        in_place: write outputs back into ``notebooks/`` (for committing them).
        again: run even what is up to date.
        jobs: notebooks side by side; those that measure time run alone, and first.
    """
    whole_number("jobs", jobs, 1)
    root = project_root()
    paths = sorted(
        p for p in root.joinpath("notebooks").glob("[0-9]*.ipynb") if not names or p.stem.startswith(tuple(names))
    )
    if not paths:
        raise ValueError(f"names={names!r} match no notebook in notebooks/")
    for place in ("build/stamps", "figures", "notebooks" if in_place else "build/notebooks"):
        can_write("SPLITPOINT_ROOT", root / place / "file")
    runner = _Runner(
        root, mode, in_place, again, {path: f"[{n}/{len(paths)}] {path.stem}" for n, path in enumerate(paths, 1)}
    )
    for group in _groups(paths) if jobs > 1 else [paths]:
        side_by_side = min(jobs, len(group))
        with ThreadPoolExecutor(side_by_side) as pool:
            try:
                if not all(list(pool.map(lambda path: runner.run(path, side_by_side), group))):
                    return False
            except BaseException:
                runner.stop()
                raise
    return True


def _groups(paths: list[Path]) -> list[list[Path]]:
    """Those that measure time, each alone; then the others, which may run side by side."""
    alone = [path for path in paths if json.loads(path.read_text())["metadata"].get("runs_alone")]
    together = [path for path in paths if path not in alone]
    return [*([path] for path in alone), *([together] if together else [])]


class _Runner:
    """Notebooks one at a time or side by side, until one fails."""

    def __init__(self, root: Path, mode: str, in_place: bool, again: bool, labels: dict[Path, str]):
        self.root, self.mode, self.in_place, self.again, self.labels = root, mode, in_place, again, labels
        self.state, self.failed, self.clients = _project_state(root), False, set()

    def stop(self) -> None:
        """Begin no other, and end the kernels that are running."""
        self.failed = True
        for client in list(self.clients):
            process = getattr(getattr(client.km, "provisioner", None), "process", None)
            if process is not None:
                process.kill()

    def run(self, path: Path, side_by_side: int) -> bool:
        """Execute one unless it is up to date or another has failed; whether it is there now."""
        if self.failed:
            return False
        root, label = self.root, self.labels[path]
        target = path if self.in_place else root / "build" / "notebooks" / path.name
        stamp = root / "build" / "stamps" / f"{path.stem}.json"
        digest = hashlib.sha256((self.state + self.mode + _source(path)).encode()).hexdigest()
        if not self.again and _up_to_date(stamp, digest, target, root):
            print(f"{label}: up to date", flush=True)
            return True
        print(f"{label} …", end="" if side_by_side == 1 else "\n", flush=True)
        start, before = time.perf_counter(), _figures(root)
        if not self._execute(path, target, side_by_side):
            self.failed = True
            return False
        seconds = time.perf_counter() - start
        others = re.compile(rf"fig(?!{path.stem[:2]})\d\d")  # made by a notebook beside this one
        made = [name for name, stat in _figures(root).items() if before.get(name) != stat and not others.match(name)]
        written = {
            str(file.relative_to(root)): sha256(file) for file in (target, *(root / "figures" / m for m in made))
        }
        write_atomically(stamp, json.dumps({"digest": digest, "written": written}).encode())
        pictures = len([name for name in made if name.endswith(".png")])
        print(f"{chr(13) if side_by_side == 1 else ''}{label}: {seconds:.0f} s, {pictures} figures", flush=True)
        return True

    def _execute(self, path: Path, target: Path, side_by_side: int) -> bool:
        with tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True) as folder:
            return self._execute_through(Path(folder), path, target, side_by_side)

    def _execute_through(self, sockets: Path, path: Path, target: Path, side_by_side: int) -> bool:
        mode, notebook = self.mode, nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None  # what is committed must not be taken for this run's
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = cell.source.replace('MODE = "fast"', f'MODE = "{mode}"')
        begun = [0]

        def remember(cell, cell_index):
            begun[0] = cell_index

        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT_S,
            kernel_name="python3",
            coalesce_streams=True,
            on_cell_start=remember,  # a kernel that died leaves no other trace of where
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(path.parent)}},
            config=_channels(sockets),
        )
        self.clients.add(client)
        try:
            client.execute(env=_kernel_environment(side_by_side))
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            index, cell = begun[0], notebook.cells[begun[0]]
            reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
            first_line = cell.source.strip().splitlines()[0] if cell.source.strip() else ""
            print(
                f"\n{path.name} failed in cell {index} ({first_line!r}):\n    {reason}\n"
                "What finished before is kept; run the same command again to continue.",
                file=sys.stderr,
                flush=True,
            )
            return False
        finally:
            self.clients.discard(client)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            for output in cell.get("outputs", []):
                if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                    output["data"]["text/plain"] = "[sliders: run this cell to move them]"
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = cell.source.replace(f'MODE = "{mode}"', 'MODE = "fast"')
        notebook.metadata.pop("signature", None)
        notebook.metadata.kernelspec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        write_atomically(target, (nbformat.writes(notebook) + "\n").encode())
        return True


def _channels(folder: Path) -> Config:
    """Files as sockets: a port that is free when a kernel is told of it may be taken when it starts."""
    through = {} if os.name == "nt" else {"transport": "ipc", "ip": str(folder / "channel")}
    return Config({"KernelManager": through})


def _kernel_environment(side_by_side: int) -> dict[str, str]:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1") if side_by_side > 1 else {}
    return {
        **os.environ,
        **one_thread,
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _source(path: Path) -> str:
    return "\0".join(
        cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        for cell in json.loads(path.read_text())["cells"]
    )


def _project_state(root: Path) -> str:
    """Digest of what notebooks read: the package, the data, and this machine's own profile."""
    digest = hashlib.sha256()
    mine = root.joinpath("results").glob("my_machine.csv")
    for path in sorted([*root.joinpath("src").rglob("*.py"), *root.joinpath("data").rglob("*"), *mine]):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _figures(root: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in root.joinpath("figures").glob("*")}


def _up_to_date(stamp: Path, digest: str, target: Path, root: Path) -> bool:
    try:
        done = json.loads(stamp.read_text())
    except (OSError, json.JSONDecodeError):
        return False
    written = done.get("written", {})
    return done.get("digest") == digest and bool(written) and all(_holds(root / n, s) for n, s in written.items())


def _holds(path: Path, checksum: str) -> bool:
    """Whether a file is there as it was written."""
    return path.exists() and sha256(path) == checksum


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute the notebooks in order.")
    parser.add_argument("names", nargs="*", help="stems or their beginnings, for instance 04; all if left out")
    parser.add_argument("--mode", choices=("fast", "full"), default="fast")
    parser.add_argument("--in-place", action="store_true", help="write outputs back into notebooks/")
    parser.add_argument("--again", action="store_true", help="run even what is up to date")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks side by side")
    arguments = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal without these characters must not end the work
    start = time.perf_counter()
    try:
        if not run_notebooks(arguments.names, arguments.mode, arguments.in_place, arguments.again, arguments.jobs):
            raise SystemExit(1)
    except ValueError as error:  # no such notebook, no such number, or a place that cannot be written
        raise SystemExit(f"run_notebooks: {error}") from None
    print(f"all notebooks: {time.perf_counter() - start:.0f} s; figures are in figures/")


if __name__ == "__main__":
    main()

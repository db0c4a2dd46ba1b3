"""An edge that a test or a notebook starts, and that ends with it: also if that is killed, as its input closes then."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitpoint.checks import finite_number


@dataclass
class RunningEdge:
    """A server in a process of its own.

    Args:
        url: where it listens.
        viewer: token that may look.
        tokens: of each user.
        process: the handle; nothing else is ever ended.
        facts: of its engine.
        code: to join a class with, or None.
    """

    url: str
    viewer: str
    tokens: Mapping[str, str]
    process: subprocess.Popen
    facts: Mapping[str, object]
    code: str | None = None

    @property
    def port(self) -> int:
        """Of ``url``."""
        return int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """As a power failure would: SIGKILL, no goodbye. The computing process follows as its pipe closes."""
        self.process.kill()
        self.process.wait()

    def end(self, longest_s: float = 40.0) -> int:
        """SIGTERM, and its exit code; SIGKILL after ``longest_s``."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(longest_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode


def start(
    *options: str, users: Sequence[str] | Mapping[str, str] = ("me",), port: int = 0, longest_s: float = 120.0
) -> RunningEdge:
    """Start ``splitpoint edge`` and wait until it answers.

    Args:
        options: of the command.
        users: names, or names and tokens (to start again with the same).
        port: 0 takes a free one.
        longest_s: to wait.

    Raises:
        ValueError: if it ends before, with its last words.
    """
    finite_number("longest_s", longest_s, 0.0, open_end=True)
    with tempfile.TemporaryDirectory() as folder:
        ready, said = Path(folder, "ready.json"), Path(folder, "said.txt")
        who = ["--users", ",".join(users)]
        if isinstance(users, Mapping):
            Path(folder, "tokens.json").write_text(json.dumps(dict(users)))
            who = ["--tokens", str(Path(folder, "tokens.json"))]
        command = [
            sys.executable,
            "-m",
            "splitpoint",
            "edge",
            "--port",
            str(port),
            "--with-parent",
            "--ready",
            str(ready),
            *who,
            *options,
        ]
        quiet = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        with said.open("wb") as words:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=words, stderr=subprocess.STDOUT, env=quiet
            )
        until = time.monotonic() + longest_s
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                process.wait()
                last = (said.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                raise ValueError(f"the edge did not start: {last}")
            time.sleep(0.02)
        facts = json.loads(ready.read_text())
    return RunningEdge(facts["url"], facts["viewer"], facts["tokens"], process, facts["engine"], facts["code"])


@contextmanager
def running(*options: str, **settings) -> Iterator[RunningEdge]:
    """``start`` as a context: the edge ends with it."""
    edge = start(*options, **settings)
    try:
        yield edge
    finally:
        edge.end(10.0)

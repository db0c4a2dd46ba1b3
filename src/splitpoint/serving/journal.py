"""What was accepted, written down before it is answered, so that a killed edge can go on."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from splitpoint.checks import a_path


class Journal:
    """A file with a line for each fact; each line has a checksum.

    A line that a kill cut off at the end was not answered, and is dropped; a damaged line before it is refused. Opened
    once, by one process.

    Args:
        path: of the file; made if it is not there.
        to_disk: wait for the disk at every line. Without, a killed process loses nothing, a power failure may.

    Raises:
        ValueError: for a file that is no journal, naming the line.
    """

    def __init__(self, path: str | Path, to_disk: bool = False):
        a_path("path", path)
        self.path, self.to_disk = Path(path), to_disk
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.facts, kept = self._read()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.ftruncate(self._file, kept)

    def _read(self) -> tuple[list[dict], int]:
        if not self.path.exists():
            return [], 0
        content = self.path.read_bytes()
        kept = content.rfind(b"\n") + 1
        facts = []
        for number, line in enumerate(content[:kept].splitlines(), 1):
            check, _, text = line.partition(b" ")
            if _check(text) != check:
                raise ValueError(f"line {number} of {self.path.name!r} is damaged; move the file away to start anew")
            facts.append(json.loads(text))
        return facts, kept

    def write(self, fact: Mapping[str, object]) -> None:
        """Add a line; it is in the system's hands when this returns.

        Raises:
            OSError: if it cannot be written whole; what was written of it is taken back.
        """
        line = _line(fact)
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(self._file, size)
            raise
        if self.to_disk:
            os.fsync(self._file)

    def live(self) -> Iterator[dict]:
        """Requests that were accepted and are neither acknowledged nor cancelled nor over, in their order."""
        over = {fact["id"] for fact in self.facts if fact["kind"] == "over"}
        yield from (fact for fact in self.facts if fact["kind"] == "accepted" and fact["id"] not in over)

    def compact(self) -> None:
        """Keep the lines of those who are alive."""
        live = list(self.live())
        draft = self.path.with_suffix(".draft")
        draft.write_bytes(b"".join(map(_line, live)))
        os.close(self._file)
        os.replace(draft, self.path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.facts = live

    def close(self) -> None:
        """No more lines."""
        os.close(self._file)


def _line(fact: Mapping[str, object]) -> bytes:
    text = json.dumps(fact, ensure_ascii=True, allow_nan=False).encode()
    return _check(text) + b" " + text + b"\n"


def _check(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()

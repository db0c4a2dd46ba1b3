"""The state of a training as one file: arrays, a JSON text beside them, and a checksum over both; no pickle."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from splitpoint.files import write_atomically


def write_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], rest: dict) -> None:
    """The old file or the new one, never a half.

    Args:
        path: of the file.
        arrays: by name.
        rest: what JSON can hold.
    """
    whole, state = {name: np.ascontiguousarray(array) for name, array in arrays.items()}, json.dumps(rest)
    write_atomically(path, save(whole, metadata={"state": state, "sha256": _checksum(whole, state)}))


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """What ``write_checkpoint`` wrote: the arrays and the rest.

    Raises:
        ValueError: for a file that is none, or that was damaged.
    """
    try:
        arrays = load_file(path)
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        state, checksum = (header["__metadata__"][name] for name in ("state", "sha256"))
        rest = json.loads(state)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not a training checkpoint; delete it to start over") from error
    if _checksum(arrays, state) != checksum:
        raise ValueError(f"{path.name} does not match its own checksum: damaged; delete it to start over")
    return arrays, rest


def _checksum(arrays: dict[str, np.ndarray], state: str) -> str:
    return hashlib.sha256(save(arrays) + state.encode()).hexdigest()

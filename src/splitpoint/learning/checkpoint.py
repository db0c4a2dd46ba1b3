"""The state of a training as one file: arrays, a JSON text beside them, and a checksum over both; no pickle."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from splitpoint.files import write_atomically
from splitpoint.tables import code_digest


def recipe_of(*settings: object) -> str:
    """What a training is made of, its code too, in 16 hexadecimal digits; another one does not go on in its folder."""
    text = repr(settings) + code_digest("edge", "learning", "offloading")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], rest: dict) -> None:
    """The old file or the new one, never a half.

    Args:
        path: of the file.
        arrays: by name.
        rest: what JSON can hold.
    """
    whole, state = {name: np.ascontiguousarray(array) for name, array in arrays.items()}, json.dumps(rest)
    write_atomically(path, save(whole, metadata={"state": state, "sha256": _checksum(whole, state)}))


def read_checkpoint(path: Path, recipe: str | None = None) -> tuple[dict[str, np.ndarray], dict]:
    """What ``write_checkpoint`` wrote: the arrays and the rest.

    Args:
        path: of the file.
        recipe: what the rest must hold under this name; not looked at if left out.

    Raises:
        ValueError: for a file that is none, that was damaged, or that belongs to a training with another recipe.
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
    if recipe is not None and rest.get("recipe") != recipe:
        raise ValueError(f"folder={path.parent.name!r} holds another training; name an empty one")
    return arrays, rest


def _checksum(arrays: dict[str, np.ndarray], state: str) -> str:
    return hashlib.sha256(save(arrays) + state.encode()).hexdigest()

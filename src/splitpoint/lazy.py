"""Names of a room that are imported on first use, so that a room is light until its heavy parts are wanted."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def on_first_use(room: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """A module's ``__getattr__``.

    Args:
        room: the package's name.
        homes: name -> module of that package that holds it.
    """

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(import_module(f"{room}.{homes[name]}"), name)
        setattr(sys.modules[room], name, value)
        return value

    return get

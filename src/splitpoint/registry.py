"""Lists by name that anybody may add to, and whose first entries nobody replaces."""

from collections.abc import Callable
from typing import Generic, TypeVar

from splitpoint.checks import a_function

Entry = TypeVar("Entry", bound=Callable)


class Registry(dict[str, Entry], Generic[Entry]):
    """Functions by name. The package's own stand for yardsticks: a reader's stand beside them, never in their place.

    Attributes:
        things: what they are, for instance "solvers".
        argument: what one is called where it is given.
        own: the package's own names.
    """

    def __init__(self, things: str, argument: str):
        super().__init__()
        self.things, self.argument = things, argument
        self.own: set[str] = set()

    def keep(self, name: str, function: Entry) -> None:
        """Add one of the package's own."""
        self[name] = function
        self.own.add(name)

    def add(self, name: str, function: Entry) -> None:
        """Add a reader's; a name that a reader gave before is taken anew.

        Raises:
            ValueError: for a name that is no text, empty or one of the package's own, or what cannot be called.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"name={name!r} is no name; valid is text")
        if name in self.own and self[name] is not function:
            raise ValueError(f"name={name!r} is one of the package's own {self.things}; choose another")
        a_function(self.argument, function)
        self[name] = function

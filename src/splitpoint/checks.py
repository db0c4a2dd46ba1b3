"""Checks of arguments, made before any work: the message names the argument, its value and the valid range."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from types import UnionType

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _shown(value: object) -> str:
    """A value as it stands in a message, cut where it would fill the screen."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def finite_number(
    name: str, value: float, minimum: float = -math.inf, maximum: float = math.inf, open_end: bool = False
) -> None:
    """Refuse what is no number, not finite or outside ``[minimum, maximum]`` (``open_end``: not the minimum)."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    try:
        inside = is_number and math.isfinite(value) and minimum <= value <= maximum
    except OverflowError:
        inside = False
    if not inside or (open_end and value == minimum):
        low = "(" if open_end or minimum == -math.inf else "["
        high = ")" if maximum == math.inf else "]"
        raise ValueError(f"{name}={_shown(value)} is outside {low}{minimum:g}, {maximum:g}{high}")


def whole_number(name: str, value: int, minimum: int, maximum: float = math.inf) -> None:
    """Refuse what is not a whole number (an ``int`` or NumPy's) within ``[minimum, maximum]``."""
    finite_number(name, value, minimum, maximum)
    if not isinstance(value, numbers.Integral):
        high = ")" if maximum == math.inf else "]"
        raise ValueError(f"{name}={_shown(value)} is not a whole number in [{minimum:g}, {maximum:g}{high}")


def finite_array(name: str, values: ArrayLike, minimum: float = -math.inf) -> NDArray[np.float64]:
    """The values as floats; refuses NaN, infinities, anything below ``minimum``, and what does not hold numbers."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} does not hold numbers only") from error
    if array.dtype.kind not in "iuf" or np.ma.isMaskedArray(values):
        found = "masked numbers" if np.ma.isMaskedArray(values) else array.dtype
        raise ValueError(f"{name} does not hold numbers only: it holds {found}")
    array = array.astype(float, copy=False)
    bad = ~(np.isfinite(array) & (array >= minimum))
    if bad.any():
        raise ValueError(f"{name} holds {array[bad].flat[0]}; valid are finite numbers from {minimum:g} up")
    return array


def a_row(name: str, values: ArrayLike, minimum: float = -math.inf, open_end: bool = False) -> NDArray[np.float64]:
    """The values as floats, shape (n,); refuses what ``finite_array`` does, none, and with ``open_end`` the minimum."""
    array = finite_array(name, values, minimum)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} has shape {array.shape}; valid is (n,) with at least one number")
    if open_end and np.any(array == minimum):
        raise ValueError(f"{name} holds {minimum:g}; valid are finite numbers above it")
    return array


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a name that is not among the choices, and say which there are."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={_shown(value)} is unknown; there are: {', '.join(choices)}")


def a_generator(name: str, value: np.random.Generator) -> None:
    """Refuse what is no NumPy generator, the legacy ``RandomState`` too."""
    if not isinstance(value, np.random.Generator):
        raise ValueError(f"{name}={_shown(value)} is not a numpy.random.Generator; use numpy.random.default_rng(seed)")


def instance_of(name: str, value: object, kind: type | UnionType) -> None:
    """Refuse what is not of a class, or of one of several (``A | B``)."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}={_shown(value)} must be {getattr(kind, '__name__', kind)}")


def a_function(name: str, value: object) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise ValueError(f"{name}={_shown(value)} cannot be called; valid is a function")


def a_path(name: str, value: object) -> None:
    """Refuse what names no file: anything but text and paths, and an empty text."""
    if not isinstance(value, (str, PathLike)) or not str(value) or "\0" in str(value):
        raise ValueError(f"{name}={_shown(value)} names no file; valid is text or a path")


def a_sequence(name: str, values: Sequence, empty: bool = False) -> Sequence:
    """The values; refuses what is no list, tuple, range or array, and an empty one unless it may be ``empty``."""
    no_rows = isinstance(values, np.ndarray) and values.ndim == 0
    if not isinstance(values, (Sequence, np.ndarray)) or isinstance(values, (str, bytes)) or no_rows:
        raise ValueError(f"{name}={_shown(values)} is no sequence; valid is a list, of one too")
    if len(values) == 0 and not empty:
        raise ValueError(f"{name} is empty; at least one is needed")
    return values  # type: ignore[return-value]


def one_or_many(name: str, values: object, one: type | UnionType = str) -> list:
    """The values as a list, a single value of kind ``one`` as a list of one; refuses what ``a_sequence`` does."""
    return [values] if isinstance(values, one) else list(a_sequence(name, values))  # type: ignore[arg-type]


def a_mapping(name: str, values: object, empty: bool = True) -> Mapping:
    """The values; refuses what is no mapping from text, and an empty one unless it may be ``empty``."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) and key for key in values):
        raise ValueError(f"{name}={_shown(values)} is no mapping from names")
    if not values and not empty:
        raise ValueError(f"{name} is empty; at least one is needed")
    return values

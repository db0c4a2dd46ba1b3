"""Checks of arguments, made before any work: the message names the argument, its value and the valid range."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def finite_number(
    name: str, value: float, minimum: float = -math.inf, maximum: float = math.inf, open_end: bool = False
) -> None:
    """Refuse a number that is not finite or lies outside ``[minimum, maximum]`` (``open_end``: not the minimum)."""
    try:
        inside = math.isfinite(value) and minimum <= value <= maximum and not (open_end and value == minimum)
    except TypeError:
        inside = False
    if not inside:
        low = "(" if open_end or minimum == -math.inf else "["
        high = ")" if maximum == math.inf else "]"
        raise ValueError(f"{name}={value!r} is outside {low}{minimum:g}, {maximum:g}{high}")


def whole_number(name: str, value: int, minimum: int, maximum: float = math.inf) -> None:
    """Refuse what is not a whole number within ``[minimum, maximum]``."""
    finite_number(name, value, minimum, maximum)
    if int(value) != value:
        high = ")" if maximum == math.inf else "]"
        raise ValueError(f"{name}={value!r} is not a whole number in [{minimum:g}, {maximum:g}{high}")


def finite_array(name: str, values: ArrayLike, minimum: float = -math.inf) -> NDArray[np.float64]:
    """The values as floats; refuses NaN, infinities and anything below ``minimum``."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} does not hold numbers only") from error
    bad = ~(np.isfinite(array) & (array >= minimum))
    if bad.any():
        raise ValueError(f"{name} holds {array[bad].flat[0]}; valid are finite numbers from {minimum:g} up")
    return array


def one_of(name: str, value: str, choices) -> None:
    """Refuse a name that is not among the choices, and say which there are."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; there are: {', '.join(choices)}")

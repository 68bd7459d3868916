"""Whole numbers where whole numbers are meant: 2.0, True and "2" are mistakes of a kind that shows late."""

import operator
from typing import Any


def whole_number(name: str, value: Any, least: int) -> int:
    """A checked argument.

    Args:
        name: of the argument.
        value: an integer of Python, NumPy or torch; a bool is none.
        least: the smallest that makes sense.

    Returns:
        It, as an int.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small.

    >>> whole_number("grid", 4, least=1)
    4
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if number < least:
        raise ValueError(f"`{name}` must be at least {least}, got {number}")
    return number

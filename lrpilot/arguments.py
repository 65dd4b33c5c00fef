"""Arguments that are numbers, checked at construction."""

from dataclasses import fields
from typing import Any

import numpy as np

LARGEST_COUNT = 2**53
"""The largest whole number up to which floats are exact."""


def require_count(name: str, value: Any, *, least: int = 1) -> None:
    """Check a whole number; True and 1.0 are none.

    Raises:
        ValueError: if it is none, below `least`, or above 2^53.

    >>> require_count("num_decisions", 0)
    Traceback (most recent call last):
    ValueError: `num_decisions` must be at least 1, got 0
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(f"`{name}` must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}")
    if value > LARGEST_COUNT:
        raise ValueError(f"`{name}` must be at most 2^53, got {value:.3g}")


def require_number(name: str, value: Any) -> None:
    """Check that a value is a real number, which True and "1" are not; NaN is one.

    Raises:
        ValueError: if it is none.

    >>> require_number("max_factor", "large")
    Traceback (most recent call last):
    ValueError: `max_factor` must be a number, got 'large'
    """
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise ValueError(f"`{name}` must be a number, got {value!r}")


def require_fields(kind: type[Any], values: dict[str, Any]) -> None:
    """Check that a dictionary from a file has each field of a dataclass, whatever its default.

    Raises:
        KeyError: if a field is missing.
    """
    for field in fields(kind):
        if field.name not in values:
            raise KeyError(field.name)

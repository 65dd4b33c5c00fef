"""Arguments, checked at construction."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from torch.optim import SGD, Adam, AdamW

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


def require_within(name: str, value: float, interval: str) -> None:
    """Check that a number lies in an interval, written as in mathematics.

    Raises:
        ValueError: if it does not; NaN lies in none.

    >>> require_within("backoff", 1.0, "(0, 1)")
    Traceback (most recent call last):
    ValueError: `backoff` must be in (0, 1), got 1.0
    """
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        raise ValueError(f"`{name}` must be in {interval}, got {value}")


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Check that a value is one of a few words.

    Raises:
        ValueError: if it is not.

    >>> require_choice("mode", "up", ("min", "max"))
    Traceback (most recent call last):
    ValueError: `mode` must be one of ('min', 'max'), got 'up'
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {tuple(choices)}, got {value!r}")


def require_sgd_or_adam(optimizer: Any) -> None:
    """Check that an optimizer is one of torch's whose steps can be told from their state.

    Raises:
        TypeError: if it is not.

    >>> require_sgd_or_adam(None)
    Traceback (most recent call last):
    TypeError: `optimizer` must be torch's SGD, Adam or AdamW, got NoneType
    """
    if not isinstance(optimizer, SGD | Adam | AdamW):
        kind = type(optimizer).__name__
        raise TypeError(f"`optimizer` must be torch's SGD, Adam or AdamW, got {kind}")


def require_fields(kind: type[Any], values: dict[str, Any]) -> None:
    """Check that a dictionary from a file has each field of a dataclass, whatever its default.

    Raises:
        KeyError: if a field is missing.
    """
    for field in fields(kind):
        if field.name not in values:
            raise KeyError(field.name)

"""Functions that take one number as they take an array: one run as they take many.

Numbers go to `math`, which is ten times faster for them than NumPy, and may differ from it in the
last digit; arrays go to NumPy. So the rules of features, action and clock are written once.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Numbers = Any
"""A float of one run, or float64 values of B runs, (B,); conditions are bools of the same shape."""


def _either(
    of_number: Callable[[float], float], of_array: Callable[[Numbers], Numbers]
) -> Callable[[Numbers], Numbers]:
    return lambda x: of_array(x) if isinstance(x, np.ndarray) else of_number(x)


exp = _either(math.exp, np.exp)
log = _either(math.log, np.log)
log10 = _either(math.log10, np.log10)
asinh = _either(math.asinh, np.arcsinh)
sqrt = _either(math.sqrt, np.sqrt)
cos = _either(math.cos, np.cos)
floor = _either(math.floor, np.floor)


def isnan(x: Numbers) -> Numbers:
    """Whether it is no number."""
    return x != x


def isfinite(x: Numbers) -> Numbers:
    """Whether it is neither NaN nor infinite."""
    return x - x == 0.0


def where(condition: Numbers, yes: Numbers, no: Numbers) -> Numbers:
    """One of two values, of which both are computed."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    return yes if condition else no


def every(condition: Numbers) -> bool:
    """Whether it holds for all runs."""
    return bool(condition.all()) if isinstance(condition, np.ndarray) else condition


def at_least(low: float, x: Numbers) -> Numbers:
    """The larger one; NaN stays."""
    if isinstance(x, np.ndarray):
        return np.maximum(x, low)
    return low if x < low else x  # `max` takes three times as long


def clip(x: Numbers, low: float, high: float) -> Numbers:
    """The nearest number in [low, high]; NaN becomes `high`."""
    if isinstance(x, np.ndarray):
        return np.maximum(np.fmin(x, high), low)
    if x < high:
        return low if x < low else x
    return high

"""Summaries of runs over seeds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Rows = Sequence[dict[str, Any]]


def mean_and_interval(
    values: Sequence[float], *, confidence: float = 0.95, num_resamples: int = 10_000
) -> tuple[float, float, float]:
    """Mean over seeds and its percentile-bootstrap interval.

    With a handful of seeds it is too narrow: it cannot leave the range of the values.

    Args:
        values: one per seed; a single infinite one makes all three results infinite.
        confidence: coverage of the interval.
        num_resamples: bootstrap resamples (drawn with a fixed seed).

    Returns:
        Mean, lower end, upper end; the ends are NaN for fewer than two values.

    References:
        Efron, Tibshirani. An introduction to the bootstrap. 1993.

    >>> mean_and_interval([2.0, 2.0, 2.0])
    (2.0, 2.0, 2.0)
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        return math.inf, math.inf, math.inf
    mean = float(array.mean())
    if len(array) < 2:
        return mean, math.nan, math.nan
    rng = np.random.default_rng(0)
    means = array[rng.integers(len(array), size=(num_resamples, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return mean, float(low), float(high)


def select(rows: Rows, **conditions: Any) -> list[dict[str, Any]]:
    """The rows whose columns have the given values."""
    return [row for row in rows if all(row[k] == v for k, v in conditions.items())]


def unique(rows: Rows, column: str) -> list[Any]:
    """The values of a column, in order of first appearance."""
    return list(dict.fromkeys(row[column] for row in rows))


def best_factor(rows: Rows) -> float:
    """The initial-LR factor with the smallest mean held-out loss over seeds."""

    def held_out_loss(factor: float) -> float:
        losses = [row["held_out_loss"] for row in select(rows, initial_lr_factor=factor)]
        return float(np.mean(losses))

    return float(min(unique(rows, "initial_lr_factor"), key=held_out_loss))

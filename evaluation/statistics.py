"""Summaries of runs over seeds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Rows = Sequence[dict[str, Any]]

# fewer values than these have no interval, and support no verdict
MIN_SEEDS = 5


def mean_and_interval(
    values: Sequence[float], *, confidence: float = 0.95, num_resamples: int = 10_000
) -> tuple[float, float, float]:
    """Mean over seeds and its percentile-bootstrap interval.

    With few seeds it is too narrow, since it cannot leave the range of the values: with fewer than
    `MIN_SEEDS` there is none.

    Args:
        values: one per seed; a single infinite one makes all three results infinite.
        confidence: coverage of the interval.
        num_resamples: bootstrap resamples (drawn with a fixed seed).

    Returns:
        Mean, lower end, upper end; the ends are NaN for fewer than `MIN_SEEDS` values.

    References:
        Efron, Tibshirani. An introduction to the bootstrap. 1993.

    >>> mean_and_interval([2.0, 2.0, 2.0, 2.0, 2.0])
    (2.0, 2.0, 2.0)
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        return math.inf, math.inf, math.inf
    mean = float(array.mean())
    if len(array) < MIN_SEEDS:
        return mean, math.nan, math.nan
    rng = np.random.default_rng(0)
    means = array[rng.integers(len(array), size=(num_resamples, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return mean, float(low), float(high)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean with its interval or, of fewer than `MIN_SEEDS`, with the least and the largest.

    >>> mean_and_spread([1.0, 3.0])
    (2.0, 1.0, 3.0)
    """
    mean, low, high = mean_and_interval(values)
    return (mean, min(values), max(values)) if math.isnan(low) else (mean, low, high)


def judge(differences: Sequence[float], *, lower: str, higher: str) -> str:
    """A paired difference in words; a verdict is passed on `MIN_SEEDS` or more alone.

    Args:
        differences: one per seed.
        lower: the word for a difference below 0.
        higher: the word for one above 0.

    >>> judge([-0.1, -0.3], lower="better", higher="worse")
    '-0.2000 (-0.3000 to -0.1000), better on 2 of 2 seeds: too few for a verdict'
    """
    num_seeds = len(differences)
    count = f"{lower} on {sum(value < 0 for value in differences)} of {num_seeds} seeds"
    if not all(map(math.isfinite, differences)):
        return f"{count}; a run diverged"
    mean, low, high = mean_and_spread(differences)
    if num_seeds == 1:
        return f"{mean:+.4f} on one seed"
    if num_seeds < MIN_SEEDS:
        return f"{mean:+.4f} ({low:+.4f} to {high:+.4f}), {count}: too few for a verdict"
    word = lower if high < 0 else higher if low > 0 else "not different"
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}], {word}"


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

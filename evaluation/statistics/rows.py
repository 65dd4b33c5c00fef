"""Summaries of runs over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[dict[str, Any]]

# fewer values than these have no interval, and support no verdict
MIN_SEEDS = 5


def mean_and_spread(
    values: Sequence[float], *, confidence: float = 0.95, num_resamples: int = 10_000
) -> tuple[float, float, float]:
    """Mean over seeds with its percentile-bootstrap interval or, of few seeds, their range.

    A bootstrap interval cannot leave the range of the values, and is too narrow with few: fewer
    than `MIN_SEEDS` have none.

    Args:
        values: one per seed; a single one that is not finite makes all three results infinite.
        confidence: coverage of the interval.
        num_resamples: bootstrap resamples (drawn with a fixed seed).

    Returns:
        Mean, lower end, upper end.

    References:
        Efron, Tibshirani. An introduction to the bootstrap. 1993.

    >>> mean_and_spread([2.0, 2.0, 2.0, 2.0, 2.0]), mean_and_spread([1.0, 3.0])
    ((2.0, 2.0, 2.0), (2.0, 1.0, 3.0))
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        return math.inf, math.inf, math.inf
    mean = float(array.mean())
    if len(array) < MIN_SEEDS:
        return mean, float(array.min()), float(array.max())
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


def bounded_loss(row: Mapping[str, Any], column: str = "held_out_loss") -> float:
    """A loss of a run, or the loss at its start if that is lower.

    So a run that diverged counts as one that was not trained.

    >>> bounded_loss({"held_out_loss": math.inf, "first_loss": 2.3})
    2.3
    """
    return float(min(row[column], row["first_loss"]))


def mean_at_factors(rows: Rows, column: str = "held_out_loss") -> dict[float, float]:
    """Mean over seeds of a column at every initial-LR factor."""
    return {
        factor: float(np.mean([row[column] for row in select(rows, initial_lr_factor=factor)]))
        for factor in unique(rows, "initial_lr_factor")
    }


def best_factor(rows: Rows, column: str = "held_out_loss") -> float:
    """The initial-LR factor with the smallest mean over seeds of a column."""
    means = mean_at_factors(rows, column)
    return min(means, key=lambda factor: means[factor])


def tuned_rows(rows: Rows, scheduler: str, tuning_rows: Rows | None = None) -> list[dict[str, Any]]:
    """The rows of a scheduler at its own best initial learning rate.

    Args:
        rows: what is reported.
        scheduler: its name.
        tuning_rows: what the choice is made on. Without them it is made on `rows`, and the
            held-out loss is optimistic for every scheduler alike (the test accuracy is not).
    """
    chosen_on = select(rows if tuning_rows is None else tuning_rows, scheduler=scheduler)
    return select(rows, scheduler=scheduler, initial_lr_factor=best_factor(chosen_on))

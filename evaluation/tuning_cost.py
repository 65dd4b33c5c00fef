"""What one untuned run of a method is worth: runs of a search that it spares."""

import math
from collections.abc import Sequence

import numpy as np

from lrpilot.evaluation.statistics import Rows, bounded_loss, select, unique

MOST_RUNS = 64
"""Where a search of so many runs is still worse, the worth is not looked for any further."""


def bounded_losses(rows: Rows) -> dict[float, float]:
    """Mean over seeds of the `bounded_loss`, at each initial-LR factor."""
    losses: dict[float, list[float]] = {}
    for row in rows:
        losses.setdefault(row["initial_lr_factor"], []).append(bounded_loss(row))
    return {factor: float(np.mean(values)) for factor, values in losses.items()}


def losses_by_scheduler(rows: Rows) -> dict[str, list[float]]:
    """The `bounded_losses` of every scheduler, one per initial learning rate."""
    return {
        name: list(bounded_losses(select(rows, scheduler=name)).values())
        for name in unique(rows, "scheduler")
    }


def lr_sensitivity(losses: Sequence[float], best: float) -> float:
    """Mean over initial learning rates of the loss, minus the best loss of any method.

    Args:
        losses: of one method, one per initial learning rate, each at most the loss at the start.
        best: the lowest loss of any method at any of them.

    References:
        Wortsman et al. Small-scale proxies for large-scale transformer training instabilities.
        2023.

    >>> lr_sensitivity([1.0, 0.5, 0.75], best=0.5)
    0.25
    """
    return float(np.mean(losses)) - best


def expected_best(losses: Sequence[float], num_runs: int) -> float:
    """The expected lowest of N losses that are drawn with replacement.

    With losses v_1 <= ... <= v_n: sum_k v_k [((n - k + 1) / n)^N - ((n - k) / n)^N].

    >>> expected_best([1.0, 2.0], num_runs=1), expected_best([1.0, 2.0], num_runs=2)
    (1.5, 1.25)
    """
    values = np.sort(np.asarray(losses, dtype=np.float64))
    left = (np.arange(len(values), -1, -1) / len(values)) ** num_runs
    return float(values @ (left[:-1] - left[1:]))


def worth_in_runs(losses: Sequence[float], rival: Sequence[float]) -> float:
    """How many runs a search over a rival's initial learning rate needs to equal one run.

    It is the smallest N for which the expected best of N runs of the rival is at most the expected
    loss of one run of the method, both at initial learning rates that are drawn from the grid.

    Args:
        losses: of the method, one per initial learning rate.
        rival: of the rival, one per initial learning rate of the same grid.

    Returns:
        N, at least 1; infinite where `MOST_RUNS` runs are not enough.

    >>> worth_in_runs([0.5, 0.7], rival=[0.5, 3.0, 3.0])
    8
    >>> worth_in_runs([0.5, 0.7], rival=[0.65, 3.0])
    inf
    """
    mine = float(np.mean(losses)) * (1 + 1e-12)  # as good to rounding
    enough = (n for n in range(1, MOST_RUNS + 1) if expected_best(rival, n) <= mine)
    return next(enough, math.inf)


def tuning_table(rows: Rows) -> list[list[str]]:
    """Of every method: loss at a random initial LR, its spread, sensitivity, and its worth.

    The worth is that of the first method, which is the policy if there is one, in runs of the
    method of the line. Runs that diverged count with the loss at their start.
    """
    losses = losses_by_scheduler(rows)
    first = next(iter(losses.values()))
    best = min(min(values) for values in losses.values())
    lines = [["held-out loss, untuned", "mean", "best", "median", "worst", "sensitivity", "worth"]]
    for name, values in losses.items():
        worth = worth_in_runs(first, values)
        shown = (np.mean(values), min(values), np.median(values), max(values))
        sensitivity = lr_sensitivity(values, best)
        number = f"over {MOST_RUNS}" if math.isinf(worth) else str(worth)
        lines.append([name, *(f"{x:.4g}" for x in (*shown, sensitivity)), number])
    return lines

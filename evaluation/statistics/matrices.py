"""Summaries of (runs x tasks) matrices of scores: one row per seed, one column per task."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rliable import metrics
from scipy import stats

Matrix = NDArray[np.float64]


def as_matrix(values: ArrayLike, name: str) -> Matrix:
    """An argument as a (runs x tasks) matrix of floats.

    Args:
        values: what was passed; infinite values are scores (a run that diverged), NaN is none.
        name: of the argument, for the error.

    Raises:
        ValueError: if it is no matrix, is empty, or has a NaN.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"`{name}` must have shape (runs, tasks), got {matrix.shape}")
    if np.isnan(matrix).any():
        raise ValueError(f"`{name}` must not be NaN, got {int(np.isnan(matrix).sum())} NaN")
    return matrix


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half of all runs of all tasks.

    Of N = runs * tasks sorted scores x_1 <= ... <= x_N, with k = floor(N / 4) cut at either end:
    1 / (N - 2k) * sum_{i=k+1}^{N-k} x_i. It is steadier than the median, and no outlier moves it.
    Tasks weigh alike only if their scores have one scale.

    Args:
        scores: of shape (runs, tasks).

    References:
        Agarwal et al. Deep reinforcement learning at the edge of the statistical precipice. 2021.

    >>> interquartile_mean([[1.0, 2.0], [3.0, 100.0]])
    2.5
    """
    return float(metrics.aggregate_iqm(as_matrix(scores, "scores")))


def paired_differences(values: ArrayLike, reference: ArrayLike) -> Matrix:
    """Values minus those of a reference at the same run and task: D_rt = V_rt - R_rt.

    What a seed adds to both, the difference is free of. Two runs that are both infinite, because
    both diverged, are tied: their difference is 0.

    Args:
        values: of shape (runs, tasks).
        reference: of the same shape; row r must be of the same seed.

    Raises:
        ValueError: if the shapes differ.

    >>> paired_differences([[1.0], [5.0]], [[3.0], [3.0]]).tolist()
    [[-2.0], [2.0]]
    """
    ours, theirs = as_matrix(values, "values"), as_matrix(reference, "reference")
    if ours.shape != theirs.shape:
        raise ValueError(f"`reference` must have shape {ours.shape}, got {theirs.shape}")
    return np.subtract(ours, theirs, out=np.zeros_like(ours), where=ours != theirs)


def probability_of_improvement(scores: ArrayLike, reference: ArrayLike) -> float:
    """How probably a run scores higher than a run of a reference on the same task.

    Mean over tasks of P(X > Y) + P(X = Y) / 2, over all pairs of runs: Mann and Whitney's U over
    (runs of X) * (runs of Y). It says how often, not how much, and does not pair seeds.

    Args:
        scores: of shape (runs, tasks), higher is better (of losses, pass their negatives).
        reference: of shape (other runs, tasks).

    Raises:
        ValueError: if the numbers of tasks differ.

    References:
        Agarwal et al. Deep reinforcement learning at the edge of the statistical precipice. 2021.

    >>> probability_of_improvement([[1.0], [3.0]], [[0.0], [2.0]])
    0.75
    """
    ours, theirs = as_matrix(scores, "scores"), as_matrix(reference, "reference")
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"`reference` must have {ours.shape[1]} tasks, got {theirs.shape[1]}")
    return float(metrics.probability_of_improvement(ours, theirs))


def stratified_interval(
    statistic: Callable[..., float],
    *scores: ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = 2_000,
) -> tuple[float, float]:
    """Percentile-bootstrap interval of a statistic of (runs x tasks) matrices.

    A resample draws, of every task of every matrix on its own, as many runs as there are, with
    replacement. The ends are the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of the
    statistic over the resamples. The tasks stay as they are: the interval is about other seeds,
    not about other tasks. With few runs it is too narrow. For pairs, pass `paired_differences`.

    Args:
        statistic: of as many matrices as are passed, such as `interquartile_mean`.
        scores: matrices of shape (runs, tasks), all finite, with at least 2 runs.
        confidence: coverage of the interval.
        num_resamples: bootstrap resamples (drawn with a fixed seed).

    Returns:
        Lower end, upper end.

    Raises:
        ValueError: if a matrix has one run or an infinite score.

    References:
        Efron, Tibshirani. An introduction to the bootstrap. 1993.
        Agarwal et al. Deep reinforcement learning at the edge of the statistical precipice. 2021.

    >>> stratified_interval(interquartile_mean, [[0.0], [1.0]])
    (0.0, 1.0)
    """
    matrices = [as_matrix(matrix, "scores") for matrix in scores]
    for matrix in matrices:
        if len(matrix) < 2:
            raise ValueError(f"`scores` must have at least 2 runs, got {len(matrix)}")
        if not np.isfinite(matrix).all():
            raise ValueError("`scores` must be finite, got an infinite score")
    starts = np.cumsum([0, *(matrix.shape[1] for matrix in matrices)])

    def statistic_of_columns(*columns: Matrix) -> float:
        return statistic(*(np.column_stack(columns[a:b]) for a, b in pairwise(starts)))

    interval = stats.bootstrap(
        [column for matrix in matrices for column in matrix.T],
        statistic_of_columns,
        n_resamples=num_resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=False,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)

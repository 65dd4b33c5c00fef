"""Performance profiles: which share of runs is how good, or which share of tasks is how fast."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid

from lrpilot.evaluation.statistics.matrices import as_matrix

NUM_POINTS = 100
"""AlgoPerf's code evaluates a profile at so many evenly spaced ratios from 1 to r_max."""


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """The share of runs, over all tasks, that score above each threshold.

    F(tau) = 1 / (N M) sum_{n,m} [x_nm > tau], with N runs of M tasks. A method whose profile is
    above another's everywhere is better whatever one counts as good.

    Args:
        scores: of shape (runs, tasks), higher is better, on one scale for all tasks.
        thresholds: tau, of any shape.

    Returns:
        F at each threshold.

    References:
        Agarwal et al. Deep reinforcement learning at the edge of the statistical precipice. 2021.

    >>> performance_profile([[0.2, 0.4], [0.6, 0.8]], [0.0, 0.5, 0.8]).tolist()
    [1.0, 0.5, 0.0]
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    above = as_matrix(scores, "scores") > limits[..., None, None]
    return np.asarray(above.mean(axis=(-2, -1)))


def steps_to_target(losses: ArrayLike, target: float) -> NDArray[np.float64]:
    """After how many steps, or evaluations, each run first reaches a target.

    Args:
        losses: of shape (runs, steps); a run that diverged may go on with infinity.
        target: a loss at or below it reaches it.

    Returns:
        The first step with losses_t <= target, counted from 1, of each run; infinite for a run that
        never reaches the target.

    >>> steps_to_target([[3.0, 1.0, 2.0], [3.0, 3.0, 3.0]], target=1.0).tolist()
    [2.0, inf]
    """
    reached = as_matrix(losses, "losses") <= target
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf)


def time_to_target_profiles(
    times: Mapping[str, ArrayLike], ratios: ArrayLike
) -> dict[str, NDArray[np.float64]]:
    """Of each method the share of tasks that it finishes within a multiple of the best time.

    With t_sw the median over runs of method s on task w: r_sw = t_sw / min_s' t_s'w, and
    rho_s(tau) = 1 / M sum_w [r_sw <= tau]. Nobody finishes a task that every method misses, and it
    stays among the M. The ratios are to the best of the methods that are passed: another method
    can change the profile of every one.

    Args:
        times: by name, of shape (runs, tasks): time to the target, infinite where it was missed,
            so that a task counts as missed if half of its runs missed it.
        ratios: tau, at which the profiles are evaluated.

    Returns:
        By name, rho at each ratio.

    Raises:
        ValueError: if the numbers of tasks differ, or a time is not positive.

    References:
        Dolan, More. Benchmarking optimization software with performance profiles. 2002.
        Dahl et al. Benchmarking neural network training algorithms. 2023.

    >>> times = {"a": [[1.0, 4.0]], "b": [[2.0, float("inf")]]}
    >>> {k: rho.tolist() for k, rho in time_to_target_profiles(times, [1.0, 2.0]).items()}
    {'a': [1.0, 1.0], 'b': [0.0, 0.5]}
    """
    matrices = {name: as_matrix(matrix, f"times[{name}]") for name, matrix in times.items()}
    num_tasks = {name: matrix.shape[1] for name, matrix in matrices.items()}
    if len(set(num_tasks.values())) != 1:
        raise ValueError(f"`times` must have one number of tasks, got {num_tasks}")
    medians = np.array([np.median(matrix, axis=0) for matrix in matrices.values()])
    if not all((matrix > 0).all() for matrix in matrices.values()):
        raise ValueError(f"`times` must be positive, got {min(map(np.min, matrices.values()))}")
    best = medians.min(axis=0)
    to_best = np.divide(medians, best, out=np.full_like(medians, np.inf), where=np.isfinite(best))
    within = to_best[:, :, None] <= np.asarray(ratios, dtype=np.float64)
    return dict(zip(matrices, within.mean(axis=1), strict=True))


def time_to_target_scores(
    times: Mapping[str, ArrayLike], *, max_ratio: float = 4.0
) -> dict[str, float]:
    """AlgoPerf's score of each method: the integral of its profile of times to the targets.

    score_s = 1 / (r_max - 1) integral_1^{r_max} rho_s(tau) dtau, in [0, 1]; 1 is a method that is
    the fastest on every task. As in AlgoPerf's code the integral is a trapezoidal sum over
    `NUM_POINTS` evenly spaced ratios, which is within 1 / (2 (NUM_POINTS - 1)) of it.

    Args:
        times: as for `time_to_target_profiles`.
        max_ratio: r_max, above 1; who is slower than that on a task gets nothing for it.

    Returns:
        By name, the score.

    Raises:
        ValueError: as `time_to_target_profiles`, or if `max_ratio` is not above 1.

    References:
        Dahl et al. Benchmarking neural network training algorithms. 2023.
        Kasimbeg et al. Accelerating neural network training: an analysis of the AlgoPerf
        competition. 2025.

    >>> scores = time_to_target_scores({"a": [[1.0, 4.0]], "b": [[2.0, float("inf")]]})
    >>> scores["a"], round(scores["b"], 3)  # the integral of b's profile is 1/3
    (1.0, 0.336)
    """
    if not 1 < max_ratio < np.inf:
        raise ValueError(f"`max_ratio` must be finite and above 1, got {max_ratio}")
    ratios = np.linspace(1, max_ratio, NUM_POINTS)
    profiles = time_to_target_profiles(times, ratios)
    return {
        name: float(trapezoid(profile, ratios)) / (max_ratio - 1)
        for name, profile in profiles.items()
    }

"""Tests of paired differences, their correction for many comparisons, intervals of proportions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests


def _differences_that_are_not_zero(differences: ArrayLike) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"`differences` must have shape (pairs,), got {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"`differences` must not be NaN, got {int(np.isnan(values).sum())} NaN")
    return np.compress(values != 0, values)


def signed_rank_test(differences: ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test.

    It asks whether paired differences are symmetric about 0. Of the n that are not 0, the absolute
    values are ranked from 1 to n; W is the smaller one of the sum of ranks of the positive and that
    of the negative ones. Without an effect each of the 2^n choices of signs is equally probable,
    and p is the share of them with as small a W. Of 5 pairs the least p is 2 / 2^5 = 0.0625: fewer
    than 6 cannot be significant at 5 %.

    Args:
        differences: one per independent pair: of the seeds of one task, or of the means of tasks.
            Infinite ones have the highest rank.

    Returns:
        p, exact for up to 50 pairs without ties, and as `scipy.stats.wilcoxon` has it otherwise;
        1 if all differences are 0.

    Raises:
        ValueError: if there is no difference, or a NaN.

    References:
        Wilcoxon. Individual comparisons by ranking methods. 1945.
        Demsar. Statistical comparisons of classifiers over multiple data sets. 2006.

    >>> signed_rank_test([0.1, 0.2, 0.3, 0.4, 0.5])
    0.0625
    """
    values = _differences_that_are_not_zero(differences)
    return float(stats.wilcoxon(values).pvalue) if values.size else 1.0


def sign_test(differences: ArrayLike) -> float:
    """Two-sided p-value of the sign test.

    It asks whether paired differences have median 0. Of the n that are not 0, k are positive;
    without an effect k is binomial with n trials of probability 1/2, so
    p = min(1, 2 P(B <= min(k, n - k))). It needs no symmetry, and sees less than the ranks do.

    Args:
        differences: as for `signed_rank_test`.

    Returns:
        p; 1 if all differences are 0.

    Raises:
        ValueError: if there is no difference, or a NaN.

    References:
        Conover. Practical nonparametric statistics. 1999.

    >>> sign_test([0.1, 0.2, 0.3, -0.4])
    0.625
    """
    values = _differences_that_are_not_zero(differences)
    if not values.size:
        return 1.0
    return float(stats.binomtest(int((values > 0).sum()), values.size).pvalue)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, corrected for there being several.

    Of the sorted p_(1) <= ... <= p_(m): max_{j <= i} min(1, (m - j + 1) p_(j)). Whatever the
    dependence between comparisons, the probability that any true null hypothesis is rejected at
    level alpha is at most alpha.

    Args:
        p_values: of the m comparisons that are reported together.

    Returns:
        The corrected ones, in the order of the raw ones.

    Raises:
        ValueError: if there is none, or one is outside of [0, 1].

    References:
        Holm. A simple sequentially rejective multiple test procedure. 1979.

    >>> holm_correction([0.25, 0.125, 1.0])
    [0.5, 0.375, 1.0]
    """
    if not len(p_values) or not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"`p_values` must be numbers in [0, 1], got {list(p_values)}")
    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def proportion_interval(
    num_successes: int, num_trials: int, *, confidence: float = 0.95, exact: bool = False
) -> tuple[float, float]:
    """Interval of a proportion that was counted in independent trials.

    Wilson's: all p with |k / n - p| <= z sqrt(p (1 - p) / n), where z is the
    (1 + confidence) / 2 quantile of the normal distribution. Its coverage is about `confidence`.
    The exact one of Clopper and Pearson is wider: all p that neither one-sided binomial test
    rejects at (1 - confidence) / 2. Its coverage is at least `confidence`.

    Args:
        num_successes: k.
        num_trials: n, at least 1.
        confidence: coverage of the interval.
        exact: whether it is that of Clopper and Pearson.

    Returns:
        Lower end, upper end.

    Raises:
        ValueError: if not 0 <= k <= n, or n is 0.

    References:
        Wilson. Probable inference, the law of succession, and statistical inference. 1927.
        Clopper, Pearson. The use of confidence or fiducial limits. 1934.

    >>> [round(end, 3) for end in proportion_interval(55, 64)]
    [0.754, 0.924]
    """
    if num_trials < 1:
        raise ValueError(f"`num_trials` must be at least 1, got {num_trials}")
    if not 0 <= num_successes <= num_trials:
        raise ValueError(f"`num_successes` must be between 0 and {num_trials}, got {num_successes}")
    interval = stats.binomtest(num_successes, num_trials).proportion_ci(
        confidence, method="exact" if exact else "wilson"
    )
    return float(interval.low), float(interval.high)

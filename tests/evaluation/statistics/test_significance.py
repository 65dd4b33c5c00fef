"""Tests, their correction, and intervals are those of scipy and statsmodels, and of the formula."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.descriptivestats import sign_test as statsmodels_sign_test
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from lrpilot.evaluation.statistics.significance import (
    holm_correction,
    proportion_interval,
    sign_test,
    signed_rank_test,
)

# few, because statsmodels collects garbage on every call
P_VALUES = [[0.03], [0.04, 0.01, 0.02, 0.01], np.random.default_rng(0).uniform(0, 0.3, 12).tolist()]
COUNTS = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize("num_pairs", [5, 20, 80])
@pytest.mark.parametrize("seed", range(5))
def test_the_signed_rank_test_is_that_of_scipy(num_pairs: int, seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.3, size=num_pairs)

    assert signed_rank_test(differences) == pytest.approx(
        stats.wilcoxon(differences).pvalue, abs=1e-9
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_signed_rank_test_counts_the_choices_of_signs(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.5, size=8)
    ranks = stats.rankdata(np.abs(differences))
    total = ranks.sum()

    def smaller_sum(signs: np.ndarray) -> float:
        return float(min(ranks[signs > 0].sum(), total - ranks[signs > 0].sum()))

    choices = [smaller_sum(np.array(s)) for s in itertools.product((-1, 1), repeat=8)]
    share = np.mean(np.array(choices) <= smaller_sum(differences))

    assert signed_rank_test(differences) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("num_pairs", [5, 6, 10])
def test_pairs_that_all_agree_have_the_least_p_value(num_pairs: int) -> None:
    differences = np.arange(1.0, num_pairs + 1)

    assert signed_rank_test(differences) == 2 / 2**num_pairs
    assert sign_test(differences) == 2 / 2**num_pairs


@pytest.mark.parametrize("seed", range(10))
def test_the_sign_test_is_that_of_statsmodels(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.3, size=15)

    assert sign_test(differences) == pytest.approx(statsmodels_sign_test(differences)[1], abs=1e-9)


@pytest.mark.parametrize("test", [signed_rank_test, sign_test])
def test_a_test_sees_neither_order_nor_which_of_two_is_called_the_reference(test: object) -> None:
    assert callable(test)
    rng = np.random.default_rng(0)
    differences = rng.normal(0.4, size=12)

    assert test(rng.permutation(differences)) == test(differences) == test(-differences)


@pytest.mark.parametrize("test", [signed_rank_test, sign_test])
def test_differences_of_zero_say_nothing(test: object) -> None:
    assert callable(test)

    assert test([0.0, 0.0, 1.0, 2.0, -3.0]) == test([1.0, 2.0, -3.0])
    assert test([0.0, 0.0]) == 1.0


def test_a_diverged_rival_counts_as_the_greatest_difference() -> None:
    assert signed_rank_test([-1.0, 2.0, 3.0, 4.0, math.inf, 5.0]) == signed_rank_test(
        [-1.0, 2.0, 3.0, 4.0, 99.0, 5.0]
    )


@pytest.mark.parametrize("p_values", P_VALUES)
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1]

    assert holm_correction(p_values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("p_values", P_VALUES)
def test_holm_is_what_its_formula_says(p_values: list[float]) -> None:
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    largest, expected = 0.0, [0.0] * len(p_values)
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        expected[i] = largest

    assert holm_correction(p_values) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("p_values", P_VALUES)
def test_holm_keeps_the_order_and_lowers_no_p_value(p_values: list[float]) -> None:
    corrected = holm_correction(p_values)
    order = np.argsort(p_values, kind="stable")

    assert (np.diff(np.array(corrected)[order]) >= -1e-12).all()
    assert all(p <= new + 1e-12 <= 1 + 1e-12 for p, new in zip(p_values, corrected, strict=True))


def test_one_comparison_needs_no_correction() -> None:
    assert holm_correction([0.03]) == [0.03]


@settings(deadline=None, max_examples=25)
@given(COUNTS, st.sampled_from([0.9, 0.95, 0.99]))
def test_the_intervals_are_those_of_statsmodels(counts: tuple[int, int], confidence: float) -> None:
    for exact, method in ((False, "wilson"), (True, "beta")):
        interval = proportion_interval(*counts, confidence=confidence, exact=exact)
        low, high = proportion_confint(*counts, alpha=1 - confidence, method=method)
        assert interval == pytest.approx((low, high), abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(COUNTS)
def test_the_intervals_contain_the_proportion(counts: tuple[int, int]) -> None:
    for exact in (False, True):
        low, high = proportion_interval(*counts, exact=exact)
        assert 0 <= low <= counts[0] / counts[1] + 1e-12
        assert counts[0] / counts[1] - 1e-12 <= high <= 1


def test_the_exact_interval_of_no_success_is_the_rule_of_the_nth_root() -> None:
    low, high = proportion_interval(0, 10, exact=True)

    assert (low, high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)), abs=1e-12)


@pytest.mark.parametrize("test", [signed_rank_test, sign_test])
@pytest.mark.parametrize(
    ("differences", "message"),
    [
        ([], r"`differences` must have shape \(pairs,\), got \(0,\)"),
        ([[1.0]], r"`differences` must have shape \(pairs,\), got \(1, 1\)"),
        ([1.0, math.nan], "`differences` must not be NaN, got 1 NaN"),
    ],
)
def test_what_are_no_differences_is_refused(
    test: object, differences: list[float], message: str
) -> None:
    assert callable(test)
    with pytest.raises(ValueError, match=message):
        test(differences)


@pytest.mark.parametrize("p_values", [[], [0.5, 1.5], [math.nan]])
def test_what_are_no_p_values_is_refused(p_values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"`p_values` must be numbers in \[0, 1\], got"):
        holm_correction(p_values)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="`num_trials` must be at least 1, got 0"):
        proportion_interval(0, 0)
    with pytest.raises(ValueError, match="`num_successes` must be between 0 and 3, got 4"):
        proportion_interval(4, 3)

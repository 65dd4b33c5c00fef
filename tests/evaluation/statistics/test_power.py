"""What the tests find, and how often they are wrong, in a thousand repeats of an experiment."""

import gc
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from lrpilot.evaluation.statistics.significance import holm_correction, sign_test, signed_rank_test

NUM_REPEATS = 1_000
NUM_SEEDS = 20
LEVEL = 0.05
# of the paired difference: its mean over its standard deviation over seeds
EFFECT = 0.7


def rejection_rate(test: object, effect: float) -> float:
    assert callable(test)
    rng = np.random.default_rng(0)
    repeats = rng.normal(effect, size=(NUM_REPEATS, NUM_SEEDS))
    return float(np.mean([test(differences) <= LEVEL for differences in repeats]))


def binomial_error(rate: float) -> float:
    """Three standard errors of a rate in so many repeats."""
    return 3 * math.sqrt(rate * (1 - rate) / NUM_REPEATS)


def sign_test_power(effect: float) -> float:
    """Exact: the number of positive differences is binomial with probability Phi(effect)."""
    counts = np.arange(NUM_SEEDS + 1)
    rejected = [stats.binomtest(int(k), NUM_SEEDS).pvalue <= LEVEL for k in counts]
    return float(stats.binom.pmf(counts, NUM_SEEDS, stats.norm.cdf(effect))[rejected].sum())


def signed_rank_power(effect: float) -> float:
    """That of the paired t-test with 3 / pi as many seeds: its efficiency on normal differences."""
    return float(TTestPower().power(effect, nobs=NUM_SEEDS * 3 / math.pi, alpha=LEVEL))


@pytest.mark.slow
def test_the_signed_rank_test_finds_a_planted_effect_with_the_stated_power() -> None:
    power = signed_rank_power(EFFECT)

    assert 0.8 < power < 0.9
    assert rejection_rate(signed_rank_test, EFFECT) == pytest.approx(
        power, abs=binomial_error(power)
    )


@pytest.mark.slow
def test_the_sign_test_finds_a_planted_effect_with_its_exact_power() -> None:
    power = sign_test_power(EFFECT)

    assert 0.5 < power < signed_rank_power(EFFECT)
    assert rejection_rate(sign_test, EFFECT) == pytest.approx(power, abs=binomial_error(power))


@pytest.mark.slow
def test_the_sign_test_finds_an_absent_effect_at_its_exact_rate() -> None:
    rate = sign_test_power(0.0)

    assert 0.03 < rate <= LEVEL
    assert rejection_rate(sign_test, 0.0) == pytest.approx(rate, abs=binomial_error(rate))


@pytest.mark.slow
def test_the_signed_rank_test_finds_an_absent_effect_at_the_stated_rate() -> None:
    assert rejection_rate(signed_rank_test, 0.0) == pytest.approx(LEVEL, abs=binomial_error(LEVEL))


@pytest.mark.slow
def test_of_three_rivals_that_are_no_different_holm_finds_one_at_the_stated_rate_at_most() -> None:
    """All are compared with one reference, so that the comparisons depend on each other."""
    rng = np.random.default_rng(1)
    gc.freeze()  # statsmodels collects garbage on every call
    raw, corrected = 0, 0
    for _ in range(NUM_REPEATS):
        reference = rng.normal(size=NUM_SEEDS)
        p_values = [signed_rank_test(reference - rng.normal(size=NUM_SEEDS)) for _ in range(3)]
        if min(p_values) <= LEVEL:  # Holm lowers none
            raw += 1
            corrected += min(holm_correction(p_values)) <= LEVEL
    gc.unfreeze()

    assert raw / NUM_REPEATS > LEVEL + binomial_error(LEVEL)
    assert corrected / NUM_REPEATS <= LEVEL + binomial_error(LEVEL)

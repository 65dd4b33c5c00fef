"""Matrix statistics are those of rliable, scipy and arch, and have the properties of their kind."""

import itertools
import math

import numpy as np
import pytest
from arch.bootstrap import IndependentSamplesBootstrap
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from rliable import library, metrics
from scipy import stats

from lrpilot.evaluation.statistics.matrices import (
    as_matrix,
    interquartile_mean,
    paired_differences,
    probability_of_improvement,
    stratified_interval,
)

Matrix = NDArray[np.float64]
SCORES = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(-1e3, 1e3),
)


def random_matrix(seed: int, num_runs: int = 7, num_tasks: int = 5) -> Matrix:
    return np.random.default_rng(seed).normal(size=(num_runs, num_tasks))


@settings(deadline=None)
@given(SCORES)
def test_the_interquartile_mean_is_that_of_rliable_and_of_scipy(scores: Matrix) -> None:
    mean = interquartile_mean(scores)

    assert mean == pytest.approx(metrics.aggregate_iqm(scores), abs=1e-9)
    assert mean == pytest.approx(stats.trim_mean(scores.ravel(), 0.25), abs=1e-9)


def test_the_interquartile_mean_of_eight_scores_is_the_mean_of_the_middle_four() -> None:
    scores = [[-50.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 700.0]]

    assert interquartile_mean(scores) == (2 + 3 + 4 + 5) / 4


@settings(deadline=None, max_examples=25)
@given(SCORES)
def test_the_order_of_the_runs_changes_no_summary(scores: Matrix) -> None:
    permuted = np.random.default_rng(0).permutation(scores, axis=0)
    reference = scores[:1] + 0.5

    assert interquartile_mean(permuted) == pytest.approx(interquartile_mean(scores), abs=1e-9)
    assert probability_of_improvement(permuted, reference) == pytest.approx(
        probability_of_improvement(scores, reference), abs=1e-12
    )


def test_one_diverged_run_of_five_does_not_move_the_interquartile_mean_to_infinity() -> None:
    assert interquartile_mean([[1.0], [2.0], [3.0], [4.0], [math.inf]]) == 3.0


@settings(deadline=None)
@given(SCORES)
def test_paired_differences_are_zero_to_itself_and_change_sign_with_the_roles(
    scores: Matrix,
) -> None:
    other = np.flip(scores, axis=0)

    assert not paired_differences(scores, scores).any()
    np.testing.assert_array_equal(
        paired_differences(scores, other), -paired_differences(other, scores)
    )


def test_two_diverged_runs_are_tied_and_one_is_infinitely_worse() -> None:
    differences = paired_differences([[math.inf], [math.inf]], [[math.inf], [1.0]])

    assert differences.tolist() == [[0.0], [math.inf]]


@pytest.mark.parametrize("seed", range(20))
def test_the_probability_of_improvement_is_that_of_rliable(seed: int) -> None:
    scores, reference = random_matrix(seed), random_matrix(seed + 100, num_runs=4)

    assert probability_of_improvement(scores, reference) == pytest.approx(
        metrics.probability_of_improvement(scores, reference), abs=1e-9
    )


@settings(deadline=None, max_examples=25)
@given(SCORES)
def test_the_probability_of_improvement_counts_pairs_of_runs(scores: Matrix) -> None:
    reference = np.round(scores[::-1])
    by_task = [
        np.mean([(x > y) + (x == y) / 2 for x, y in itertools.product(*columns)])
        for columns in zip(scores.T, reference.T, strict=True)
    ]

    assert probability_of_improvement(scores, reference) == pytest.approx(
        np.mean(by_task), abs=1e-9
    )


@settings(deadline=None, max_examples=25)
@given(SCORES)
def test_the_probabilities_of_either_to_improve_add_up_to_one(scores: Matrix) -> None:
    reference = np.round(scores)
    either = probability_of_improvement(scores, reference)

    assert either + probability_of_improvement(reference, scores) == pytest.approx(1.0)
    assert probability_of_improvement(scores, scores) == pytest.approx(0.5)


def test_a_diverged_run_is_worse_than_every_other_run() -> None:
    assert probability_of_improvement([[-1.0], [-2.0]], [[-math.inf], [-math.inf]]) == 1.0


def test_the_interval_of_one_task_with_two_runs_is_that_of_its_four_resamples() -> None:
    """The mean of a resample is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    scores = [[0.0], [1.0]]

    assert stratified_interval(np.mean, scores, confidence=0.4) == (0.5, 0.5)
    assert stratified_interval(np.mean, scores, confidence=0.9) == (0.0, 1.0)


def test_tasks_are_resampled_on_their_own() -> None:
    """Each task has one score for all runs, so that every resample is the matrix itself."""
    scores = [[0.0, 10.0, 20.0]] * 4

    assert stratified_interval(np.mean, scores) == (10.0, 10.0)


def test_the_interval_is_the_same_on_every_call() -> None:
    scores = random_matrix(0)

    first = stratified_interval(interquartile_mean, scores, num_resamples=200)
    assert stratified_interval(interquartile_mean, scores, num_resamples=200) == first


@pytest.mark.slow
def test_the_interval_of_the_interquartile_mean_is_close_to_that_of_rliable() -> None:
    """rliable draws from numpy's global generator, so that only the distribution is the same."""
    scores = random_matrix(1, num_runs=10)
    _, intervals = library.get_interval_estimates(
        {"ours": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=4_000
    )
    low, high = stratified_interval(interquartile_mean, scores, num_resamples=4_000)

    assert (low, high) == pytest.approx(intervals["ours"][:, 0], abs=0.05 * (high - low))


@pytest.mark.slow
def test_the_interval_of_two_matrices_is_close_to_that_of_arch() -> None:
    ours, theirs = random_matrix(2, num_tasks=2), random_matrix(3, num_runs=6, num_tasks=2)
    bootstrap = IndependentSamplesBootstrap(*ours.T, *theirs.T, seed=np.random.default_rng(5))

    def statistic(*columns: Matrix) -> Matrix:
        a, b, c, d = columns
        ours, theirs = np.stack([a, b], axis=1), np.stack([c, d], axis=1)
        return np.array([probability_of_improvement(ours, theirs)])

    expected = bootstrap.conf_int(statistic, reps=500, method="percentile")
    low, high = stratified_interval(probability_of_improvement, ours, theirs, num_resamples=500)

    assert (low, high) == pytest.approx(expected[:, 0], abs=0.15 * (high - low))


@settings(deadline=None, max_examples=20)
@given(SCORES.filter(lambda scores: len(scores) > 1))
def test_the_interval_lies_within_the_scores(scores: Matrix) -> None:
    low, high = stratified_interval(interquartile_mean, scores, num_resamples=100)

    assert scores.min() - 1e-9 <= low <= high <= scores.max() + 1e-9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], r"`scores` must have shape \(runs, tasks\), got \(2,\)"),
        ([[]], r"`scores` must have shape \(runs, tasks\), got \(1, 0\)"),
        ([[1.0, math.nan]], "`scores` must not be NaN, got 1 NaN"),
    ],
)
def test_what_is_no_matrix_of_scores_is_refused(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_matrix(values, "scores")  # type: ignore[arg-type]


def test_matrices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`reference` must have shape \(2, 1\), got \(1, 1\)"):
        paired_differences([[1.0], [2.0]], [[1.0]])
    with pytest.raises(ValueError, match="`reference` must have 1 tasks, got 2"):
        probability_of_improvement([[1.0]], [[1.0, 2.0]])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0, 2.0]], "`scores` must have at least 2 runs, got 1"),
        ([[1.0], [math.inf]], "`scores` must be finite, got an infinite score"),
    ],
)
def test_scores_without_a_bootstrap_are_refused(scores: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stratified_interval(interquartile_mean, scores)

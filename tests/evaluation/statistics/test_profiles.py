"""Profiles are those of rliable, and scores of times to a target those that AlgoPerf published."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from rliable import library
from scipy import integrate

from lrpilot.evaluation.statistics.profiles import (
    NUM_POINTS,
    performance_profile,
    steps_to_target,
    time_to_target_profiles,
    time_to_target_scores,
)

Matrix = NDArray[np.float64]
INF = math.inf
METHODS = ("a", "b", "c")
# (methods, runs, tasks)
TIMES = st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
    lambda shape: hnp.arrays(
        np.float64, (len(METHODS), *shape), elements=st.floats(0.5, 10.0) | st.just(INF)
    )
)

# the steps to the target of nine workloads, and the scores by steps, of the second leaderboard:
# github.com/mlcommons/submissions_algorithms, artifacts/leaderboard_v2/, time_to_targets_steps.csv
# at 0b40d9c and scores_steps.csv at 05f7967
ALGOPERF_STEPS = {
    "AdEMAMix": (8371, 10206, 44503, INF, INF, 67706, INF, 27247, 112742),
    "Cautious NAdamW": (INF, 7518, 58199, INF, INF, INF, INF, 24948, 112372),
    "Lion": (INF, 10645, 59524, INF, INF, INF, INF, 33386, 109080),
    "Muon (JAX)": (INF, 8801, 40724, INF, 151926, INF, INF, INF, INF),
    "Muon (PyTorch)": (7716, INF, 39220, INF, INF, INF, INF, 7711, 97224),
    "NAdamW": (8286, 9924, 58784, INF, 152461, INF, INF, INF, INF),
    "NAdamW (Baseline v0.5)": (9145, 6648, 47039, INF, INF, INF, INF, 20879, 118600),
    "NAdamW (ResNet)": (INF, 9220, 53029, INF, INF, INF, INF, 32738, INF),
    "Schedule-Free AdamW": (10346, 10599, INF, INF, INF, INF, 90588, 15853, 133517),
    "Schedule-Free AdamW (JAX)": (INF, 7160, 57242, INF, 175889, INF, INF, 27341, 122198),
    "Schedule-Free AdamW (JAX v2)": (9005, 8750, 68640, INF, 164206, INF, INF, 27457, INF),
    "Schedule-Free AdamW v2": (7951, 12431, INF, INF, INF, 83184, 78669, 28449, 73222),
    "DiLoCo (Single Worker)": (INF, 9342, 61209, INF, INF, INF, INF, INF, INF),
    "DiLoCo v2 (Single Worker)": (INF, 10140, 59550, INF, INF, INF, INF, INF, INF),
}
ALGOPERF_SCORES = {
    "AdEMAMix": 0.5258136924803595,
    "Cautious NAdamW": 0.31986531986531946,
    "Lion": 0.2732884399551064,
    "Muon (JAX)": 0.31986531986531946,
    "Muon (PyTorch)": 0.4326599326599318,
    "NAdamW": 0.40404040404040326,
    "NAdamW (Baseline v0.5)": 0.45454545454545503,
    "NAdamW (ResNet)": 0.19528619528619492,
    "Schedule-Free AdamW": 0.4461279461279469,
    "Schedule-Free AdamW (JAX)": 0.4090909090909087,
    "Schedule-Free AdamW (JAX v2)": 0.41245791245791213,
    "Schedule-Free AdamW v2": 0.5252525252525259,
    "DiLoCo (Single Worker)": 0.18630751964085265,
    "DiLoCo v2 (Single Worker)": 0.1829405162738493,
}


def named(times: Matrix) -> dict[str, Matrix]:
    return dict(zip(METHODS, times, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_a_profile_is_that_of_rliable(seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(6, 4))
    thresholds = np.linspace(-2, 2, 9)

    np.testing.assert_allclose(
        performance_profile(scores, thresholds),
        library.score_distributions(scores, thresholds),
        rtol=0,
        atol=1e-9,
    )


@settings(deadline=None)
@given(hnp.arrays(np.float64, (5, 3), elements=st.floats(-10, 10)))
def test_a_profile_falls_from_one_to_zero_whatever_the_order_of_the_runs(scores: Matrix) -> None:
    thresholds = np.linspace(-11, 11, 23)
    profile = performance_profile(scores, thresholds)

    assert (profile[0], profile[-1]) == (1.0, 0.0)
    assert (np.diff(profile) <= 0).all()
    np.testing.assert_array_equal(performance_profile(scores[::-1], thresholds), profile)


@settings(deadline=None)
@given(hnp.arrays(np.float64, (4, 2), elements=st.floats(0, 1)), st.floats(0, 1))
def test_a_method_that_is_never_worse_has_the_higher_profile(scores: Matrix, gain: float) -> None:
    thresholds = np.linspace(0, 2, 21)
    better = performance_profile(scores + gain, thresholds)

    assert (better >= performance_profile(scores, thresholds)).all()


def test_the_scores_are_those_that_algoperf_published() -> None:
    scores = time_to_target_scores({name: [steps] for name, steps in ALGOPERF_STEPS.items()})

    assert scores == pytest.approx(ALGOPERF_SCORES, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(TIMES)
def test_the_score_is_close_to_the_exact_integral_of_the_profile(times: Matrix) -> None:
    """Of a task with ratio r the integral from 1 to 4 of [r <= tau] is max(0, 4 - r)."""
    medians = np.median(times, axis=1)
    best = medians.min(axis=0)
    exact = {
        name: sum(
            max(0.0, 4 - t / b) / 3 if math.isfinite(t) else 0.0
            for t, b in zip(mine, best, strict=True)
        )
        / len(best)
        for name, mine in named(medians).items()
    }

    assert time_to_target_scores(named(times)) == pytest.approx(
        exact, abs=0.5 / (NUM_POINTS - 1) + 1e-9
    )


def test_the_profile_integrates_to_the_score_on_a_fine_grid() -> None:
    times = {"a": [[1.0, 5.0]], "b": [[3.0, 2.0]]}
    score, _ = integrate.quad(
        lambda tau: float(time_to_target_profiles(times, [tau])["b"][0]), 1, 4, points=[3.0]
    )

    assert time_to_target_scores(times)["b"] == pytest.approx(score / 3, abs=0.5 / (NUM_POINTS - 1))


@settings(deadline=None, max_examples=40)
@given(TIMES)
def test_profiles_rise_within_zero_and_one_and_so_do_scores_lie(times: Matrix) -> None:
    for profile in time_to_target_profiles(named(times), np.linspace(1, 30, 50)).values():
        assert (np.diff(profile) >= 0).all()
        assert 0 <= profile[0] <= profile[-1] <= 1
    assert all(0 <= score <= 1 for score in time_to_target_scores(named(times)).values())


@settings(deadline=None, max_examples=40)
@given(TIMES)
def test_neither_the_order_of_runs_and_tasks_nor_the_unit_of_time_matters(times: Matrix) -> None:
    scores = time_to_target_scores(named(times))

    assert time_to_target_scores(named(times[:, ::-1, ::-1])) == pytest.approx(scores)
    assert time_to_target_scores(named(4 * times)) == pytest.approx(scores)


def test_who_is_fastest_everywhere_scores_one_and_who_is_too_slow_zero() -> None:
    times = {"fast": [[1.0, 2.0]], "slow": [[4.01, 9.0]]}

    assert time_to_target_scores(times) == {"fast": 1.0, "slow": 0.0}


def test_a_task_that_everyone_misses_counts_as_missed_by_all() -> None:
    assert time_to_target_scores({"a": [[1.0, INF]], "b": [[2.0, INF]]})["a"] == 0.5


def test_a_method_takes_the_median_of_its_runs() -> None:
    profiles = time_to_target_profiles({"a": [[1.0], [9.0], [2.0]], "b": [[2.0]]}, [1.0])

    assert {name: rho.tolist() for name, rho in profiles.items()} == {"a": [1.0], "b": [1.0]}


def test_a_run_reaches_a_target_when_it_first_equals_it() -> None:
    losses = [[4.0, 2.0, 3.0, 1.0], [1.0, 9.0, INF, INF], [4.0, 3.0, 3.0, 3.0]]

    assert steps_to_target(losses, target=2.0).tolist() == [2.0, 1.0, INF]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"a": [[1.0]], "b": [[1.0, 2.0]]}, "`times` must have one number of tasks, got"),
        ({"a": [[1.0], [0.0]]}, "`times` must be positive, got 0.0"),
        ({"a": [1.0]}, r"`times\[a\]` must have shape \(runs, tasks\), got \(1,\)"),
        ({}, "`times` must have one number of tasks, got {}"),
    ],
)
def test_what_are_no_times_is_refused(times: dict[str, list[list[float]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_to_target_scores(times)


@pytest.mark.parametrize("max_ratio", [1.0, 0.5, INF, math.nan])
def test_a_ratio_that_bounds_nothing_is_refused(max_ratio: float) -> None:
    with pytest.raises(ValueError, match="`max_ratio` must be finite and above 1, got"):
        time_to_target_scores({"a": [[1.0]]}, max_ratio=max_ratio)

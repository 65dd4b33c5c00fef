import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrpilot.evaluation.statistics import best_factor, mean_and_spread, select, unique


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=30))
def test_the_interval_contains_the_mean_and_lies_in_the_data(values: list[float]) -> None:
    mean, low, high = mean_and_spread(values, num_resamples=1000)
    rounding = 1e-12 * max(map(abs, values))

    assert mean == pytest.approx(np.mean(values))
    assert low - rounding <= mean <= high + rounding
    assert min(values) - rounding <= low
    assert high <= max(values) + rounding


def test_the_interval_shrinks_as_one_over_the_root_of_the_number_of_seeds() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (25, 100, 400):
        _, low, high = mean_and_spread(rng.normal(size=n).tolist())
        widths.append(high - low)

    assert widths[0] > widths[1] > widths[2]
    assert widths[0] / widths[2] == pytest.approx(4.0, rel=0.3)


def test_the_interval_of_normal_values_is_close_to_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(size=400)
    mean, low, high = mean_and_spread(values.tolist())
    half = 1.96 * values.std() / 20

    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 9.0]
    _, low, high = mean_and_spread(values, confidence=0.99)
    _, inner_low, inner_high = mean_and_spread(values, confidence=0.5)

    assert low < inner_low < inner_high < high


def test_the_interval_is_the_same_on_every_call() -> None:
    values = [0.3, 0.1, 0.7, 0.2, 0.4]

    assert mean_and_spread(values) == mean_and_spread(values)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("others", [[], [1.0], [1.0, 2.0, 3.0]])
def test_one_value_that_is_not_finite_makes_everything_infinite(
    bad: float, others: list[float]
) -> None:
    assert mean_and_spread([*others, bad]) == (math.inf, math.inf, math.inf)


@pytest.mark.parametrize("num_seeds", [1, 2, 3, 4])
def test_fewer_than_five_seeds_have_a_range_and_no_interval(num_seeds: int) -> None:
    values = [3.0, 1.0, 2.0, 2.0][:num_seeds]

    assert mean_and_spread(values) == (float(np.mean(values)), min(values), max(values))


def row(factor: float, seed: int, held_out: float, test: float = 0.0) -> dict[str, float]:
    return {
        "initial_lr_factor": factor,
        "seed": seed,
        "held_out_loss": held_out,
        "test_loss": test,
        "test_accuracy": 1.0 - test,
        "train_loss": test,
    }


def test_best_factor_goes_by_the_mean_held_out_loss_and_not_by_test() -> None:
    rows = [
        row(0.1, 0, held_out=1.0, test=0.9),
        row(0.1, 1, held_out=2.0, test=0.9),
        row(1.0, 0, held_out=1.9, test=0.0),
        row(1.0, 1, held_out=1.9, test=0.0),
    ]

    assert best_factor(rows) == 0.1


def test_best_factor_avoids_a_factor_of_which_one_seed_diverged() -> None:
    rows = [row(0.1, 0, 5.0), row(0.1, 1, 5.0), row(1.0, 0, 0.1), row(1.0, 1, math.inf)]

    assert best_factor(rows) == 0.1


def test_best_factor_is_defined_when_everything_diverged() -> None:
    assert best_factor([row(0.1, 0, math.inf), row(1.0, 0, math.inf)]) == 0.1


def test_select_takes_the_rows_that_meet_all_conditions() -> None:
    rows = [row(0.1, 0, 1.0), row(0.1, 1, 2.0), row(1.0, 0, 3.0)]

    assert select(rows, initial_lr_factor=0.1, seed=0) == [rows[0]]
    assert select(rows) == rows


def test_unique_keeps_the_order_of_first_appearance() -> None:
    assert unique([{"a": 3}, {"a": 1}, {"a": 3}, {"a": 2}], "a") == [3, 1, 2]

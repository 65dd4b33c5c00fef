"""Stages are counted as the GreedyLR paper counts them, and its tables are met to their digits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lrpilot.evaluation.statistics.stages import (
    MARGIN,
    Outcomes,
    final_outcomes,
    losses_at_stages,
    stage_outcomes,
)

Matrix = NDArray[np.float64]
PAIRS = hnp.arrays(
    np.float64, st.tuples(st.just(2), st.integers(1, 6), st.just(3)), elements=st.floats(0, 3)
)

SMALL_MODELS = Outcomes(clearly_better=48, slightly_better=64, slightly_worse=58, clearly_worse=26)
LARGE_MODELS = Outcomes(clearly_better=15, slightly_better=4, slightly_worse=1, clearly_worse=4)


@pytest.mark.parametrize(
    ("counts", "percentages"),
    [
        (SMALL_MODELS, (86.73, 57.14, 24.49, 62.24, 13.27)),
        (LARGE_MODELS, (83.33, 79.16, 62.5, 20.83, 16.66)),
    ],
)
def test_the_counts_of_the_paper_give_its_percentages(
    counts: Outcomes, percentages: tuple[float, ...]
) -> None:
    """Its tables 1 and 2, 5 and 6; some of these it cuts instead of rounding."""
    shares = [100 * share for share in counts.shares.values()]

    assert list(counts.shares) == [
        "as good or better",
        "better",
        "clearly better",
        "as good",
        "worse",
    ]
    assert shares == pytest.approx(percentages, abs=0.01)


def test_the_stages_of_the_paper_add_up_to_its_counts() -> None:
    """Its table 3 by stage, 92.42, 81.81 and 85.94 %, is 61 and 54 of 66, and 55 of 64."""
    by_stage = [(61, 66), (54, 66), (55, 64)]

    assert [100 * k / n for k, n in by_stage] == pytest.approx([92.42, 81.81, 85.94], abs=0.01)
    assert sum(k for k, _ in by_stage) == SMALL_MODELS.counts["as good or better"]
    assert sum(n for _, n in by_stage) == sum(SMALL_MODELS)


@pytest.mark.parametrize(
    ("loss", "outcome"),
    [
        (0.5, "clearly_better"),
        (0.75, "clearly_better"),
        (0.76, "slightly_better"),
        (0.99, "slightly_better"),
        (1.0, "slightly_worse"),
        (1.24, "slightly_worse"),
        (1.25, "clearly_worse"),
        (math.inf, "clearly_worse"),
    ],
)
def test_a_loss_against_a_rival_of_one_has_the_outcome_of_its_margin(
    loss: float, outcome: str
) -> None:
    outcomes = stage_outcomes([[loss]], [[1.0]], margin=0.25)

    assert outcomes._asdict() == {name: int(name == outcome) for name in Outcomes._fields}


def test_a_method_whose_rival_diverged_is_clearly_better_and_as_good_if_both_did() -> None:
    assert stage_outcomes([[1.0]], [[math.inf]]).clearly_better == 1
    assert stage_outcomes([[math.inf]], [[math.inf]]).slightly_worse == 1


def test_a_margin_of_one_percent_is_that_of_the_ratio_to_the_rival() -> None:
    losses, rival = np.array([[2.0, 1.97, 2.03]]), np.array([[2.01, 2.0, 2.0]])
    outcomes = stage_outcomes(losses / rival, rival / rival, margin=0.01)

    assert outcomes == Outcomes(1, 1, 0, 1)


@settings(deadline=None)
@given(PAIRS)
def test_every_stage_of_every_pair_is_counted_once_in_any_order(pairs: Matrix) -> None:
    losses, rival = pairs
    outcomes = stage_outcomes(losses, rival)

    assert sum(outcomes) == losses.size
    assert stage_outcomes(losses[::-1], rival[::-1]) == outcomes


@settings(deadline=None)
@given(PAIRS)
def test_the_rival_is_clearly_worse_where_the_method_is_clearly_better(pairs: Matrix) -> None:
    losses, rival = pairs
    outcomes, reverse = stage_outcomes(losses, rival), stage_outcomes(rival, losses)

    assert outcomes.clearly_better == reverse.clearly_worse
    assert outcomes.clearly_worse == reverse.clearly_better


@settings(deadline=None)
@given(PAIRS)
def test_at_the_end_each_pair_has_one_outcome(pairs: Matrix) -> None:
    losses, rival = pairs

    assert final_outcomes(losses, rival) == stage_outcomes(losses[:, -1:], rival[:, -1:])
    assert sum(final_outcomes(losses, rival)) == len(losses)


def test_a_head_start_is_no_win_at_the_end() -> None:
    losses, rival = [[1.0, 0.8, 0.7]], [[2.0, 1.0, 0.5]]

    assert stage_outcomes(losses, rival).shares["clearly better"] == pytest.approx(2 / 3)
    assert final_outcomes(losses, rival).shares["clearly better"] == 0.0


@pytest.mark.parametrize(
    ("num_steps", "steps"), [(1, [1, 1, 1]), (7, [1, 4, 7]), (70, [7, 35, 70])]
)
def test_a_stage_is_the_first_step_that_completes_its_share(
    num_steps: int, steps: list[int]
) -> None:
    assert losses_at_stages([np.arange(1.0, num_steps + 1)]).tolist() == [steps]


def test_the_interval_of_the_paper_if_its_last_stage_is_counted_alone() -> None:
    """55 of 64 pairs; that 196 stages were independent trials would make it narrower."""
    low, high = Outcomes(55, 0, 0, 9).intervals()["as good or better"]
    exact_low, exact_high = Outcomes(55, 0, 0, 9).intervals(exact=True)["as good or better"]
    all_low, all_high = SMALL_MODELS.intervals()["as good or better"]

    assert (low, high) == pytest.approx((0.754, 0.924), abs=0.001)
    assert exact_low < low < high < exact_high
    assert all_high - all_low < 0.6 * (high - low)


def test_a_margin_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="`margin` must be above 0, got 0"):
        stage_outcomes([[1.0]], [[1.0]], margin=0)
    assert MARGIN == 0.1


def test_pairs_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`reference` must have shape \(2, 1\), got \(1, 1\)"):
        stage_outcomes([[1.0], [2.0]], [[1.0]])

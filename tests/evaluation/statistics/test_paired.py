"""One scheduler against each other one, from rows of runs."""

import math
from typing import Any

import pytest

from lrpilot.evaluation.statistics.paired import compare_with, paired_table
from lrpilot.evaluation.statistics.significance import holm_correction, signed_rank_test

SEEDS = range(6)
POLICY = [0.5, 0.4, 0.6, 0.5, 0.3, 0.7]


def rows_of(losses: dict[str, list[float]], *, factor: float = 1.0) -> list[dict[str, Any]]:
    return [
        {
            "scheduler": name,
            "seed": seed,
            "initial_lr_factor": factor,
            "held_out_loss": loss,
            "first_loss": 2.0,
        }
        for name, values in losses.items()
        for seed, loss in enumerate(values)
    ]


COSINE = [loss + 0.01 * (seed + 1) for seed, loss in enumerate(POLICY)]
CONSTANT = [loss - 0.11 * (-1) ** seed * (seed + 1) for seed, loss in enumerate(POLICY)]
ROWS = rows_of({"policy": POLICY, "cosine": COSINE, "constant": CONSTANT})


def test_there_is_one_comparison_with_each_other_scheduler() -> None:
    assert [compared.scheduler for compared in compare_with(ROWS, "policy")] == [
        "cosine",
        "constant",
    ]
    assert [compared.scheduler for compared in compare_with(ROWS, "cosine")] == [
        "policy",
        "constant",
    ]


def test_the_differences_are_seed_by_seed() -> None:
    shuffled = ROWS[:6] + ROWS[6:][::-1]
    for rows in (ROWS, shuffled):
        (cosine,) = (c for c in compare_with(rows, "policy") if c.scheduler == "cosine")
        assert cosine.differences == pytest.approx([-0.01 * (seed + 1) for seed in SEEDS])


def test_the_p_values_are_of_the_signed_ranks_and_corrected_together() -> None:
    cosine, constant = compare_with(ROWS, "policy")
    raw = [signed_rank_test(compared.differences) for compared in (cosine, constant)]

    assert raw[0] == 2 / 2**6
    assert [cosine.p_value, constant.p_value] == holm_correction(raw)


def test_a_lower_loss_is_an_improvement() -> None:
    better, worse = [0.1] * 6, [0.2] * 6
    (compared,) = compare_with(rows_of({"policy": better, "cosine": worse}), "policy")

    assert compared.probability == 1.0


def test_a_run_that_diverged_counts_with_its_loss_at_the_start() -> None:
    diverged = [0.5, 0.5, 0.5, 0.5, 0.5, math.inf]
    (compared,) = compare_with(rows_of({"policy": [0.5] * 6, "cosine": diverged}), "policy")

    assert compared.differences == [0.0] * 5 + [-1.5]


def test_each_scheduler_is_taken_at_its_best_initial_learning_rate() -> None:
    worse = rows_of({"policy": [1.9] * 6, "cosine": [1.9] * 6}, factor=10.0)
    rows = rows_of({"policy": POLICY, "cosine": COSINE}) + worse

    assert compare_with(rows, "policy") == compare_with(rows[:12], "policy")
    (tuned_elsewhere,) = compare_with(rows, "policy", tuning_rows=worse)
    assert tuned_elsewhere.differences == [0.0] * 6


def test_the_table_has_a_line_for_each_comparison() -> None:
    assert paired_table(ROWS, "policy") == [
        ["policy minus", "held-out loss", "from", "to", "P(improves)", "p (Holm)"],
        ["cosine", "-0.035", "-0.04833", "-0.02167", "0.61", "0.062"],
        ["constant", "-0.055", "-0.385", "+0.275", "0.50", "0.84"],
    ]


@pytest.mark.parametrize("reference", ["adam", "policy"])
def test_a_reference_without_rows_or_rival_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="`reference` must be one of at least 2 schedulers"):
        compare_with(rows_of({"policy": POLICY}), reference)


def test_schedulers_on_other_seeds_are_refused() -> None:
    rows = rows_of({"policy": POLICY, "cosine": COSINE[:5]})

    with pytest.raises(
        ValueError, match=r"`rows` must have cosine on the seeds \[0, 1, 2, 3, 4, 5\]"
    ):
        compare_with(rows, "policy")

"""What the table says of measured losses."""

import numpy as np
import pytest

from lrpilot.evaluation.experiments.claims import Claim, claims_table, compared
from lrpilot.evaluation.experiments.greedy.pairs import (
    PAPER_SHARES,
    PairLosses,
    compare_share,
    pair_claims,
)
from lrpilot.evaluation.experiments.greedy.rescue import regrets
from lrpilot.evaluation.experiments.greedy.rivals import affordable_steps, passes_per_step
from lrpilot.evaluation.runs.grid import Result

CLAIM = Claim("share", "86.7 %", "80.0 %", "50.0 %", "less often")


def pair_losses(greedy: list[float], rival: list[float]) -> PairLosses:
    """The same losses at all stages."""
    return PairLosses(*(np.repeat(np.array(x)[:, None], 3, axis=1) for x in (greedy, rival)))


def test_a_quick_table_has_no_verdict() -> None:
    assert "less often" in claims_table([CLAIM])
    assert "less often" not in claims_table([CLAIM], with_verdicts=False)


@pytest.mark.parametrize(
    ("losses", "word"),
    [
        ([1.0] * 5, "better than x"),
        ([3.0] * 5, "worse than x"),
        ([2.0] * 5, "not different from x"),
    ],
)
def test_a_paired_difference_is_put_in_words(losses: list[float], word: str) -> None:
    assert compared(losses, [2.0] * 5, "x")[1] == word


def test_few_seeds_have_no_verdict() -> None:
    assert compared([1.0] * 4, [2.0] * 4, "x")[1] == "too few for a verdict"


def test_a_pair_counts_three_times_in_the_papers_protocol_and_once_in_the_fair_one() -> None:
    losses = pair_losses([1.0, 2.0], [2.0, 1.0])
    better = next(c for c in pair_claims(losses, losses) if c.name == "better")
    assert better.as_in_paper.startswith("50.0 % of 6 stages")
    assert better.fair == "50.0 % [9.5, 90.5]"
    assert better.verdict == "as in the paper, to the interval"


def test_the_papers_shares_are_those_that_its_counts_give() -> None:
    counts = {"as good or better": 170, "better": 112, "clearly better": 48}
    assert {name: round(count / 196, 4) for name, count in counts.items()} == PAPER_SHARES


def test_two_runs_that_diverged_have_no_lead() -> None:
    assert pair_losses([np.inf, 1.0], [np.inf, 3.0]).lead.tolist() == [0.0, 2.0]


def test_a_share_above_the_papers_is_called_so() -> None:
    assert compare_share(0.2, (0.3, 0.7)) == "more often than in the paper"


def test_the_best_method_at_its_best_rate_alone_has_no_regret() -> None:
    losses = {"best": np.array([[0.5], [0.25]]), "other": np.array([[1.0], [1.0]])}
    found = {name: values.tolist() for name, values in regrets(losses).items()}
    assert found == {"best": [0.0, 0.0], "other": [0.5, 0.75]}


def test_a_search_of_three_trials_per_step_halves_the_steps_that_are_paid_for() -> None:
    searched = Result({"total_steps": 100, "num_trials": 300}, [], [1.0] * 100)
    assert passes_per_step(searched) == 6.0
    assert affordable_steps(searched) == 50


def test_steps_without_a_search_cost_three_passes() -> None:
    assert passes_per_step(Result({"total_steps": 10}, [], [1.0] * 10)) == 3.0

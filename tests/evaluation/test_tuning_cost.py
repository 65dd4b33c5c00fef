"""What one untuned run is worth."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrpilot.evaluation.tuning_cost import (
    MOST_RUNS,
    bounded_losses,
    expected_best,
    tuning_table,
    worth_in_runs,
)

LOSSES = st.lists(st.floats(0.0, 10.0), min_size=1, max_size=9)


def row(
    factor: float, loss: float, *, first: float = 2.0, name: str = "policy"
) -> dict[str, object]:
    return {
        "scheduler": name,
        "initial_lr_factor": factor,
        "held_out_loss": loss,
        "first_loss": first,
    }


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=5), st.integers(1, 4))
def test_the_expected_best_is_the_mean_over_all_draws(losses: list[float], num_runs: int) -> None:
    draws = list(itertools.product(losses, repeat=num_runs))
    mean = sum(map(min, draws)) / len(draws)
    assert expected_best(losses, num_runs) == pytest.approx(mean, abs=1e-12)


@given(LOSSES, st.integers(1, 30))
def test_another_run_never_makes_a_search_worse(losses: list[float], num_runs: int) -> None:
    assert expected_best(losses, num_runs + 1) <= expected_best(losses, num_runs) + 1e-12


@given(LOSSES)
def test_a_method_is_worth_one_run_of_itself(losses: list[float]) -> None:
    assert worth_in_runs([*losses, *losses], losses) == 1


def test_a_policy_below_every_run_of_its_rival_is_worth_more_than_any_search() -> None:
    assert math.isinf(worth_in_runs([0.5], [0.6, 0.7]))


@pytest.mark.parametrize("share", [2, 5, 10])
def test_a_policy_equal_to_the_best_of_n_is_worth_what_finding_it_costs(share: int) -> None:
    """One in n rates gives 0, the others 1: the expected best of N is (1 - 1 / n)^N."""
    rival = [0.0] + [1.0] * (share - 1)
    worth = worth_in_runs([0.2], rival)
    assert worth == math.ceil(math.log(0.2) / math.log(1 - 1 / share))
    assert worth <= MOST_RUNS


def test_a_run_that_diverged_counts_as_one_that_was_not_trained() -> None:
    rows = [row(1.0, math.inf), row(1.0, 1.0), row(3.0, 0.5), row(3.0, 0.7)]
    assert bounded_losses(rows) == {1.0: 1.5, 3.0: pytest.approx(0.6)}


def test_the_table_has_sensitivity_and_worth_of_the_first_method() -> None:
    rows = [row(1.0, 0.5), row(3.0, 0.7)]
    rows += [row(1.0, 0.4, name="linear"), row(3.0, math.inf, name="linear")]
    _, policy, linear = tuning_table(rows)
    assert policy == ["policy", "0.6", "0.5", "0.6", "0.7", "0.2", "1"]
    assert linear == ["linear", "1.2", "0.4", "1.2", "2", "0.8", "3"]

"""The LR range test, and the run after it."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrpilot import D2ZLR
from lrpilot.evaluation.methods.range_test import RangeTestLR, tenth_of_lowest
from lrpilot.evaluation.runs.grid import Method, train
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.runs import Run

SGD = partial(torch.optim.SGD, momentum=0.9)
TASK = QuadraticTask(name="bowl", optimizer=SGD, base_lr=0.1, total_steps=100)


def trained(scheduler: Any, run: Run, num_steps: int) -> list[tuple[float, float]]:
    """Learning rate and loss of the next steps."""
    rows = []
    for _ in range(num_steps):
        loss = run.step()
        rows.append((float(run.optimizer.param_groups[0]["lr"]), float(loss)))
        scheduler.step(loss)
    return rows


def started(**arguments: Any) -> tuple[RangeTestLR, Run]:
    run = TASK.start(0)
    given_: dict[str, Any] = {"total_steps": 100, **arguments}
    return RangeTestLR(run.optimizer, run=run, **given_), run


def test_the_lr_of_the_test_rises_exponentially_from_end_to_end() -> None:
    scheduler, run = started(min_factor=1e-3, max_factor=1e-1)
    lrs = [lr for lr, _ in trained(scheduler, run, 10)]
    assert lrs == pytest.approx([0.1 * 1e-3 * 100 ** (i / 9) for i in range(10)])


def test_after_the_test_the_run_is_a_fresh_one_under_d2z_over_the_steps_that_are_left() -> None:
    scheduler, run = started()
    trained(scheduler, run, 10)
    assert scheduler.peak_factor is not None
    fresh = replace(TASK, base_lr=0.1 * scheduler.peak_factor).start(0)
    num_left = 100 - len(scheduler.state_dict()["losses"])
    rows = trained(D2ZLR(fresh.optimizer, total_steps=num_left), fresh, 20)
    num_tested = 100 - num_left
    scheduler, run = started()
    after = trained(scheduler, run, num_tested + 20)[num_tested:]
    np.testing.assert_allclose(after, rows, rtol=1e-5)


def test_test_and_training_together_take_the_steps_of_any_other_run() -> None:
    result = train(TASK, Method("range_test", RangeTestLR), initial_lr_factor=1.0, seed=0)
    assert len(result.losses) == 100
    assert result.lrs[-1] < 0.02 * max(result.lrs[10:])


def test_a_loss_of_four_times_the_first_ends_the_test() -> None:
    scheduler, run = started()
    for loss in (1.0, 0.5, 3.9, 4.1):
        run.step()
        scheduler.step(loss)
    assert scheduler.peak_factor == pytest.approx(1e-4 * 10 ** (6 / 9))
    assert run.num_steps == 0


def test_a_loss_that_is_not_finite_ends_the_test() -> None:
    scheduler, run = started()
    for loss in (1.0, math.nan):
        run.step()
        scheduler.step(loss)
    assert scheduler.peak_factor == 1e-4


@pytest.mark.parametrize("total_steps", [1, 49])
def test_where_a_test_would_be_shorter_than_five_steps_it_is_d2z_from_the_initial_lr(
    total_steps: int,
) -> None:
    scheduler, run = started(total_steps=total_steps)
    lrs = [lr for lr, _ in trained(scheduler, run, total_steps)]
    assert lrs == D2ZLR.simulate(total_steps=total_steps, initial_lr=0.1)[:-1]


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=20))
def test_the_peak_is_at_most_a_tenth_of_the_highest_lr_of_the_test(losses: list[float]) -> None:
    factors = [2.0**i for i in range(len(losses))]
    assert tenth_of_lowest(factors, losses) in [factor / 10 for factor in factors]


@pytest.mark.parametrize("num_steps", [4, 30])
def test_a_run_is_resumed_bit_identically(num_steps: int) -> None:
    whole, run = started()
    trained(whole, run, num_steps)
    resumed, other = started()
    other.load_state_dict(copy.deepcopy(run.state_dict()))
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert trained(resumed, other, 40) == trained(whole, run, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "`total_steps` must be at least 1, got 0"),
        ({"test_share": 1.0}, r"`test_share` must be in \[0, 1\), got 1.0"),
        ({"min_factor": 0.0}, r"`min_factor` must be in \(0, inf\), got 0.0"),
        ({"max_factor": 1e-3}, r"`max_factor` must be in \(0.001, inf\), got 0.001"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        started(**arguments)


def test_the_optimizer_must_be_that_of_the_run() -> None:
    with pytest.raises(ValueError, match="`run` must have the optimizer that is given"):
        RangeTestLR(TASK.start(0).optimizer, total_steps=100, run=TASK.start(0))

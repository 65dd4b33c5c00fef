"""Performance profiles: shares of tasks over a regret that is the same on every scale of losses."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrpilot.evaluation.page.profiles import normalized_regret, normalized_regrets
from tests.evaluation.page.made_up_runs import make_row


def test_the_best_method_has_no_regret_and_an_untrained_one_all_of_it() -> None:
    assert normalized_regret(0.5, best=0.5, start=2.0) == 0
    assert normalized_regret(2.0, best=0.5, start=2.0) == 1


def test_where_no_method_trains_none_has_regret() -> None:
    assert normalized_regret(2.0, best=2.0, start=2.0) == 0


@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-10, 10))
def test_regret_does_not_depend_on_scale_and_offset_of_losses(scale: float, offset: float) -> None:
    loss, best, start = (scale * x + offset for x in (0.75, 0.5, 2.5))
    assert normalized_regret(loss, best=best, start=start) == pytest.approx(0.125, rel=1e-6)


def test_a_scheduler_has_a_regret_per_task_and_one_per_task_and_initial_lr() -> None:
    losses = {"a": {"policy": (1.0, 2.0), "linear": (3.0, 0.0)}, "b": {"policy": (0.0, 4.0)}}
    losses["b"]["linear"] = (2.0, 2.0)
    rows = [
        make_row(name, factor, task=task, held_out_loss=loss, first_loss=4.0)
        for task, methods in losses.items()
        for name, pair in methods.items()
        for factor, loss in zip((0.1, 1.0), pair, strict=True)
    ]
    tuned, untuned = normalized_regrets(rows, [])

    assert tuned == {"policy": [0.25, 0.0], "linear": [0.0, 0.5]}
    assert untuned == {"policy": [0.25, 0.5, 0.0, 1.0], "linear": [0.75, 0.0, 0.5, 0.5]}


def test_initial_lrs_are_chosen_on_the_tuning_rows() -> None:
    changes: dict[str, Any] = {"first_loss": 4.0, "task": "a"}
    rows = [
        make_row("policy", f, held_out_loss=loss, **changes) for f, loss in ((1, 0.0), (3, 2.0))
    ]
    tuning = [
        make_row("policy", f, held_out_loss=loss, **changes) for f, loss in ((1, 9.0), (3, 1))
    ]

    assert normalized_regrets(rows, tuning)[0] == {"policy": [0.5]}

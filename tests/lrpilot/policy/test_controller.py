import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrpilot.policy.action import ActionSpec
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.controller import Controller
from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.parameter_sample import ParameterSample
from tests.running import through_file
from tests.scheduling import plain_action


def controller(
    *,
    groups: tuple[str, ...] = ("progress", "loss", "lr"),
    action: ActionSpec | None = None,
    **arguments: Any,
) -> Controller:
    return Controller(
        ObservationSpec(groups),
        action or plain_action(max_log_change=math.log(2)),
        ParameterSample([torch.ones(3)], 3),
        **{"interval_steps": 4, "total_steps": 40, **arguments},
    )


def decision_steps(control: Controller, num_steps: int) -> list[int]:
    return [control.num_steps for _ in range(num_steps) if control.advance()]


# ---- the clock


@pytest.mark.parametrize(
    ("total_steps", "interval_steps"), [(1, 1), (10, 1), (59, 2), (300, 10), (10_000, 333)]
)
def test_the_default_interval_is_the_rounded_share_of_the_run(
    total_steps: int, interval_steps: int
) -> None:
    assert ClockSpec(num_decisions=30).interval_steps(total_steps) == interval_steps


@given(num_decisions=st.integers(1, 1000), total_steps=st.integers(1, 10**9))
def test_the_default_interval_follows_its_formula(num_decisions: int, total_steps: int) -> None:
    clock = ClockSpec(num_decisions=num_decisions)
    assert clock.interval_steps(total_steps) == max(1, round(total_steps / num_decisions))


def test_the_clock_survives_its_dictionary() -> None:
    clock = ClockSpec(num_decisions=7, horizon_range=(100, 2000))
    assert ClockSpec.from_dict(clock.to_dict()) == clock


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_decisions": 0}, "`num_decisions` must be at least 1, got 0"),
        ({"horizon_range": (0, 5)}, r"`horizon_range` must be 1 <= low <= high, got \(0, 5\)"),
        ({"horizon_range": (6, 5)}, r"`horizon_range` must be 1 <= low <= high, got \(6, 5\)"),
    ],
)
def test_a_wrong_clock_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClockSpec(**arguments)


# ---- decisions


def test_a_decision_is_due_after_every_interval() -> None:
    assert decision_steps(controller(), 13) == [4, 8, 12]


def test_decisions_go_on_past_the_end_of_the_run() -> None:
    assert decision_steps(controller(total_steps=5), 13) == [4, 8, 12]


def test_an_interval_of_one_step_decides_after_every_step() -> None:
    assert decision_steps(controller(interval_steps=1), 3) == [1, 2, 3]


def test_the_clock_of_the_intervals_starts_after_the_warm_up() -> None:
    assert decision_steps(controller(warmup_steps=3), 13) == [7, 11]


@given(
    interval_steps=st.integers(1, 9), warmup_steps=st.integers(0, 9), num_steps=st.integers(0, 60)
)
def test_decisions_are_due_at_warm_up_plus_multiples_of_the_interval(
    interval_steps: int, warmup_steps: int, num_steps: int
) -> None:
    control = controller(interval_steps=interval_steps, warmup_steps=warmup_steps)
    expected = list(range(warmup_steps + interval_steps, num_steps + 1, interval_steps))
    assert decision_steps(control, num_steps) == expected


def test_losses_of_the_warm_up_set_the_reference() -> None:
    control = controller(warmup_steps=2)
    control.observe(8.0)
    assert control.observer.state["initial_loss"] == 8.0


def test_losses_of_the_warm_up_are_not_in_the_first_interval() -> None:
    control = controller(warmup_steps=2, groups=("loss",))
    for loss in (8.0, 8.0, 2.0, 2.0):
        control.observe(loss)
        control.advance()
    assert control.observer.interval_loss == 0.25


@pytest.mark.parametrize("warmup_steps", [0, 2, 4])
def test_a_step_observes_the_loss_before_it_counts(warmup_steps: int) -> None:
    whole, parts = (controller(warmup_steps=warmup_steps, groups=("loss",)) for _ in range(2))
    for loss in (8.0, 8.0, 2.0, 2.0, 4.0, 1.0):
        parts.observe(loss)
        assert whole.step(loss) == parts.advance()
        assert whole.observer.interval_loss == parts.observer.interval_loss


def test_progress_is_the_share_of_the_steps_with_the_warm_up() -> None:
    control = controller(warmup_steps=10)
    for _ in range(10):
        control.advance()
    assert control.progress == 0.25


def test_progress_stays_one_past_the_end() -> None:
    control = controller(total_steps=3)
    for _ in range(7):
        control.advance()
    assert control.progress == 1.0
    assert control.close_interval()[0] == 1.0


def test_progress_is_zero_when_the_length_of_the_run_is_unknown() -> None:
    control = controller(groups=("loss",), total_steps=None)
    control.advance()
    assert control.progress == 0.0


def test_the_factor_before_the_first_decision_is_the_start_factor() -> None:
    assert controller(action=plain_action(start_factor=0.25)).factor == 0.25


def test_a_multiplier_grows_from_the_start_factor() -> None:
    control = controller(action=plain_action(start_factor=0.25, max_log_change=math.log(2)))
    assert control.act(1.0) == 0.25 * math.exp(math.log(2))


def test_the_policy_sees_its_last_action_and_factor() -> None:
    control = controller(groups=("lr",))
    control.act(0.5)
    assert control.close_interval().tolist() == pytest.approx([math.log10(2) / 4, 0.5])


def test_a_restart_sets_the_clock_to_zero() -> None:
    control = controller()
    decision_steps(control, 6)
    control.act(1.0)
    control.restart()
    assert (control.num_steps, control.factor, control.progress) == (0, 1.0, 0.0)
    assert decision_steps(control, 5) == [4]


def test_a_restart_keeps_the_reference_loss() -> None:
    control = controller()
    control.observe(3.0)
    control.restart()
    assert control.observer.state["initial_loss"] == 3.0


def test_a_restart_forgets_the_multiplier() -> None:
    control = controller()
    control.act(1.0)
    control.restart()
    assert control.act(0.0) == 1.0


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval_steps": 0}, "`interval_steps` must be at least 1, got 0"),
        ({"interval_steps": -3}, "`interval_steps` must be at least 1, got -3"),
        ({"warmup_steps": -1}, "`warmup_steps` must not be negative, got -1"),
        ({"total_steps": 0}, "`total_steps` must be at least 1, got 0"),
        ({"total_steps": -5}, "`total_steps` must be at least 1, got -5"),
        ({"total_steps": None}, "`total_steps` is required"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        controller(**arguments)


@pytest.mark.parametrize("kind", ["multiplier", "residual"])
def test_an_anchor_needs_the_length_of_the_run(kind: str) -> None:
    with pytest.raises(ValueError, match="`total_steps` is required"):
        controller(groups=("loss",), action=plain_action(kind, "linear"), total_steps=None)


# ---- state


def drive(control: Controller, first: int, last: int) -> list[np.ndarray[Any, Any]]:
    rows = []
    for step in range(first, last):
        if control.step(2.0 + math.sin(step)):
            rows.append(control.close_interval())
            control.act(math.sin(step))
    return rows


@pytest.mark.parametrize("num_steps", [0, 1, 3, 4, 9, 22])
def test_a_state_continues_bit_identically(num_steps: int) -> None:
    arguments: dict[str, Any] = {"warmup_steps": 3, "interval_steps": 4}
    whole, resumed = controller(**arguments), controller(**arguments)
    drive(whole, 0, num_steps)
    resumed.load_state_dict(through_file(copy.deepcopy(whole.state_dict())))
    rows, resumed_rows = drive(whole, num_steps, 40), drive(resumed, num_steps, 40)
    assert len(rows) > 3
    assert all(np.array_equal(a, b) for a, b in zip(rows, resumed_rows, strict=True))
    assert whole.factor == resumed.factor

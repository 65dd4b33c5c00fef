"""What `PolicyLR` does when a run leaves what its policy was trained on."""

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from lrpilot import ActionSpec, PolicyLR
from tests.policies import constant_policy
from tests.running import through_file

DOUBLE = ActionSpec(max_log_change=math.log(2), anchor="constant", start_factor=1.0)
quietly = pytest.mark.filterwarnings("ignore:after step .*outside the range")


def doubling(**arguments: Any) -> PolicyLR:
    """A policy that doubles the rate at each step, trained on losses from 1/e^2 to 1 of the first.

    log_loss, its first feature, was in [-1, 0]: with the margin, in [-1.1, 0.1].
    """
    policy = constant_policy(1.0, groups=("loss",), action=DOUBLE)
    policy = replace(policy, card={"feature_range": {"log_loss": [-1.0, 0.0]}})
    optimizer = torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.01)
    return PolicyLR(optimizer, policy, total_steps=100, interval_steps=1, **arguments)


def train(scheduler: PolicyLR, losses: list[float]) -> list[float]:
    lrs = []
    for loss in losses:
        scheduler.optimizer.step()
        scheduler.step(loss)
        lrs.append(scheduler.optimizer.param_groups[0]["lr"] / 0.01)
    return lrs


@quietly
def test_the_rate_stays_after_several_strange_decisions_until_one_is_familiar() -> None:
    factors = train(doubling(patience=2), [1.0, 2.0, 2.0, 2.0, 2.0, 1.0])
    assert factors == pytest.approx([2, 4, 8, 8, 8, 16])


@quietly
def test_the_log_says_outside() -> None:
    scheduler = doubling(patience=0)
    train(scheduler, [1.0, 2.0, 1.0])
    assert [decision.rule for decision in scheduler.log] == ["decision", "outside", "decision"]


def test_one_warning_names_the_feature_and_the_line_of_the_user() -> None:
    scheduler = doubling(patience=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(scheduler, [1.0, 2.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0])
    (warning,) = [w for w in caught if "outside the range" in str(w.message)]
    assert "after step 3, `log_loss` has been outside" in str(warning.message)
    assert warning.filename == __file__


def test_a_value_within_the_margin_is_familiar() -> None:
    assert train(doubling(patience=0), [1.0, math.exp(0.19), math.exp(-2.19)])[-1] == 8.0


@quietly
def test_a_state_goes_on_with_the_strange_decisions_so_far() -> None:
    losses = [1.0, 2.0, 2.0, 2.0, 2.0]
    expected = train(doubling(patience=2), losses)
    broken, resumed = doubling(patience=2), doubling(patience=2)
    train(broken, losses[:3])
    resumed.optimizer.load_state_dict(broken.optimizer.state_dict())
    resumed.load_state_dict(through_file(broken.state_dict()))
    assert train(resumed, losses[3:]) == expected[3:]


def test_a_policy_without_ranges_is_followed_anywhere() -> None:
    optimizer = torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.01)
    policy = constant_policy(1.0, groups=("loss",), action=DOUBLE)
    scheduler = PolicyLR(optimizer, policy, total_steps=100, interval_steps=1, patience=0)
    assert train(scheduler, [1.0, 2.0, 2.0]) == pytest.approx([2, 4, 8])

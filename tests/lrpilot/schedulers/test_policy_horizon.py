"""What `PolicyLR` says of lengths of runs, and how a run is made longer."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD, Optimizer

from lrpilot import ClockSpec, Guard, ObservationSpec, Policy, PolicyLR
from tests.policies import constant_policy, losses, random_policy
from tests.running import through_file
from tests.scheduling import lrs_of, run


def sgd() -> Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)


def policy_of(low: int, high: int) -> Policy:
    return random_policy(clock=ClockSpec(num_decisions=10, horizon_range=(low, high)))


# ---- outside of what a policy was trained on


@pytest.mark.parametrize(
    ("total_steps", "effect"),
    [(99, "it has too few steps"), (1001, "likely to be too low"), (10**6, "likely to be too low")],
)
def test_a_length_outside_the_trained_ones_warns_once_with_the_effect_and_the_cure(
    total_steps: int, effect: str
) -> None:
    with pytest.warns(UserWarning, match="`total_steps` = ") as warned:
        PolicyLR(sgd(), policy_of(100, 1000), total_steps=total_steps)
    (entry,) = warned
    assert f"`total_steps` = {total_steps} is outside [100, 1000]" in str(entry.message)
    assert effect in str(entry.message)
    assert "use a policy that was trained on such runs" in str(entry.message)
    assert entry.filename == __file__


@pytest.mark.parametrize("total_steps", [100, 500, 1000, None])
def test_a_length_among_the_trained_ones_does_not_warn(total_steps: int | None) -> None:
    policy = policy_of(100, 1000)
    if total_steps is None:
        policy = constant_policy(0.0)
    PolicyLR(sgd(), policy, total_steps=total_steps)


def test_a_length_and_an_interval_outside_are_one_warning() -> None:
    with pytest.warns(UserWarning, match="`total_steps` = ") as warned:
        PolicyLR(sgd(), policy_of(100, 1000), total_steps=5000, interval_steps=500)
    assert len(warned) == 1


# ---- past the end


def test_the_first_step_past_the_end_warns_once_with_the_cure() -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=20)
    run(scheduler, [1.0] * 20)
    with pytest.warns(UserWarning, match="`total_steps` = ") as warned:
        run(scheduler, [1.0] * 40)
    (entry,) = warned
    assert "step 20 + 1 is past `total_steps` = 20" in str(entry.message)
    assert "call `extend(total_steps)`" in str(entry.message)


def test_where_nothing_depends_on_the_end_no_step_is_past_it() -> None:
    run(PolicyLR(sgd(), constant_policy(0.0), total_steps=20), [1.0] * 40)


def test_the_length_of_the_run_is_public() -> None:
    assert PolicyLR(sgd(), random_policy(), total_steps=20).total_steps == 20
    assert PolicyLR(sgd(), constant_policy(0.0)).total_steps is None


# ---- longer runs


@pytest.mark.parametrize("num_steps", [0, 7, 20])
def test_an_extended_run_goes_on_with_the_progress_of_the_longer_one(num_steps: int) -> None:
    first = PolicyLR(sgd(), random_policy(), total_steps=20)
    run(first, losses(num_steps))
    resumed = PolicyLR(sgd(), random_policy(), total_steps=20)
    resumed.load_state_dict(through_file(first.state_dict()))
    resumed.extend(60)
    assert (resumed.total_steps, resumed.controller.interval_steps) == (60, 2)
    assert resumed.controller.progress == num_steps / 60
    assert lrs_of(resumed.optimizer) == lrs_of(first.optimizer)
    rows = run(resumed, losses(60)[num_steps:])
    longer = PolicyLR(sgd(), random_policy(), total_steps=60, interval_steps=2)
    assert resumed.controller.progress == 1.0
    if num_steps == 0:
        assert rows == run(longer, losses(60))


def test_the_state_of_an_extended_run_is_that_of_the_longer_one() -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=20)
    run(scheduler, losses(10))
    scheduler.extend(60)
    other = PolicyLR(sgd(), random_policy(), total_steps=60, interval_steps=2)
    other.load_state_dict(through_file(scheduler.state_dict()))
    assert run(other, losses(40)) == run(scheduler, losses(40))


@pytest.mark.parametrize("wrap", [lambda s: s, Guard], ids=["alone", "guarded"])
def test_a_state_of_a_shorter_run_is_refused_with_the_cure(wrap: Any) -> None:
    state = wrap(PolicyLR(sgd(), "small_networks", total_steps=150)).state_dict()
    longer = wrap(PolicyLR(sgd(), "small_networks", total_steps=300))
    with pytest.raises(
        ValueError,
        match=r"`total_steps` = 300 like this scheduler, got 150: to make the run longer, make the "
        r"scheduler with `total_steps` = 150, load the state, and call `extend\(300\)`",
    ):
        longer.load_state_dict(state)


@pytest.mark.parametrize("total_steps", [20, 5, 0, -1, 30.0, True, None])
def test_an_extension_to_no_larger_number_is_refused(total_steps: Any) -> None:
    scheduler = PolicyLR(sgd(), random_policy(), total_steps=20)
    with pytest.raises(ValueError, match="`total_steps` must be "):
        scheduler.extend(total_steps)
    assert scheduler.total_steps == 20


def test_a_run_of_unknown_length_cannot_be_extended() -> None:
    with pytest.raises(ValueError, match="`total_steps` must have been given to be extended"):
        PolicyLR(sgd(), constant_policy(0.0)).extend(20)


def test_an_extension_past_the_trained_lengths_warns() -> None:
    scheduler = PolicyLR(sgd(), policy_of(100, 1000), total_steps=500)
    with pytest.warns(
        UserWarning, match=r"`total_steps` = 2000 is outside \[100, 1000\]"
    ) as warned:
        scheduler.extend(2000)
    assert warned[0].filename == __file__


# ---- dry runs


def test_a_policy_that_cannot_be_simulated_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"train one with env\.observation\.groups=\[progress,"):
        PolicyLR.simulate([1.0], "cifar", total_steps=300)


def test_a_policy_of_the_named_groups_can_be_simulated() -> None:
    policy = random_policy(groups=("progress", "loss", "lr"))
    assert policy.observation == ObservationSpec(("progress", "loss", "lr"))
    assert len(PolicyLR.simulate([1.0] * 20, policy, total_steps=20)) == 21


def test_a_loss_may_be_an_array_of_one_element_and_never_complex() -> None:
    scheduler = PolicyLR(SGD([torch.ones(3)], lr=0.1), "cifar", total_steps=400)
    scheduler.observe(np.array([0.5]))  # type: ignore[arg-type]
    assert scheduler.controller.observer.state["initial_loss"] == 0.5
    with pytest.raises(TypeError, match="`loss` must be a"):
        scheduler.observe(np.complex64(0.5))  # type: ignore[arg-type]

"""Which parameters the movement and gradient features read."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lrpilot import ObservationSpec, Observer, PolicyLR
from lrpilot.policy.parameter_sample import ParameterSample, sample_positions
from tests.observing import observer_of
from tests.running import through_file

MOVING = ObservationSpec(("movement", "gradient"), num_entries=10)


class FineTuning:
    """A classifier whose backbone is frozen, trained with all its parameters or its head alone."""

    def __init__(self, policy: str, *, everything: bool) -> None:
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(16, 800), nn.Tanh(), nn.Linear(800, 16), nn.Tanh())
        self.head = nn.Linear(16, 4)
        self.backbone.requires_grad_(False)
        self.x, self.y = torch.randn(256, 16), torch.randint(4, (256,))
        trained = [*self.backbone.parameters()] if everything else []
        self.optimizer = torch.optim.AdamW([*trained, *self.head.parameters()], lr=0.1)
        self.scheduler = PolicyLR(self.optimizer, policy, total_steps=300)

    def train(self, num_steps: int) -> list[float]:
        lrs = []
        for step in range(num_steps):
            rows = torch.randint(256, (32,), generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            logits = self.head(self.backbone(self.x[rows]))
            loss = nn.functional.cross_entropy(logits, self.y[rows])
            loss.backward()
            self.optimizer.step()
            self.scheduler.step(loss)
            lrs.append(self.optimizer.param_groups[0]["lr"])
        return lrs


@pytest.mark.parametrize("policy", ["cifar", "small_networks"])
def test_a_frozen_backbone_in_the_optimizer_changes_no_learning_rate(policy: str) -> None:
    alone, together = (FineTuning(policy, everything=flag) for flag in (False, True))
    assert together.train(150) == alone.train(150)


def parameters(*sizes: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]


def observe(observer: Observer) -> list[float]:
    row: list[float] = observer.close_interval(
        progress=0.5, factor=1.0, previous_action=0.0
    ).tolist()
    return row


def move(trained: Any, by: float) -> None:
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, by)
        parameter.data += by


@pytest.mark.parametrize("change", ["unfrozen", "added", "replaced"])
def test_parameters_that_join_are_read_from_the_next_decision_on(change: str) -> None:
    head, backbone = parameters(5, 7)
    held: list[torch.nn.Parameter] = [head, backbone]
    if change == "unfrozen":
        backbone.requires_grad_(False)
    elif change == "added":
        held.pop()
    observer = observer_of(MOVING, held)
    for by in (0.1, 0.2):
        move([p for p in held if p.requires_grad], by)
        before = observe(observer)
    if change == "unfrozen":
        backbone.requires_grad_(True)
    elif change == "added":
        held.append(backbone)
    else:
        held[:] = parameters(5, 7)
    move(held, 0.1)
    assert observe(observer) == [before[0], 0.0, 0.0, 0.0]
    fresh = observer_of(MOVING, held)
    move(held, 0.3)
    expected = observe(fresh)
    assert observe(observer) == expected
    assert math.isfinite(expected[0])


def test_a_parameter_that_is_frozen_later_is_left_out() -> None:
    head, backbone = parameters(5, 7)
    observer = observer_of(MOVING, [head, backbone])
    move([head, backbone], 0.1)
    observe(observer)
    backbone.requires_grad_(False)
    observe(observer)
    alone = observer_of(MOVING, [head])
    move([head], 0.2)
    assert observe(observer) == observe(alone)


def test_a_gradient_that_comes_and_goes_changes_no_sample() -> None:
    first, second = parameters(5, 7)
    sample = ParameterSample([first, second], 4)
    move([first], 0.1)
    assert not sample.refresh()
    move([second], 0.1)
    first.grad = None
    assert not sample.refresh()


def test_tensors_without_requires_grad_are_trained_by_hand_and_read() -> None:
    sample = ParameterSample([torch.arange(5.0), torch.arange(7.0)], 100)
    assert sample.weights().tolist() == [*range(5), *range(7)]


@pytest.mark.parametrize("sizes", [(5, 7), (300, 1, 40), (1000,)])
def test_without_frozen_parameters_the_sample_is_that_of_all_entries(
    sizes: tuple[int, ...],
) -> None:
    held = parameters(*sizes)
    everything = torch.cat([p.detach() for p in held])
    drawn = sample_positions(sum(sizes), 20)
    expected = everything if drawn is None else everything[drawn]
    assert torch.equal(ParameterSample(held, 20).weights(), expected)


def unfreeze(training: FineTuning) -> None:
    training.backbone.requires_grad_(True)


def replace(training: FineTuning) -> None:
    # as where a wrapper makes new parameters and hands them to the optimizer
    training.optimizer.state.clear()
    group = training.optimizer.param_groups[0]
    group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]
    head = group["params"][-2:]
    training.head.weight, training.head.bias = head


@pytest.mark.parametrize("change", [unfreeze, replace], ids=["unfrozen", "replaced"])
@pytest.mark.parametrize("num_steps", [3, 12, 40])
def test_a_training_whose_parameters_changed_is_resumed_bit_identically(
    change: Callable[[FineTuning], None], num_steps: int
) -> None:
    whole, resumed = (FineTuning("cifar", everything=True) for _ in range(2))
    whole.train(25)
    change(whole)
    whole.train(num_steps)
    change(resumed)
    for part in ("backbone", "head"):
        getattr(resumed, part).load_state_dict(getattr(whole, part).state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    resumed.scheduler.load_state_dict(through_file(whole.scheduler.state_dict()))
    assert whole.train(60) == resumed.train(60)


def test_the_state_of_other_parameters_is_refused_and_changes_nothing() -> None:
    mine, other = (FineTuning("cifar", everything=flag) for flag in (True, False))
    before = repr(mine.scheduler.state_dict())
    with pytest.raises(ValueError, match="must be of 6 parameters, like the optimizer's, got one"):
        mine.scheduler.load_state_dict(other.scheduler.state_dict())
    assert repr(mine.scheduler.state_dict()) == before

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, LinearLR, SequentialLR

from tests.lrpilot.integrations.loss_lr import LossLR
from tests.lrpilot.integrations.ranks import run_ranks

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from lrpilot.integrations.accelerate import LossStepper


@pytest.fixture(autouse=True)
def _new_process() -> None:
    """All accelerators of a process share a state: that of the tests before, and of the Trainer."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Training:
    """A run that Accelerate prepared, except for its scheduler."""

    def __init__(
        self,
        *,
        accumulation: int = 1,
        make_scheduler: Any = LossLR,
        is_scaled: bool = False,
        give: Any = lambda loss: loss,
    ) -> None:
        self.give = give
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        if is_scaled:
            self.accelerator.scaler = torch.amp.GradScaler("cpu")
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 1)
        raw = torch.optim.AdamW(layer.parameters(), lr=0.05)
        self.scheduler = make_scheduler(raw)
        self.layer, self.optimizer = self.accelerator.prepare(layer, raw)
        self.stepper = LossStepper(self.accelerator, self.scheduler)
        self.rates: list[float] = []
        self.micro_losses: list[float] = []

    def run(self, batches: range, *, scale: float = 1.0) -> None:
        for i in batches:
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(i))
            with self.accelerator.accumulate(self.layer):
                loss = (self.layer(x)[:, 0] - x.sum(1)).square().mean() * scale
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.stepper.step(self.give(loss))
                self.optimizer.zero_grad()
            self.micro_losses.append(loss.item())
            self.rates.append(self.optimizer.param_groups[0]["lr"])


def test_a_scheduler_steps_once_per_optimizer_step_with_the_mean_loss() -> None:
    training = Training(accumulation=3)
    training.run(range(9))
    losses = training.micro_losses
    means = [sum(losses[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert training.scheduler.losses == pytest.approx(means, rel=1e-6)
    assert training.scheduler.last_epoch == 3


def test_saving_and_loading_the_state_continues_bit_for_bit(tmp_path: Path) -> None:
    whole = Training(accumulation=2)
    whole.run(range(6))
    whole.accelerator.save_state(tmp_path)
    whole.run(range(6, 14))
    resumed = Training(accumulation=2)
    resumed.accelerator.load_state(tmp_path)
    resumed.run(range(6, 14))
    assert resumed.rates == whole.rates[6:]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_a_skipped_optimizer_step_does_not_advance_the_scheduler() -> None:
    training = Training(is_scaled=True)
    training.run(range(1))
    training.run(range(1, 2), scale=1e36)
    assert training.optimizer.step_was_skipped
    training.run(range(2, 3))
    assert training.scheduler.losses == [training.micro_losses[0], training.micro_losses[2]]
    assert training.scheduler.last_epoch == 2


def test_a_warm_up_comes_before_the_losses_count() -> None:
    def scheduler(optimizer: torch.optim.Optimizer) -> SequentialLR:
        warm_up = LinearLR(optimizer, start_factor=0.5, total_iters=2)
        return SequentialLR(optimizer, [warm_up, LossLR(optimizer)], milestones=[2])

    training = Training(make_scheduler=scheduler)
    training.run(range(3))
    assert training.rates[:2] == pytest.approx([0.0375, 0.05])
    assert training.rates[2] == 0.05 * (sum(training.micro_losses) / 3)


def test_a_scheduler_that_observes_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`scheduler` must observe losses, .* got ConstantLR"):
        Training(make_scheduler=ConstantLR)


@pytest.mark.parametrize(
    "give",
    [
        lambda loss: loss.item(),
        lambda loss: loss.detach().numpy(),
        lambda loss: np.float32(loss.item()),
        lambda loss: loss.reshape(1),
        lambda loss: loss.to(torch.bfloat16).double(),
    ],
    ids=["float", "array", "numpy scalar", "one element", "double"],
)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_loss_may_be_any_number(give: Any, accumulation: int) -> None:
    tensors, numbers = (
        Training(accumulation=accumulation, **options) for options in ({}, {"give": give})
    )
    tensors.run(range(6))
    numbers.run(range(6))
    assert numbers.scheduler.losses == pytest.approx(tensors.scheduler.losses, rel=1e-2)
    assert numbers.scheduler.last_epoch == 6 // accumulation


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (None, TypeError, "`loss` must be a number or a tensor of one element, got None"),
        ("0.5", TypeError, "`loss` must be a number or a tensor of one element, got '0.5'"),
        (torch.ones(2), ValueError, r"`loss` must have one element, got shape \(2,\)"),
    ],
    ids=str,
)
def test_what_is_no_loss_is_refused_at_once(loss: Any, error: Any, message: str) -> None:
    training = Training(accumulation=2, give=lambda _: loss)
    with pytest.raises(error, match=message):
        training.run(range(1))


@pytest.mark.slow
def test_a_prepared_scheduler_steps_once_per_rank_with_each_ranks_own_loss() -> None:
    first, second = run_ranks("accelerate", "prepare", 1)
    assert first["seen"] == [loss for loss in first["micro"] for _ in range(2)]
    assert first["seen"] != second["seen"]


@pytest.mark.slow
def test_a_loss_stepper_gives_every_rank_the_same_mean() -> None:
    first, second = run_ranks("accelerate", "stepper", 3)
    assert first["seen"] == second["seen"]
    both = [sum(pair) / 2 for pair in zip(first["micro"], second["micro"], strict=True)]
    means = [sum(both[i : i + 3]) / 3 for i in (0, 3, 6, 9)]
    assert first["seen"] == pytest.approx(means, rel=1e-6)

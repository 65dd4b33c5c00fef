from collections.abc import Callable
from typing import Any

import pytest
import torch

from lrpilot.integrations.amp import update_scaler
from tests.lrpilot.integrations.loss_lr import LossLR


def taken_steps(
    losses: list[float], make_optimizer: Callable[..., Any], scaler: torch.amp.GradScaler
) -> tuple[list[bool], LossLR]:
    """Whether each step was taken; the gradient is each loss times the scale."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([parameter], lr=0.1)
    scheduler = LossLR(optimizer)
    taken = []
    for loss in losses:
        optimizer.zero_grad()
        scaler.scale((parameter * loss).sum()).backward()
        before = parameter.detach().clone()
        scaler.step(optimizer)
        if is_taken := update_scaler(scaler):
            scheduler.step(loss)
        assert is_taken != torch.equal(parameter, before)
        taken.append(is_taken)
    return taken, scheduler


def fused_adam(*args: Any, **kwargs: Any) -> torch.optim.Adam:
    return torch.optim.Adam(*args, fused=True, **kwargs)


@pytest.mark.parametrize("make_optimizer", [torch.optim.SGD, fused_adam])
@pytest.mark.parametrize("bad", [1e36, torch.inf, torch.nan])
def test_a_step_skipped_for_bad_gradients_does_not_advance_the_scheduler(
    make_optimizer: Any, bad: float
) -> None:
    scaler = torch.amp.GradScaler("cpu")
    taken, scheduler = taken_steps([1.0, bad, 3.0, bad], make_optimizer, scaler)
    assert taken == [True, False, True, False]
    assert scheduler.losses == [1.0, 3.0]
    assert scheduler.last_epoch == 2


def test_a_growing_scale_is_no_skipped_step() -> None:
    scaler = torch.amp.GradScaler("cpu", growth_interval=1)
    taken, _ = taken_steps([1.0, 2.0, 3.0], torch.optim.SGD, scaler)
    assert taken == [True] * 3
    assert scaler.get_scale() > 65536.0


def test_a_disabled_scaler_takes_every_step() -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert taken_steps([1.0, 2.0], torch.optim.SGD, scaler)[0] == [True, True]

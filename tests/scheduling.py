"""What many tests do with schedulers."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrpilot.policy.action import ActionSpec


def plain_action(
    kind: str = "multiplier", anchor: str = "constant", **arguments: Any
) -> ActionSpec:
    """An action on the initial learning rate itself: no anchor, a wide box, started at 1."""
    plain = {"max_log_change": 0.7, "min_factor": 1e-3, "max_factor": 1e3, "start_factor": 1.0}
    return ActionSpec(kind, anchor, **{**plain, **arguments})


def lrs_of(optimizer: Optimizer) -> list[float]:
    """The learning rate of each parameter group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def run(scheduler: LRScheduler, values: list[Any]) -> list[list[float]]:
    """The learning rates after every loss."""
    rows = []
    for value in values:
        scheduler.optimizer.step()
        scheduler.step(value)
        rows.append(lrs_of(scheduler.optimizer))
    return rows


def run_composed(composed: LRScheduler, scheduler: Any, values: list[float]) -> list[float]:
    """The learning rates where `composed` steps, and `scheduler`, a part of it, only observes."""
    rows = []
    for value in values:
        scheduler.optimizer.step()
        scheduler.observe(value)
        composed.step()
        rows.append(lrs_of(scheduler.optimizer)[0])
    return rows

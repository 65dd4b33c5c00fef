"""Whether the horizons of schedulers are those of the training loop, which knows its steps."""

import warnings
from collections.abc import Iterator
from typing import Any

from lrpilot.schedulers.torch_scheduler import milestones_of, parts_of


def warn_of_other_horizon(scheduler: Any, num_steps: int) -> None:
    """Warn where `total_steps` is not the number of steps that the scheduler will have made.

    One that is past its horizon says so itself.

    Args:
        scheduler: alone, or a composition of some.
        num_steps: how often the training loop will still step it.

    >>> from torch.optim.lr_scheduler import ConstantLR
    >>> from lrpilot.schedulers.base import idle_optimizer
    >>> warn_of_other_horizon(ConstantLR(idle_optimizer(0.1)), 10)
    """
    for part, last_step in _with_last_steps(scheduler, _steps_made(scheduler) + num_steps):
        total_steps = getattr(part, "total_steps", None)
        if total_steps is not None and part.last_epoch < total_steps != last_step:
            warnings.warn(
                f"`total_steps` should be {last_step}, the number of steps that the trainer makes "
                f"with this {type(part).__name__}, got {total_steps}: the schedule is that of "
                f"another run; give `total_steps={last_step}`",
                UserWarning,
                stacklevel=3,
            )


def _steps_made(scheduler: Any) -> int:
    # a ChainedScheduler has no count of its own
    while not hasattr(scheduler, "last_epoch"):
        scheduler = parts_of(scheduler)[0]
    return int(scheduler.last_epoch)


def _with_last_steps(scheduler: Any, last_step: int) -> Iterator[tuple[Any, int]]:
    """All schedulers of a composition, with the last step of each on its own clock."""
    yield scheduler, last_step
    milestones = milestones_of(scheduler)
    for i, part in enumerate(parts_of(scheduler)):
        start, end = 0, last_step
        if milestones is not None:
            start, end = [0, *milestones][i], min([*milestones, last_step][i], last_step)
        yield from _with_last_steps(part, end - start)

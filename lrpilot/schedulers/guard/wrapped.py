"""WrappedScheduler: the scheduler inside a guard, which sees its own clock and healthy losses."""

import inspect
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from lrpilot.schedulers.loss_driven import find_loss_driven
from lrpilot.schedulers.torch_scheduler import all_parts, start_waiting, undo_start


class WrappedScheduler:
    """A torch scheduler, or a composition of some, stepped with the loss where it takes one."""

    def __init__(self, scheduler: LRScheduler) -> None:
        self.scheduler: Any = scheduler
        first = next(iter(inspect.signature(scheduler.step).parameters.values()), None)
        self._step_takes_loss = (
            first is not None
            and first.kind is first.POSITIONAL_OR_KEYWORD
            and first.name != "epoch"
        )
        self._loss_driven = [] if self._step_takes_loss else find_loss_driven(scheduler)
        self._has_started = True

    def step(self, loss: float | None) -> None:
        """Step it with a healthy loss; if there was none yet, one that needs losses waits."""
        if not self._step_takes_loss and not self._loss_driven:
            self.scheduler.step()
        elif loss is not None:
            for observer in self._loss_driven:
                observer.observe(loss)
            self.scheduler.step(*[loss] if self._step_takes_loss else [])

    def undo_start(self) -> None:
        """Let it wait, as a `SequentialLR` around the guard would."""
        undo_start(self.scheduler)
        self._has_started = False

    def start(self, *, at_milestone: bool) -> None:
        """Start it if it waits."""
        if not self._has_started:
            start_waiting(self.scheduler, at_milestone=at_milestone)
            self._has_started = True

    @property
    def moves_before_step(self) -> bool:
        """Whether it changes the learning rate between its `step()` and the optimizer's."""
        inside = [self.scheduler, *all_parts(self.scheduler)]
        return any(getattr(scheduler, "moves_before_step", False) for scheduler in inside)

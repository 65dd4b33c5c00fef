"""TorchScheduler: how torch calls a scheduler (tested with the versions in constraints*.txt)."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrpilot.state import state_fields

COUNTS = state_fields("last_epoch", step_count="_step_count")
"""The attributes in which torch counts a scheduler's steps, by the fields of our states."""


class TorchScheduler(LRScheduler):
    """A torch scheduler that is asked for two things: how it starts, and how it goes on.

    torch calls the methods of a scheduler in an order that its versions change. This file knows
    it, and it is the only one that uses torch's private names:

    - when a scheduler is made, it starts at the learning rates that its optimizer has;
    - `SequentialLR` then gives the groups their `initial_lr` and makes its schedulers wait, with
      `last_epoch` = -1. Its first scheduler starts again at once, every other at its milestone.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)

    @abstractmethod
    def _start(self, *, at_milestone: bool) -> Sequence[float]:
        """Begin the schedule at `base_lrs`; returns the learning rates of the first step.

        Args:
            at_milestone: of a `SequentialLR`; else it is the first thing that happens.
        """

    @abstractmethod
    def _next_lrs(self) -> Sequence[float]:
        """The learning rates of the next step, after `last_epoch` was raised."""

    @property
    def last_lrs(self) -> list[float]:
        """The learning rates that this scheduler set last, whoever has changed them since."""
        return [float(lr) for lr in self._last_lr]

    @last_lrs.setter
    def last_lrs(self, lrs: Sequence[float]) -> None:
        self._last_lr = list(lrs)

    @property
    def is_waiting(self) -> bool:
        """Whether a `SequentialLR` has not reached this scheduler yet."""
        return self.last_epoch < 0

    def current_lrs(self) -> list[float]:
        """The learning rates that the optimizer has now, one per group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def initial_lrs(self) -> list[float]:
        """The groups' `initial_lr`, where schedulers in a `SequentialLR` start."""
        return [float(group["initial_lr"]) for group in self.optimizer.param_groups]

    def set_lrs(self, lrs: Sequence[float]) -> None:
        """Give every group its learning rate; one that is a tensor is filled, never replaced."""
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self.last_lrs = lrs

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates that the optimizer has now; reading them changes nothing."""
        return list(self.current_lrs())

    def step(self, loss: Any = None) -> None:
        """Set the learning rates of the next step; call it after `optimizer.step()`."""
        if self.last_epoch > 0:
            self._advance()
        elif self.is_waiting:
            self._update_lr(0)  # as at a milestone
        else:
            super().step()  # with torch's warnings about the order of calls

    def _advance(self) -> None:
        """Count a step, and set the next learning rates."""
        self._step_count += 1
        self._update_lr()

    def _count_step(self) -> None:
        """Count a step after which the learning rates stay."""
        self._step_count += 1
        self.last_epoch += 1

    def _initial_step(self) -> None:
        # by torch, when a scheduler is made and for the first one in a SequentialLR
        self._step_count = 1
        self._begin(self.current_lrs(), at_milestone=False)

    def _update_lr(self, epoch: int | None = None) -> None:
        # by torch: without `epoch` in its own `step`, with 0 at a milestone
        if epoch is None:
            self.last_epoch += 1
            self.set_lrs(self._next_lrs())
        else:
            self._begin(self.initial_lrs(), at_milestone=True)

    def _begin(self, lrs: list[float], *, at_milestone: bool) -> None:
        self.last_epoch = 0
        # 0 if a warm-up from 0, which knows the initial ones, comes before this scheduler
        self.base_lrs = list(lrs if any(lrs) else self.initial_lrs())
        self.set_lrs(self._start(at_milestone=at_milestone))


def parts_of(scheduler: Any) -> Sequence[Any]:
    """The schedulers in a `SequentialLR`, a `ChainedScheduler` or a wrapper such as `Guard`."""
    wrapped = getattr(scheduler, "scheduler", None)
    return _chained(scheduler) or (() if wrapped is None else (wrapped,))


def all_parts(scheduler: Any) -> list[Any]:
    """The schedulers in a composition, those in its parts included."""
    return [inner for part in parts_of(scheduler) for inner in [part, *all_parts(part)]]


def _chained(scheduler: Any) -> Sequence[Any]:
    return getattr(scheduler, "_schedulers", ())


def milestones_of(scheduler: Any) -> list[int] | None:
    """The steps at which a `SequentialLR` goes on to its next scheduler; None for any other."""
    return getattr(scheduler, "_milestones", None)


def describe(scheduler: Any) -> str:
    """The classes of a composition.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> ones = [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0) for _ in range(2)]
    >>> describe(torch.optim.lr_scheduler.ChainedScheduler(ones))
    'ChainedScheduler(ConstantLR, ConstantLR)'
    """
    inside = ", ".join(map(describe, parts_of(scheduler)))
    return f"{type(scheduler).__name__}({inside})" if inside else type(scheduler).__name__


def states_of_parts(scheduler: Any, state: Any) -> Iterator[tuple[Any, Any]]:
    """The schedulers that one of torch's compositions holds, each with its part of the state.

    Anything else is its own part.
    """
    parts = _chained(scheduler)
    if not parts:
        yield scheduler, state
    else:
        for part, part_state in zip(parts, state["_schedulers"], strict=True):
            yield from states_of_parts(part, part_state)


def undo_start(scheduler: Any) -> None:
    """Let a scheduler wait, as `SequentialLR` does with those in it."""
    for part in _chained(scheduler):
        undo_start(part)
    if not _chained(scheduler):
        scheduler.last_epoch -= 1


def start_waiting(scheduler: Any, *, at_milestone: bool) -> None:
    """Start a scheduler that waits, as `SequentialLR` does with its first or at a milestone."""
    if at_milestone:
        scheduler._update_lr(0)
    else:
        scheduler._initial_step()

"""Which schedulers of a composition take losses."""

from typing import Any, Protocol

from torch import Tensor

from lrpilot.schedulers.torch_scheduler import parts_of


class LossDriven(Protocol):
    """A scheduler that is given the loss of the step just made, before `step()` is called."""

    def observe(self, loss: float | Tensor) -> None:
        """Take the loss without stepping."""


def find_loss_driven(scheduler: Any) -> list[LossDriven]:
    """The schedulers with an `observe` method: the scheduler itself, or those inside it.

    Args:
        scheduler: a scheduler, or torch's `SequentialLR` or `ChainedScheduler` of some.

    >>> from torch.optim.lr_scheduler import ConstantLR
    >>> from lrpilot.schedulers.base import idle_optimizer
    >>> find_loss_driven(ConstantLR(idle_optimizer(0.1)))
    []
    """
    if hasattr(scheduler, "observe"):
        return [scheduler]
    return [found for part in parts_of(scheduler) for found in find_loss_driven(part)]


def require_loss_driven(scheduler: Any) -> None:
    """Check that `give_loss` reaches somebody.

    Raises:
        TypeError: if no scheduler observes losses.

    >>> require_loss_driven(None)
    Traceback (most recent call last):
    TypeError: `scheduler` must observe losses, alone or in a SequentialLR, got NoneType
    """
    if not find_loss_driven(scheduler):
        kind = type(scheduler).__name__
        raise TypeError(f"`scheduler` must observe losses, alone or in a SequentialLR, got {kind}")


def give_loss(scheduler: Any, loss: float | Tensor) -> None:
    """Give a loss to the schedulers that take one, for loops that call `step()` without it."""
    for found in find_loss_driven(scheduler):
        found.observe(loss)

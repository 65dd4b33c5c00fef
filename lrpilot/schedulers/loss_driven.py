"""Schedulers whose `step` needs the loss, alone or in a composition."""

from typing import Any

from torch import Tensor

from lrpilot.loss import read_loss
from lrpilot.schedulers.base import AdaptiveLR
from lrpilot.schedulers.torch_scheduler import parts_of


class LossDrivenLR(AdaptiveLR):
    """A scheduler that takes one loss per step, by `step(loss)` or by `observe(loss)` before it."""

    _observed: float | None = None

    def observe(self, loss: float | Tensor) -> None:
        """Take the loss of the step that was just made, without stepping."""
        self._observed = read_loss(loss)

    def _take(self, loss: Any) -> float:
        """The loss that is given, else the one that was observed, which is used up.

        Raises:
            RuntimeError: if there is none.
        """
        value = self._observed if loss is None else read_loss(loss)
        if value is None:
            raise RuntimeError(
                "`step` needs a loss: call `step(loss)`, or `observe(loss)` before `step()`"
            )
        self._observed = None
        return value


def find_loss_driven(scheduler: Any) -> list[Any]:
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

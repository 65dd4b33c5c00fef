"""Which schedulers of a composition take losses."""

from typing import Any, Protocol

from torch import Tensor

from lrpilot.schedulers.torch_scheduler import parts_of


class LossObserver(Protocol):
    """A scheduler that takes the loss of the step just made, before `step()` is called."""

    def observe(self, loss: float | Tensor) -> None:
        """Take the loss without stepping."""


def find_observers(scheduler: Any) -> list[LossObserver]:
    """The schedulers with an `observe` method: the scheduler itself, or those inside it.

    Training loops that call `scheduler.step()` without a loss give it to these first.

    Args:
        scheduler: a scheduler, or torch's `SequentialLR` or `ChainedScheduler` of some.

    >>> from torch.optim.lr_scheduler import ConstantLR
    >>> from lrpilot.schedulers.base import idle_optimizer
    >>> find_observers(ConstantLR(idle_optimizer(0.1)))
    []
    """
    if hasattr(scheduler, "observe"):
        return [scheduler]
    return [observer for part in parts_of(scheduler) for observer in find_observers(part)]


def require_observers(scheduler: Any) -> list[LossObserver]:
    """The same, or an error if there are none.

    Raises:
        TypeError: if no scheduler observes losses.

    >>> require_observers(None)
    Traceback (most recent call last):
    TypeError: `scheduler` must observe losses, alone or in a SequentialLR, got NoneType
    """
    observers = find_observers(scheduler)
    if not observers:
        raise TypeError(
            "`scheduler` must observe losses, alone or in a SequentialLR, got "
            f"{type(scheduler).__name__}"
        )
    return observers

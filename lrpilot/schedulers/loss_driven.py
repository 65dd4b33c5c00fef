"""LossDrivenLR: a scheduler whose `step` needs the loss."""

from typing import Any

from torch import Tensor

from lrpilot.loss import read_loss
from lrpilot.schedulers.base import AdaptiveLR


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

"""A scheduler whose learning rates say which losses it saw."""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lrpilot.loss import read_loss
from lrpilot.schedulers.base import AdaptiveLR
from lrpilot.state import state_fields


class LossLR(AdaptiveLR):
    """lr = initial lr x mean of all losses so far; `losses` are those that it was given."""

    _state_fields = state_fields("losses")

    def __init__(self, optimizer: Optimizer, **options: Any) -> None:
        self.losses: list[float] = []
        super().__init__(optimizer, **options)

    def observe(self, loss: float | Tensor) -> None:
        self.losses.append(read_loss(loss))

    def step(self, loss: float | Tensor | None = None) -> None:
        if loss is not None and not self.is_waiting:
            self.observe(loss)
        super().step()

    def _next_lrs(self) -> list[float]:
        bases = [float(base) for base in self.base_lrs]
        mean = sum(self.losses) / len(self.losses)
        lrs = self.limit([base * mean for base in bases])
        self.record("mean", self.losses[-1], math.nan, lrs[0])
        return lrs

"""The forms of GreedyLR that the paper's claims are about, as `Method.make`."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lrpilot.caps.cap import Cap
from lrpilot.evaluation.methods.adaptive import curvature_cap
from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.schedulers.loss_driven import LossDrivenLR
from lrpilot.tasks.images.task import ImageRun
from lrpilot.tasks.quadratic import QuadraticRun
from lrpilot.tasks.runs import Run

SAFE_SHARE = 0.95
"""Of 2/L: a cap stays below the limit of stability."""


def practical(
    optimizer: Optimizer,
    *,
    total_steps: int,
    min_factor: float = 0.01,
    max_factor: float = 10.0,
    make: Callable[..., GreedyLR] = GreedyLR,
    **arguments: Any,
) -> GreedyLR:
    """The paper's practical form: factor 0.95, patience 10, smoothed over 50 calls.

    The paper's bounds are absolute; these are relative to the initial learning rate, so that they
    mean the same under every optimizer.

    Args:
        optimizer: the wrapped optimizer.
        total_steps: not used; the rule knows no horizon.
        min_factor: lowest learning rate over the initial one.
        max_factor: highest learning rate over the initial one.
        make: the class.
        **arguments: of `GreedyLR`.
    """
    lrs = [float(group["lr"]) for group in optimizer.param_groups]
    return make(
        optimizer,
        semantics="paper",
        min_lr=[lr * min_factor for lr in lrs],
        max_lr=[lr * max_factor for lr in lrs],
        # changes up to it are not made, whatever the learning rate
        eps=0.0,
        smooth=True,
        **arguments,
    )


class TheoryGreedyLR(LossDrivenLR):
    """The rule of the paper's theorems: a lower loss raises the learning rate, any other lowers it.

    l_t < l_{t-1}: lr <- lr / F, else lr <- lr F. The theorems need lr < 2/L, with L the largest
    curvature; without a cap nothing ensures that.

    Args:
        optimizer: the wrapped optimizer.
        factor: F, in (0, 1).
        cap: no learning rate exceeds its answer.

    Raises:
        ValueError: if the factor is out of range.

    >>> from lrpilot.schedulers.base import dry_run, idle_optimizer
    >>> dry_run(TheoryGreedyLR(idle_optimizer(0.1), factor=0.5), [3.0, 2.0, 2.0, 1.0])
    [0.1, 0.1, 0.2, 0.1, 0.2]
    """

    def __init__(self, optimizer: Optimizer, *, factor: float, cap: Cap | None = None) -> None:
        if not 0.0 < factor < 1.0:
            raise ValueError(f"`factor` must be in (0, 1), got {factor}")
        self.factor = factor
        self._last_loss = math.nan
        self._change = 1.0
        super().__init__(optimizer, cap=cap)

    def step(self, loss: float | Tensor | None = None) -> None:
        """Set the learning rates of the next step; call it after `optimizer.step()`."""
        if self.last_epoch >= 0:
            new_loss = self._take(loss)
            is_first = math.isnan(self._last_loss)
            better = new_loss < self._last_loss
            self._change = 1.0 if is_first else (1.0 / self.factor if better else self.factor)
            self._last_loss = new_loss
        super().step()

    def _next_lrs(self) -> list[float]:
        return self.limit([lr * self._change for lr in self.current_lrs()])


def largest_safe_lr(run: Run) -> Cap:
    """A cap below 2/L: from the exact curvature of the quadratic, else from a measured one.

    Raises:
        ValueError: if neither can be had.
    """
    if isinstance(run, QuadraticRun):
        eta_max = SAFE_SHARE * 2.0 / run.curvature
        return lambda: (eta_max, "deterministic")
    if isinstance(run, ImageRun):
        return curvature_cap(run, interval_steps=10)
    raise ValueError(
        f"`run` must be a quadratic or an image task's to have a cap, got {type(run).__name__}"
    )


def theory(
    optimizer: Optimizer, *, total_steps: int, run: Run, factor: float, is_capped: bool
) -> TheoryGreedyLR:
    """`TheoryGreedyLR`, below 2/L or without a cap."""
    return TheoryGreedyLR(optimizer, factor=factor, cap=largest_safe_lr(run) if is_capped else None)


def practical_below(
    optimizer: Optimizer, *, total_steps: int, run: Run, factor: float, is_capped: bool
) -> GreedyLR:
    """`practical` with this factor, without upper bound or below 2/L."""
    return practical(
        optimizer,
        total_steps=total_steps,
        factor=factor,
        max_factor=math.inf,
        cap=largest_safe_lr(run) if is_capped else None,
    )

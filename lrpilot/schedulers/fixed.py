"""Schedules that are fixed before the run: linear decay to zero, cosine, and WSD, after a warm-up.

At step t = 0, ..., T - 1 of T a learning rate is its initial one times a factor, which is 0 from
T on.
"""

import math
from abc import abstractmethod
from typing import Any, ClassVar

from torch.optim import Optimizer

from lrpilot.arguments import require_choice, require_count, require_within
from lrpilot.caps.cap import Cap
from lrpilot.schedulers.base import dry_run, idle_optimizer
from lrpilot.schedulers.factor import FactorLR
from lrpilot.state import state_fields


def linear_warmup(t: int, warmup_steps: float) -> float:
    """The factor (t + 1) / W, at most 1, of step t in a warm-up of W steps.

    The first step trains, too, and step W - 1 has the full learning rate; W may be a fraction.

    >>> [linear_warmup(t, 4) for t in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (t + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def share_left(t: int, total_steps: int, decay_steps: float) -> float:
    """(T - t) / D in [0, 1]: what is left at step t of a decay over the last D of T steps.

    >>> [share_left(t, 6, decay_steps=4) for t in range(7)]
    [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    left = (total_steps - t) / decay_steps if decay_steps > 0 else 1.0
    return max(0.0, min(1.0, left))


class FixedLR(FactorLR):
    """A schedule of T steps that looks at nothing: every initial learning rate times one factor.

    Step t has the factor min((t + 1) / W, d(u)): a linear warm-up over W steps, and a decay d over
    the last D steps, of which a share u = min(1, (T - t) / D) is left. In a `SequentialLR` t counts
    from the milestone on. `log` tells where a cap starts or ceases to bind. A subclass implements
    `decayed`, which is d.

    Args:
        optimizer: the wrapped optimizer; its learning rates are the peaks.
        total_steps: T, optimizer steps of the schedule, warm-up included.
        warmup_share: W / T in [0, 1].
        decay_share: D / T in [0, 1]; 0 for no decay, None for all that follows the warm-up.
        cap: asked before every step; no group's learning rate exceeds its answer.
        log_size: decisions that `log` keeps.

    Raises:
        ValueError: if `total_steps` is below 1 or a share is outside [0, 1].
    """

    _state_fields = state_fields(applied_factor="_applied")
    _settings: ClassVar[tuple[str, ...]] = ("total_steps", "warmup_share", "decay_share")

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        warmup_share: float = 0.1,
        decay_share: float | None = None,
        cap: Cap | None = None,
        log_size: int = 1000,
    ) -> None:
        require_count("total_steps", total_steps)
        require_within("warmup_share", warmup_share, "[0, 1]")
        decay_share = 1.0 - warmup_share if decay_share is None else decay_share
        require_within("decay_share", decay_share, "[0, 1]")
        self.total_steps = total_steps
        self.warmup_share = warmup_share
        self.decay_share = decay_share
        super().__init__(optimizer, cap=cap, log_size=log_size)

    @abstractmethod
    def decayed(self, left: float) -> float:
        """The factor in [0, 1] where a share u in [0, 1] of the decay is left."""

    def factor_at(self, t: int) -> float:
        """The learning rate of step t over the initial one, in [0, 1], before the cap."""
        left = share_left(t, self.total_steps, self.decay_share * self.total_steps)
        return min(linear_warmup(t, self.warmup_share * self.total_steps), self.decayed(left))

    def _start(self, *, at_milestone: bool) -> list[float]:
        return self._set_factor(before=None)

    def _next_lrs(self) -> list[float]:
        return self._set_factor(before=self._applied)

    def _set_factor(self, *, before: float | None) -> list[float]:
        was_bound_by = self.bound_by
        lrs = self._capped(before, self.factor_at(self.last_epoch))
        if self.bound_by != was_bound_by:
            self.record("cap", math.nan, math.nan, float(lrs[0]))
        return lrs

    @classmethod
    def simulate(
        cls, *, total_steps: int, initial_lr: float = 1.0, **arguments: Any
    ) -> list[float]:
        """The learning rates of all T steps and the one after them, without training.

        Args:
            total_steps: T.
            initial_lr: learning rate of the optimizer.
            **arguments: the constructor's.
        """
        scheduler = cls(idle_optimizer(initial_lr), total_steps=total_steps, **arguments)
        return dry_run(scheduler, [0.0] * total_steps)


class D2ZLR(FixedLR):
    """Linear decay to zero (D2Z) after a linear warm-up, by default over a tenth of the run.

    Step t of T has the initial learning rate times min((t + 1) / W, (T - t) / (T - W), 1), where
    W = `warmup_share` T. Arguments and errors are those of `FixedLR`.

    References:
        Bergsma et al. Straight to zero: Why linearly decaying the learning rate to zero works best
        for LLMs. 2025.

    >>> [round(lr, 3) for lr in D2ZLR.simulate(total_steps=10, warmup_share=0.2)]
    [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]
    """

    def decayed(self, left: float) -> float:
        """d(u) = u."""
        return left


class CosineWarmupLR(FixedLR):
    """Cosine decay to zero after a linear warm-up, by default over a tenth of the run.

    Step t of T has the initial learning rate times min((t + 1) / W, (1 - cos(pi u)) / 2), where
    W = `warmup_share` T and u = min(1, (T - t) / (T - W)). Arguments and errors are those of
    `FixedLR`.

    References:
        Loshchilov and Hutter. SGDR: Stochastic gradient descent with warm restarts. 2017 (the
        cosine). Goyal et al. Accurate, large minibatch SGD. 2017 (the warm-up).

    >>> [round(lr, 3) for lr in CosineWarmupLR.simulate(total_steps=8, warmup_share=0.25)]
    [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067, 0.0]
    """

    def decayed(self, left: float) -> float:
        """d(u) = (1 - cos(pi u)) / 2."""
        return (1.0 - math.cos(math.pi * left)) / 2.0


class WSDLR(FixedLR):
    """Warm-up, stable, decay (WSD): linear to the initial learning rate, constant, then to zero.

    Step t of T has the initial learning rate times min((t + 1) / W, d(u)), where W is
    `warmup_share` T, u = min(1, (T - t) / D), D is `decay_share` T, and d(u) = u
    (`decay="linear"`) or 1 - sqrt(1 - u) (`decay="1-sqrt"`), which falls faster at first.

    Args:
        optimizer: as of `FixedLR`, like `total_steps`, `cap` and `log_size`.
        total_steps: T.
        warmup_share: W / T in [0, 1].
        decay_share: D / T in [0, 1]; 0 for no decay.
        decay: "linear" or "1-sqrt".
        cap: of the learning rate.
        log_size: of `log`.

    Raises:
        ValueError: as by `FixedLR`, or if `decay` is none of the two.

    References:
        Hu et al. MiniCPM: Unveiling the potential of small language models with scalable
        training strategies. 2024. Hägele et al. Scaling laws and compute-optimal training beyond
        fixed training durations. 2024 (1 - sqrt).

    >>> WSDLR.simulate(total_steps=10, warmup_share=0.2, decay_share=0.4)
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    >>> lrs = WSDLR.simulate(total_steps=10, warmup_share=0.2, decay_share=0.4, decay="1-sqrt")
    >>> [round(lr, 3) for lr in lrs[5:]]
    [1.0, 1.0, 0.5, 0.293, 0.134, 0.0]
    """

    _settings: ClassVar[tuple[str, ...]] = (*FixedLR._settings, "decay")

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        warmup_share: float = 0.05,
        decay_share: float = 0.2,
        decay: str = "linear",
        cap: Cap | None = None,
        log_size: int = 1000,
    ) -> None:
        require_choice("decay", decay, ("linear", "1-sqrt"))
        self.decay = decay
        super().__init__(
            optimizer,
            total_steps=total_steps,
            warmup_share=warmup_share,
            decay_share=decay_share,
            cap=cap,
            log_size=log_size,
        )

    def decayed(self, left: float) -> float:
        """d(u) = u or 1 - sqrt(1 - u)."""
        return left if self.decay == "linear" else 1.0 - math.sqrt(1.0 - left)

"""Guard: any scheduler, kept from diverging."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrpilot.arguments import require_within
from lrpilot.caps.cap import Cap
from lrpilot.schedulers.base import dry_run, idle_optimizer
from lrpilot.schedulers.guard.alarms import HEALTHY, UNHEALTHY, Alarms
from lrpilot.schedulers.guard.retries import Retries
from lrpilot.schedulers.guard.rollback import Rollback
from lrpilot.schedulers.guard.spike_detector import SpikeDetector
from lrpilot.schedulers.guard.wrapped import WrappedScheduler
from lrpilot.schedulers.loss_driven import LossDrivenLR
from lrpilot.schedulers.torch_scheduler import describe
from lrpilot.state import state_fields


class DivergenceError(RuntimeError):
    """A training diverged, and lower learning rates did not help."""


class Guard(LossDrivenLR):
    """Wraps a scheduler: backs off when the loss is NaN or spikes, and recovers step by step.

    The learning rate is the wrapped scheduler's times backoff^k, limited by the cap.

    k, the retries in use, begins at 0; an alarm adds 1, and `recovery_steps` healthy steps in a
    row take 1 away. An alarm that comes as soon after a recovery doubles the steps that the next
    recovery takes, until one lasts. Alarms, by their rule in `log`:

    - "nan": the loss is NaN or infinite;
    - "spike": the loss stands out of its noise (`SpikeDetector`), and, if it has not come back
      since the last alarm, more than twice as far as then;
    - "explosion" or "divergence": the mean of the last losses is ten times the recent ones or the
      first ones (`Brake`), however noisy they are. As long as it stays there no step is healthy,
      and after `recovery_steps` it is a divergence again, so that a run that died ends in an error;
    - "jump": five losses in a row are three times the recent and twice the first ones.

    The log's other rules are "recovered", "rollback" (signal: the steps lost) and "cap", where the
    cap begins to limit the wrapped scheduler or limits it at another value.

    With `model`, an alarm also puts the model (with BatchNorm's buffers) and the optimizer (with
    its step counters) back to a `Snapshot`. That is taken when the guard is made, and then every
    `snapshot_steps`, if everything is finite and the loss at or below its mean. The loss of the
    weights in it is seen only at the next step: if a single step ruins a calm run just then, the
    retries do not help, and the error says so. A loss that is NaN right after a rollback is
    warned of.

    The wrapped scheduler sees its own learning rates and healthy losses only: at an alarm it
    steps with the last healthy one, so its clock goes on (before any healthy loss, one that needs
    losses waits). Wrap the outermost scheduler: those in a `SequentialLR` or `ChainedScheduler` are
    given the loss, too. Where training code calls `step()` without a loss, call `observe(loss)`
    first. In distributed training give all ranks the same loss. A schedule that raises the learning
    rate on purpose (warm restarts) may need a larger `spike_ratio`. `HypergradientLR` and
    `LineSearchLR` set the learning rate after the guard does: give the cap to them. The line search
    has its own backing off, so that an alarm only rolls back; what hypergradients change while
    retries are in use lasts one step.

    Args:
        scheduler: any torch scheduler, or one of ours.
        model: rolled back at alarms; None only backs off.
        snapshot_steps: steps between snapshots.
        backoff: factor on the learning rate per retry, in (0, 1).
        recovery_steps: healthy steps that take a retry back.
        max_retries: retries in use at most; the next alarm is an error.
        spike_deviations: least height of a spike, in mean deviations of the loss.
        spike_ratio: least height of a spike, in multiples of the mean loss.
        cap: asked before every step; no group's learning rate exceeds its answer.
        log_size: decisions that `log` keeps.

    Raises:
        TypeError: if `scheduler` is not a torch scheduler.
        ValueError: if an argument is out of range, or the cap should be the wrapped scheduler's.
        RuntimeError: by `step()`, if no loss was given since the last call.
        DivergenceError: by `step`, at an alarm when `max_retries` are in use. With `model`, it has
            been put back once more.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> guard = Guard(torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), recovery_steps=2)
    >>> for loss in [2.0, math.nan, 1.9, 1.8]:
    ...     optimizer.step()
    ...     guard.step(loss)
    ...     print(guard.get_last_lr(), [decision.rule for decision in guard.log])
    [0.1] []
    [0.05] ['nan']
    [0.05] ['nan']
    [0.1] ['nan', 'recovered']
    """

    _state_fields = state_fields(
        "scheduler",
        alarms="_alarms",
        retries="_retries",
        rollback="_rollback",
        healthy_loss="_healthy_loss",
        observed_loss="_observed",
        scheduler_lrs="_own_lrs",
        capped_lr="_cap_lr",
    )
    _settings = ("wraps", "backoff", "rolls_back")

    def __init__(
        self,
        scheduler: LRScheduler,
        *,
        model: nn.Module | None = None,
        snapshot_steps: int = 100,
        backoff: float = 0.5,
        recovery_steps: int = 100,
        max_retries: int = 10,
        spike_deviations: float = 10.0,
        spike_ratio: float = 1.5,
        cap: Cap | None = None,
        log_size: int = 1000,
    ) -> None:
        if not isinstance(scheduler, LRScheduler):
            kind = type(scheduler).__name__
            raise TypeError(f"`scheduler` must be a torch scheduler, got {kind}")
        for name, value, interval in (
            ("backoff", backoff, "(0, 1)"),
            ("snapshot_steps", snapshot_steps, "[1, inf]"),
            ("recovery_steps", recovery_steps, "[1, inf]"),
            ("max_retries", max_retries, "[0, inf]"),
        ):
            require_within(name, value, interval)
        self._wrapped = WrappedScheduler(scheduler)
        if cap is not None and self._wrapped.moves_before_step:
            cure = "must be given to the scheduler inside, which sets the learning rate after the"
            raise ValueError(f"`cap` {cure} guard does, got {cap!r}")
        self.scheduler = scheduler
        self.backoff = backoff
        self.max_retries = max_retries
        self.detector = SpikeDetector(deviations=spike_deviations, ratio=spike_ratio)
        self._alarms = Alarms(self.detector, patience=recovery_steps)
        self._retries = Retries(recovery_steps)
        self._healthy_loss: float | None = None
        self._own_lrs: list[float] | None = None
        self._cap_lr: float | None = None
        self._rollback: Rollback | None = None
        if model is not None:
            self._rollback = Rollback(model, scheduler.optimizer, interval_steps=snapshot_steps)
        self._num_steps = -1
        super().__init__(scheduler.optimizer, cap=cap, log_size=log_size)

    @classmethod
    def simulate(
        cls,
        losses: Iterable[float],
        make: Callable[[Optimizer], LRScheduler],
        *,
        initial_lr: float = 0.1,
        **arguments: Any,
    ) -> list[float]:
        """The initial learning rate, then the one after each loss, without training.

        Args:
            losses: one per step.
            make: builds the scheduler that is wrapped.
            initial_lr: of the optimizer.
            **arguments: the constructor's, without `model`.

        >>> from torch.optim.lr_scheduler import StepLR
        >>> Guard.simulate([2.0, math.nan, 1.9], lambda o: StepLR(o, 2, 0.5), initial_lr=0.8)
        [0.8, 0.8, 0.2, 0.2]
        """
        return dry_run(cls(make(idle_optimizer(initial_lr)), **arguments), losses)

    @property
    def num_retries(self) -> int:
        """k, the retries in use."""
        return self._retries.in_use

    @property
    def factor(self) -> float:
        """The guard's own factor on the learning rate, at most 1."""
        return float(self.backoff**self.num_retries)

    @property
    def wraps(self) -> str:
        """The class of the wrapped scheduler, with those of the schedulers inside."""
        return describe(self.scheduler)

    @property
    def rolls_back(self) -> bool:
        """Whether alarms put the model back."""
        return self._rollback is not None

    def get_last_lr(self) -> list[float | Tensor]:
        """The learning rates that the optimizer has now."""
        return list(self.current_lrs())

    def step(self, loss: float | Tensor | None = None) -> None:
        """Judge the step that was just made, and set the learning rates of the next one.

        Args:
            loss: minibatch loss of the forward pass before this optimizer step: a number or a
                tensor of one element. May be None after `observe(loss)`.
        """
        if self._num_steps < 0:
            super().step()
            return
        value = loss if type(loss) is float else self._take(loss)
        self._observed = None
        self._take_in_groups()
        self._num_steps += 1
        decision = None
        verdict = self._alarms.judge(value)
        if verdict == HEALTHY:
            self._healthy_loss = value
            if count := self._retries.count_healthy_step():
                decision = "recovered", float(count), float(count)
            if self._rollback is not None:
                self._rollback.refresh(self._num_steps, is_calm=value <= self.detector.mean)
        else:
            self._retries.healthy_steps = 0
            if verdict != UNHEALTHY:
                decision = self._back_off(verdict, value)
        if decision is None and self._own_lrs is None and self.cap is None:
            self._wrapped.step(self._healthy_loss)
            return
        old_lr = self.current_lrs()[0]
        if self._own_lrs is not None:
            self.set_lrs(self._own_lrs)
        self._wrapped.step(self._healthy_loss)
        self._apply(old_lr, decision)

    def _apply(self, old_lr: float, decision: tuple[str, float, float] | None) -> None:
        """Take the learning rates as the scheduler's own, and put the guarded ones in place."""
        own = self.current_lrs()
        lrs = self.limit([lr * self.factor for lr in own])
        self._own_lrs = own if self.num_retries or self.cap is not None else None
        if lrs != own:
            self.set_lrs(lrs)
        cap_lr = max(lrs) if self.bound_by else None
        if decision is None and cap_lr is not None and cap_lr != self._cap_lr:
            decision = "cap", max(own) * self.factor, cap_lr
        self._cap_lr = cap_lr
        if decision is not None:
            self.record(*decision, lrs[0], old_lr=old_lr)

    def _back_off(self, rule: str, loss: float) -> tuple[str, float, float]:
        threshold = self._alarms.threshold(rule)
        cure = "give the guard the `model` to roll it back"
        if self._rollback is not None:
            cure = "lower the initial learning rate, or look at the data"
            lost_steps = self._rollback.put_back(self.last_epoch, is_nan=rule == "nan")
            self._alarms.brake.rewind()
            self.record("rollback", lost_steps, math.nan, self.current_lrs()[0])
        if self.num_retries == self.max_retries:
            raise DivergenceError(
                f"the loss is {loss:g} after step {self.last_epoch}, with {self.max_retries} "
                f"retries in use and the learning rate at {self.factor:g} of the scheduler's; "
                + cure
            )
        self._retries.add()
        return rule, loss, threshold

    @property
    def last_epoch(self) -> int:
        """Steps made; -1 while a `SequentialLR` has not reached the guard yet."""
        return self._num_steps

    @last_epoch.setter
    def last_epoch(self, count: int) -> None:
        if count < 0 <= self._num_steps:  # by a SequentialLR, for the guard alone
            self._wrapped.undo_start()
        self._num_steps = count

    def _start(self, *, at_milestone: bool) -> list[float]:
        self._wrapped.start(at_milestone=at_milestone)
        if self._rollback is not None:
            self._rollback.start(at_milestone=at_milestone)
        self._observed = None
        self._apply(self.current_lrs()[0], None)
        return self.current_lrs()

    def _next_lrs(self) -> list[float]:
        raise AssertionError  # `step` sets the learning rates itself

    def _join(self, lrs: list[float]) -> list[float]:
        if self._own_lrs is not None:
            self._own_lrs = self._own_lrs + lrs
        if self._rollback is not None:
            self._rollback.snapshot.take_missing()
        return [lr * self.factor for lr in lrs]

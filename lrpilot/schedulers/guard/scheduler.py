"""Guard: any scheduler, kept from diverging."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrpilot.caps.cap import Cap
from lrpilot.loss import read_loss
from lrpilot.policy.brake import Brake
from lrpilot.schedulers.base import AdaptiveLR, idle_optimizer
from lrpilot.schedulers.composition import find_observers
from lrpilot.schedulers.decision_log import Decision
from lrpilot.schedulers.guard.snapshot import Snapshot
from lrpilot.schedulers.guard.spike_detector import SpikeDetector
from lrpilot.schedulers.torch_scheduler import (
    describe,
    parts_of,
    start_again,
    start_at_milestone,
    states_of_parts,
    undo_start,
)
from lrpilot.state import state_fields


class DivergenceError(RuntimeError):
    """A training diverged, and lower learning rates did not help."""


class Guard(AdaptiveLR):
    """Wraps a scheduler: backs off when the loss is NaN or spikes, and recovers step by step.

    The learning rate is the wrapped scheduler's times backoff^k, limited by the cap. k, the
    retries in use, begins at 0; each alarm adds 1, and each `recovery_steps` healthy steps in a row
    take 1 away. If an alarm comes in that time after a recovery, it is doubled, until a recovery
    lasts. Alarms (the rules in `log`):

    - "nan": the loss is NaN or infinite;
    - "spike": the loss stands out of its noise (`SpikeDetector`), and, if it has not come back
      since the last alarm, more than twice as far as then;
    - "explosion" or "divergence": the mean of the last losses is ten times the recent ones or the
      first ones (`Brake`), however noisy they are. As long as it stays there no step is healthy,
      and after `recovery_steps` it is a divergence again, so that a run that died ends in an error.

    The other rules are "recovered", "rollback" (its signal is the steps lost) and "cap" (which now
    limits the wrapped scheduler, at another value than before)::

        guard = Guard(CosineAnnealingLR(optimizer, 10_000), model=model)
        for batch in batches:
            optimizer.zero_grad()
            loss = model(batch)
            loss.backward()
            optimizer.step()
            guard.step(loss)

    With `model`, an alarm also puts model (with BatchNorm's buffers) and optimizer (with its step
    counters) back to a snapshot. It is taken when the guard is made, and then every
    `snapshot_steps`, if everything is finite and the loss at or below its mean. For its memory, and
    what is in it, see `Snapshot`; if the loss is NaN again right after a rollback, a warning says
    so. The loss of the weights in it is seen only at the next step: if a single step ruins
    a calm run just then, the retries do not help, and the error says so.

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
        backoff: factor on the learning rate per retry, between 0 and 1.
        recovery_steps: healthy steps until a retry is taken back.
        max_retries: retries in use at most; the next alarm is an error.
        spike_deviations: see `SpikeDetector`, like the next one.
        spike_ratio: the least ratio of a spike to the mean loss.
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
        "detector",
        "brake",
        snapshot="_snapshot",
        snapshot_step="_snapshot_epoch",
        rollback_step="_rollback_epoch",
        retries_in_use="num_retries",
        healthy_loss="_healthy_loss",
        healthy_steps="_healthy_steps",
        healthy_steps_needed="_wait",
        has_recovered="_has_recovered",
        spike_ceiling="_ceiling",
        high_steps="_high_steps",
        has_warned="_has_warned",
        scheduler_lrs="_own_lrs",
        capped_lr="_cap_lr",
        observed_loss="_observed",
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
            raise TypeError(
                f"`scheduler` must be a torch scheduler, got {type(scheduler).__name__}"
            )
        if not 0.0 < backoff < 1.0:
            raise ValueError(f"`backoff` must be between 0 and 1, got {backoff}")
        for name, count, least in (
            ("snapshot_steps", snapshot_steps, 1),
            ("recovery_steps", recovery_steps, 1),
            ("max_retries", max_retries, 0),
        ):
            if not count >= least:
                raise ValueError(f"`{name}` must be at least {least}, got {count}")
        if cap is not None and _moves_before_step(scheduler):
            raise ValueError(
                "`cap` must be given to the scheduler inside, which sets the learning rate after "
                f"the guard does, got {cap!r}"
            )
        self.scheduler = scheduler
        self.snapshot_steps = snapshot_steps
        self.backoff = backoff
        self.recovery_steps = recovery_steps
        self.max_retries = max_retries
        self.detector = SpikeDetector(deviations=spike_deviations, ratio=spike_ratio)
        self.brake = Brake()
        first = next(iter(inspect.signature(scheduler.step).parameters.values()), None)
        self._wrapped_step: Callable[..., None] = scheduler.step
        self._takes_loss = (
            first is not None
            and first.kind is first.POSITIONAL_OR_KEYWORD
            and first.name != "epoch"
        )
        self._observers = [] if self._takes_loss else find_observers(scheduler)
        self.num_retries = 0
        self._healthy_loss: float | None = None
        self._healthy_steps = 0
        self._wait = recovery_steps
        self._has_recovered = False
        self._ceiling = -math.inf
        self._own_lrs: list[float] | None = None
        self._cap_lr: float | None = None
        self._observed: float | None = None
        self._snapshot = None if model is None else Snapshot(model, scheduler.optimizer)
        self._snapshot_epoch = 0
        self._high_steps = 0
        self._rollback_epoch = -1
        self._has_warned = False
        self._num_steps = -1
        self._is_undone = False
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
        """The learning rates under these losses, without training.

        Args:
            losses: one per step.
            make: builds the scheduler that is wrapped.
            initial_lr: learning rate of the optimizer.
            **arguments: the constructor's, without `model`.

        Returns:
            The first learning rate, and the one that is set after each loss.

        >>> from torch.optim.lr_scheduler import StepLR
        >>> Guard.simulate([2.0, math.nan, 1.9], lambda o: StepLR(o, 2, 0.5), initial_lr=0.8)
        [0.8, 0.8, 0.2, 0.2]
        """
        optimizer = idle_optimizer(initial_lr)
        guard = cls(make(optimizer), **arguments)
        lrs = guard.current_lrs()
        for loss in losses:
            optimizer.step()
            guard.step(loss)
            lrs += guard.current_lrs()
        return lrs

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
        return self._snapshot is not None

    def get_last_lr(self) -> list[float | Tensor]:
        """The learning rates that the optimizer has now."""
        return list(self.current_lrs())

    def observe(self, loss: float | Tensor) -> None:
        """Take the loss of the step that was just made, without stepping."""
        self._observed = read_loss(loss)

    def step(self, loss: float | Tensor | None = None) -> None:
        """Judge the step that was just made, and set the learning rates of the next one.

        Args:
            loss: minibatch loss of the forward pass before this optimizer step: a number or a
                tensor of one element. May be None after `observe(loss)`.
        """
        if self._num_steps < 0:
            super().step()
            return
        observed, self._observed = self._observed, None
        value = loss if type(loss) is float else _read(loss, observed)
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            self._take_in_groups()
        self._num_steps += 1
        decision = None
        rule = self.brake.update(value)
        is_spike = rule != "nan" and self.detector.is_spike(value)
        if is_spike:
            self._healthy_steps = 0
            if value > self._ceiling:
                self._ceiling = 2.0 * value - self.detector.mean
                rule = rule or "spike"
        if rule is None and self.brake.is_high:
            self._high_steps += 1
            if self._high_steps == self.recovery_steps:
                rule = "divergence"
        elif rule is None and not is_spike:
            self._healthy_loss = value
            self._ceiling = -math.inf
            if self.num_retries or self._has_recovered:
                decision = self._recover()
            if self._snapshot is not None:
                self._refresh(self._snapshot, value)
        if rule is not None:
            decision = self._back_off(rule, value)
        if decision is None and self._own_lrs is None and self.cap is None:
            self._step_wrapped()
            return
        old_lr = self.current_lrs()[0]
        if self._own_lrs is not None:
            self.set_lrs(self._own_lrs)
        self._step_wrapped()
        self._apply(old_lr, decision)

    def _step_wrapped(self) -> None:
        loss = self._healthy_loss
        if self._takes_loss:
            if loss is not None:
                self._wrapped_step(loss)
        elif not self._observers:
            self._wrapped_step()
        elif loss is not None:
            for observer in self._observers:
                observer.observe(loss)
            self._wrapped_step()

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
            self._log(decision, old_lr, lrs[0])

    def _log(self, decision: tuple[str, float, float], old_lr: float, new_lr: float) -> None:
        rule, signal, threshold = decision
        entry = (self.last_epoch, old_lr, new_lr, signal, threshold, rule, self.bound_by or "")
        self.log.add(Decision(*entry))

    def _recover(self) -> tuple[str, float, float] | None:
        self._healthy_steps += 1
        if self._healthy_steps < self._wait:
            return None
        decision = "recovered", float(self._healthy_steps), float(self._wait)
        self._healthy_steps = 0
        if self.num_retries:
            self.num_retries -= 1
            self._has_recovered = True
            return decision
        self._has_recovered = False
        self._wait = self.recovery_steps
        return None

    def _refresh(self, snapshot: Snapshot, loss: float) -> None:
        if self.last_epoch == 1:
            snapshot.take_missing()  # what the first forward pass has created
        if (
            self.last_epoch - self._snapshot_epoch >= self.snapshot_steps
            and loss <= self.detector.mean
            and snapshot.take()
        ):
            self._snapshot_epoch = self.last_epoch

    def _back_off(self, rule: str, loss: float) -> tuple[str, float, float]:
        if self._has_recovered:
            self._wait *= 2
            self._has_recovered = False
        self._healthy_steps = self._high_steps = 0
        threshold = {"nan": math.nan, "spike": self.detector.threshold}.get(
            rule, self.brake.threshold
        )
        if self._snapshot is not None:
            self._warn_of_return(rule)
            self._snapshot.restore()
            self.brake.rewind()
            lr = self.current_lrs()[0]
            self._log(("rollback", self.last_epoch - self._snapshot_epoch, math.nan), lr, lr)
            self._snapshot_epoch = self._rollback_epoch = self.last_epoch
        if self.num_retries == self.max_retries:
            raise DivergenceError(
                f"the loss is {loss:g} after step {self.last_epoch}, with {self.max_retries} "
                f"retries in use and the learning rate at {self.factor:g} of the scheduler's; "
                + (
                    "lower the initial learning rate, or look at the data"
                    if self._snapshot is not None
                    else "give the guard the `model` to roll it back"
                )
            )
        self.num_retries += 1
        return rule, loss, threshold

    def _warn_of_return(self, rule: str) -> None:
        if rule == "nan" and self.last_epoch - 1 == self._rollback_epoch and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the loss is NaN or infinite again right after a rollback (step "
                f"{self.last_epoch}): the cause is in the data, or in what the guard cannot put "
                "back: give it the whole `model`, and a scheduler of the optimizer that holds the "
                "state (further returns are not reported)",
                RuntimeWarning,
                stacklevel=4,
            )

    @property
    def last_epoch(self) -> int:
        """Steps made; -1 while a `SequentialLR` has not reached the guard yet."""
        return self._num_steps

    @last_epoch.setter
    def last_epoch(self, count: int) -> None:
        if count < 0 <= self._num_steps:  # by a SequentialLR, for the guard alone
            undo_start(self.scheduler)
            self._is_undone = True
        self._num_steps = count

    def _start(self, *, at_milestone: bool) -> list[float]:
        if self._is_undone:
            start_at_milestone(self.scheduler) if at_milestone else start_again(self.scheduler)
            self._is_undone = False
        if at_milestone and self._snapshot is not None:
            self._snapshot.take()
        self._snapshot_epoch = 0
        self._observed = None
        self._apply(self.current_lrs()[0], None)
        return self.current_lrs()

    def _next_lrs(self) -> list[float]:
        raise AssertionError  # `step` sets the learning rates itself

    def _join(self, lrs: list[float]) -> list[float]:
        if self._own_lrs is not None:
            self._own_lrs = self._own_lrs + lrs
        if self._snapshot is not None:
            self._snapshot.take_missing()
        return [lr * self.factor for lr in lrs]

    def check_state(self, state: Any) -> None:
        """Refuse also a state around another scheduler, or of another model."""
        super().check_state(state)
        for part, part_state in states_of_parts(self.scheduler, state["scheduler"]):
            if isinstance(part, AdaptiveLR):
                part.check_state(part_state)
        if self._snapshot is not None:
            self._snapshot.check_state(state["snapshot"])


def _read(loss: float | Tensor | None, observed: float | None) -> float:
    if loss is not None:
        return read_loss(loss)
    if observed is None:
        raise RuntimeError(
            "`step` needs a loss: call `step(loss)`, or `observe(loss)` before `step()`"
        )
    return observed


def _moves_before_step(scheduler: Any) -> bool:
    inside = map(_moves_before_step, parts_of(scheduler))
    return getattr(scheduler, "moves_before_step", False) or any(inside)

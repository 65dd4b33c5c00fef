"""PolicyLR: a learned policy as a PyTorch learning-rate scheduler."""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from lrpilot.arguments import require_count
from lrpilot.caps.cap import Cap, ask_cap
from lrpilot.policy.action import FACTOR_RANGE
from lrpilot.policy.actor import Policy
from lrpilot.policy.brake import Brake
from lrpilot.policy.controller import Controller
from lrpilot.policy.edge_distance import EdgeDistance
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.schedulers.base import AdaptiveLR, idle_optimizer
from lrpilot.state import state_fields


class _Parameters:
    """The parameters that an optimizer has when one goes through them."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def __iter__(self) -> Iterator[Tensor]:
        return (p for group in self._optimizer.param_groups for p in group["params"])


class PolicyLR(AdaptiveLR):
    """Sets the learning rate by a learned policy, once per decision interval.

    After k decisions lr = initial lr x factor, where the factor follows the policy's
    `ActionSpec` and stays in its box; every parameter group has the same factor. The box of the
    policies that ship reaches from 1e-4 to 100 times the learning rate that the optimizer is
    given, and they start at 0.03 of it: where more would harm, as in fine-tuning, give
    `max_factor`::

        scheduler = PolicyLR(optimizer, "policy.safetensors", total_steps=10_000)
        for batch in batches:
            optimizer.zero_grad()
            loss = model(batch)
            loss.backward()
            optimizer.step()
            scheduler.step(loss)

    In `SequentialLR` or `ChainedScheduler`, which call `step()` without a loss, call
    `scheduler.observe(loss)` first. In a chain the incoming learning rate is multiplied by the
    change of the factor. The clock restarts when `SequentialLR` reaches the policy.

    A policy can be wrong, so there is a brake (`Brake`): when the loss explodes, a
    tenth of the learning rate is left whatever the policy says, it never gets above 0.3 of what it
    was, and as long as the loss is too high the steps are shorter still (`Controller`); for this,
    as for warm-up, the box has no lower end. A warning says so once, and `log` every time. Losses
    of a device other than the CPU are read at decisions, so that no step waits for it, and the
    brake acts then. It does not put weights back: `Guard(PolicyLR(...), model=model)` does.

    Movement and gradients are those of the parameters that are trained: frozen ones are left out,
    and those that are unfrozen, added or replaced join at the next decision.

    Args:
        optimizer: the wrapped optimizer; its learning rates are the initial ones.
        policy: a `Policy`, a policy file, or a run folder.
        total_steps: T, optimizer steps of the run, warm-up included; may be None if the policy
            uses neither progress nor an anchor schedule. Outside the `horizon_range` of the
            policy's clock, on which it was trained, a warning says so. Past T, too: progress stays
            1, and with a decaying anchor the learning rate stays at the lower end of the box;
            see `extend`.
        interval_steps: optimizer steps per decision; by default T / num_decisions, rounded.
        warmup_steps: steps of linear warm-up before the clock starts; losses are observed.
        min_factor: replaces the lower end of the policy's box, relative to the initial lr.
        max_factor: replaces the upper end.
        cap: asked before every step; no group's learning rate exceeds its answer. Required if the
            policy's factor is in units of the cap: then it replaces the initial learning rate.
        curvature: returns the loss on a batch of training data, such as the last step's; required
            if the policy observes the curvature, and called at its decisions only.
        model: whose buffers (BatchNorm) are put back after `curvature` was called.
        log_size: decisions that `log` keeps: rule "decision", whose signal is the action in
            [-1, 1], "brake", whose signal is the loss, and "cap" where a cap starts or ceases to
            bind between decisions.

    Raises:
        ValueError: if an argument is out of range or T is missing where it is needed.
        RuntimeError: by `step()`, if no loss was given since the last call.
    """

    _state_fields = state_fields(
        "controller",
        applied_factor="_applied",
        has_loss="_has_loss",
        relief="_relief",
        num_logged_alarms="_num_logged_alarms",
    )

    def __init__(
        self,
        optimizer: Optimizer,
        policy: Policy | str | os.PathLike[str],
        *,
        total_steps: int | None = None,
        interval_steps: int | None = None,
        warmup_steps: int = 0,
        min_factor: float | None = None,
        max_factor: float | None = None,
        cap: Cap | None = None,
        curvature: Callable[[], Tensor] | None = None,
        model: nn.Module | None = None,
        log_size: int = 1000,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` is not an Optimizer, got {type(optimizer).__name__}")
        self.policy = policy if isinstance(policy, Policy) else Policy.load(policy)
        action = self.policy.action
        low = action.min_factor if min_factor is None else min_factor
        high = action.max_factor if max_factor is None else max_factor
        start = max(low, min(high, action.start_factor))
        action = replace(action, min_factor=low, max_factor=high, start_factor=start)
        parameters = _Parameters(optimizer)
        if not any(True for _ in parameters):
            raise ValueError("`optimizer` must hold at least one parameter, got none")
        self._sample = ParameterSample(parameters, self.policy.observation.num_entries)
        edge_distance = None
        if curvature is not None and "curvature" in self.policy.observation.groups:
            edge_distance = EdgeDistance(optimizer, curvature, model=model)
        self._brake = Brake()
        self.controller = Controller(
            self.policy.observation,
            action,
            self._sample,
            interval_steps=self._interval_steps(total_steps, interval_steps),
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            curvature=edge_distance,
            brake=self._brake,
        )
        if action.unit == "cap" and cap is None:
            raise ValueError("`cap` is required: the policy's factor is in units of the cap")
        self._applied = 1.0
        self._has_loss = False
        self._relief = 1.0
        self._is_due = False
        self._num_logged_alarms = 0
        super().__init__(optimizer, cap=cap, log_size=log_size)

    def _interval_steps(self, total_steps: int | None, interval_steps: int | None) -> int:
        clock = self.policy.clock
        is_trained = self._warn_of_horizon(total_steps, stacklevel=4)
        if interval_steps is None:
            return clock.interval_steps(total_steps or clock.horizon_range[1])
        if is_trained and interval_steps >= 1:
            self._warn(clock.foreign_interval(interval_steps), stacklevel=3)
        return interval_steps

    def _warn_of_horizon(self, total_steps: int | None, *, stacklevel: int) -> bool:
        """Whether the policy was trained on runs of this length; else a warning says so."""
        problem = None if not total_steps else self.policy.clock.foreign_horizon(total_steps)
        self._warn(problem, stacklevel=stacklevel)
        return problem is None

    @staticmethod
    def _warn(problem: str | None, *, stacklevel: int) -> None:
        if problem is not None:
            warnings.warn(problem, UserWarning, stacklevel=stacklevel + 1)

    @property
    def total_steps(self) -> int | None:
        """T, optimizer steps of the run."""
        total_steps: int | None = self.controller.total_steps
        return total_steps

    def extend(self, total_steps: int) -> None:
        """Make the run longer, from its next decision on, as when it is resumed.

        Progress is then t over the new T. The interval stays, so that what is measured over it
        stays comparable::

            scheduler = PolicyLR(optimizer, "cifar", total_steps=300)
            scheduler.load_state_dict(state)
            scheduler.extend(600)

        Args:
            total_steps: the new T, all steps of the run from its start.

        Raises:
            ValueError: if it is not above the present T, or T was not given.
        """
        known = self.total_steps
        if known is None:
            raise ValueError("`total_steps` must have been given to be extended")
        require_count("total_steps", total_steps)
        if total_steps <= known:
            raise ValueError(f"`total_steps` must be above {known} to extend it, got {total_steps}")
        self._warn_of_horizon(total_steps, stacklevel=3)
        self.controller.total_steps = total_steps

    @property
    def factor(self) -> float:
        """The learning rate over the initial one, after warm-up, brake and cap."""
        return self._applied

    def observe(self, loss: float | Tensor) -> None:
        """Take the minibatch loss of the step that was just made, without stepping."""
        known = self._brake.num_alarms
        self.controller.observe(loss)
        self._has_loss = True
        if self._brake.num_alarms > known:
            self._warn_of_alarm(known, stacklevel=3)

    def _warn_of_alarm(self, known_alarms: int, *, stacklevel: int) -> None:
        """Say the first alarm; the later ones are in the log alone."""
        if known_alarms == 0:
            warnings.warn(
                f"{self._brake.describe(self.last_epoch)}. The learning rate is cut to a tenth "
                '(later alarms are in `log` alone, as "brake"); `Guard(scheduler, model=model)` '
                "also puts the weights back",
                RuntimeWarning,
                stacklevel=stacklevel,
            )

    def _warn_past_horizon(self) -> None:
        if self.policy.action.needs_progress or self.policy.observation.needs_progress:
            warnings.warn(
                f"step {self.total_steps} + 1 is past `total_steps` = {self.total_steps}: progress "
                "stays 1 and the learning rate where the schedule ended; make the scheduler with "
                "all steps of the run, or call `extend(total_steps)`",
                UserWarning,
                stacklevel=3,
            )

    def step(self, loss: float | Tensor | None = None) -> None:
        """Set the learning rates of the next step; call it after `optimizer.step()`.

        Args:
            loss: minibatch loss of the forward pass before this optimizer step: a number or a
                tensor of one element. May be None after `observe(loss)`.
        """
        if self.is_waiting:
            super().step()
            return
        controller, brake = self.controller, self._brake
        known = brake.num_alarms
        if loss is not None:
            controller.observe(loss)
        elif not self._has_loss:
            raise RuntimeError(
                "`step` needs a loss: call `step(loss)`, or `observe(loss)` before `step()`"
            )
        self._has_loss = False
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            self._take_in_groups()
        if controller.num_steps == controller.total_steps:
            self._warn_past_horizon()
        self._is_due = controller.advance()
        if brake.num_alarms > known:
            self._warn_of_alarm(known, stacklevel=3)
        if self.last_epoch == 0:
            super().step()  # with torch's warnings about the order of calls
        elif (
            self._is_due
            or controller.num_steps <= controller.warmup_steps
            or self.cap is not None
            or brake.relief != self._relief
            or brake.num_alarms != self._num_logged_alarms
        ):
            self._advance()
        else:
            self._count_step()

    def _start(self, *, at_milestone: bool) -> list[float]:
        if at_milestone:
            self.controller.close_interval()
            self._has_loss = False
        self._num_logged_alarms = self._brake.num_alarms
        self.controller.restart()
        self._memory = self.policy.initial_memory()
        return self._set_factor(before=None, decided=False)

    def _next_lrs(self) -> list[float]:
        known, is_due = self._brake.num_alarms, self._is_due
        if is_due:
            observation = self.controller.close_interval()
            if self._brake.num_alarms > known:  # losses of a device are read only now
                self._warn_of_alarm(known, stacklevel=6)
            self.controller.act(self.policy.act(observation, self._memory))
        return self._set_factor(before=self._applied, decided=is_due)

    def _join(self, lrs: list[float]) -> list[float]:
        if self.controller.action.unit == "cap":
            return super()._join(lrs)
        return [lr * self._applied for lr in lrs]

    def _set_factor(self, *, before: float | None, decided: bool) -> list[float]:
        """The learning rates at the controller's factor; `before` is the one that was applied."""
        controller, was_bound_by = self.controller, self.bound_by
        factor = controller.factor
        if controller.num_steps < controller.warmup_steps:
            factor *= (controller.num_steps + 1) / controller.warmup_steps
        self._relief = controller.relief
        if self._relief != 1.0:
            factor = max(FACTOR_RANGE[0], factor * self._relief)
        lrs = self._capped(before, factor)
        if self._brake.num_alarms > self._num_logged_alarms:
            self._num_logged_alarms = self._brake.num_alarms
            self.record("brake", self._brake.loss, self._brake.threshold, float(lrs[0]))
        if decided:
            self.record("decision", controller.previous_action, math.nan, float(lrs[0]))
        elif self.bound_by != was_bound_by:
            self.record("cap", math.nan, math.nan, float(lrs[0]))
        return lrs

    def _capped(self, before: float | None, factor: float) -> list[float]:
        """The learning rates at this factor, shortened by the cap."""
        self.bound_by = None
        if self.controller.action.unit == "cap":
            return self._fractions_of_cap(factor)
        lrs = self._scaled(before, factor)
        if self.cap is not None:
            eta_max, guarantee = ask_cap(self.cap)
            if max(lrs) > eta_max:
                self.bound_by = guarantee
                factor *= eta_max / max(lrs)
                # the products may round above the cap by a last digit
                while max(lrs := self._scaled(before, factor)) > eta_max:
                    factor = math.nextafter(factor, 0.0)
        self._applied = factor
        return lrs

    def _fractions_of_cap(self, factor: float) -> list[float]:
        assert self.cap is not None
        eta_max, guarantee = ask_cap(self.cap)
        if factor >= 1.0:
            self.bound_by = guarantee
        self._applied = factor
        largest = max(float(base) for base in self.base_lrs)
        return [factor * eta_max * (float(base) / largest) for base in self.base_lrs]

    def _scaled(self, before: float | None, factor: float) -> list[float]:
        """The learning rates when the factor changes from `before` (None: starts) to `factor`."""
        return [
            float(base) * factor
            # exact, and free of rounding drift, unless somebody else sets the learning rate too
            if before is None or bool(group["lr"] == float(base) * before)
            else float(group["lr"]) * (factor / before)
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    @classmethod
    def simulate(
        cls,
        losses: Iterable[float],
        policy: Policy | str | os.PathLike[str],
        *,
        initial_lr: float = 0.1,
        **arguments: Any,
    ) -> list[float]:
        """The learning rates under these losses, without training.

        Args:
            losses: minibatch losses, one per optimizer step.
            policy: as in the constructor; it must observe losses alone, unlike those that ship.
            initial_lr: learning rate of the optimizer.
            **arguments: the constructor's.

        Returns:
            The first learning rate, and the one that is set after each loss.

        Raises:
            ValueError: if the policy observes what only a training has.
        """
        policy = policy if isinstance(policy, Policy) else Policy.load(policy)
        of_training = ("movement", "gradient", "curvature")
        missing = [group for group in of_training if group in policy.observation.groups]
        if missing:
            raise ValueError(
                f"`policy` must observe losses alone to be simulated, got one with {missing}; "
                "train one with env.observation.groups=[progress,loss,lr], or run this one in a "
                "training"
            )
        optimizer = idle_optimizer(initial_lr)
        scheduler = cls(optimizer, policy, **arguments)
        lrs = scheduler.current_lrs()
        for loss in losses:
            optimizer.step()
            scheduler.step(loss)
            lrs += scheduler.current_lrs()
        return lrs

    def state_dict(self) -> dict[str, Any]:
        """The state of the schedule; the policy itself is named by its fingerprint."""
        return {
            **super().state_dict(),
            **self._identity(),
            "memory": self._memory.tolist(),
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "policy": self.policy.fingerprint,
            "total_steps": self.controller.total_steps,
            "interval_steps": self.controller.interval_steps,
            "warmup_steps": self.controller.warmup_steps,
        }

    def check_state(self, state: Any) -> None:
        """Refuse also a state of another policy, interval, horizon or warm-up."""
        super().check_state(state)
        # the horizon first, since the interval follows it
        for name, mine in self._identity().items():
            if state[name] == mine:
                continue
            cure = ""
            if name == "total_steps" and mine and state[name] and mine > state[name]:
                cure = (
                    f": to make the run longer, make the scheduler with `total_steps` = "
                    f"{state[name]}, load the state, and call `extend({mine})`"
                )
            raise ValueError(
                f"`state_dict` must have `{name}` = {mine!r} like this scheduler, got "
                f"{state[name]!r}{cure}"
            )
        self._sample.check_state(state["controller"]["observer"]["sample"])

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._memory = np.array(state["memory"], np.float32)

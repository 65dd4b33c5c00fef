"""PolicyLR: a learned policy as a PyTorch learning-rate scheduler."""

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from lrpilot.caps.cap import Cap
from lrpilot.policy.action import FACTOR_RANGE
from lrpilot.policy.actor import DEFAULT_POLICY, Policy
from lrpilot.policy.brake import Brake
from lrpilot.policy.controller import Controller
from lrpilot.policy.edge_distance import EdgeDistance
from lrpilot.policy.familiarity import Familiarity
from lrpilot.policy.parameter_sample import OptimizerParameters, ParameterSample
from lrpilot.schedulers import policy_checks as checks
from lrpilot.schedulers.base import idle_optimizer
from lrpilot.schedulers.factor import FactorLR
from lrpilot.state import state_fields


class PolicyLR(FactorLR):
    """Sets the learning rate by a learned policy, once per decision interval.

    After k decisions lr = initial lr x factor, where the factor follows the policy's
    `ActionSpec` and stays in its box; every parameter group has the same factor. The box of the
    policies that ship reaches from 1e-4 to 100 times the learning rate that the optimizer is
    given, from 0.03 of it on: where more would harm, as in fine-tuning, give `max_factor`::

        scheduler = PolicyLR(optimizer, total_steps=600)
        for batch in batches:
            optimizer.zero_grad()
            loss = model(batch)
            loss.backward()
            optimizer.step()
            scheduler.step(loss)

    In `SequentialLR` or `ChainedScheduler`, which call `step()` without a loss, call
    `scheduler.observe(loss)` first. The clock restarts when `SequentialLR` reaches the policy.

    A policy can be wrong, so there is a brake (`Brake`, `Controller`): when the loss explodes, a
    tenth of the learning rate is left, and the box has no lower end, as in warm-up. Losses of a
    device other than the CPU are read at decisions, so that no step waits for it, and the brake
    acts then. It puts no weights back: `Guard(PolicyLR(...), model=model)` does. Nor is a policy
    followed where it sees for several decisions what it never saw in training (`Familiarity`): its
    multiplier stays, and the anchor goes on. One warning says so, and `log` each time.

    Movement and gradients are those of the parameters that are trained: frozen ones are left out,
    and those that are unfrozen, added or replaced join at the next decision.

    Args:
        optimizer: the wrapped optimizer; its learning rates are the initial ones.
        policy: a `Policy`, the name of a shipped one, a policy file, or a run folder.
        total_steps: T, optimizer steps of the run, warm-up included; may be None if the policy
            uses neither progress nor an anchor schedule. Outside the policy's `horizon_range`, on
            which it was trained, a warning says so; past T, too, where progress stays 1 (`extend`).
        interval_steps: optimizer steps per decision; by default T / num_decisions, rounded.
        warmup_steps: steps of linear warm-up before the clock starts; losses are observed.
        min_factor: replaces the lower end of the policy's box, relative to the initial lr.
        max_factor: replaces the upper end.
        cap: asked before every step; no group's learning rate exceeds its answer. Required if the
            policy's factor is in units of the cap: then it replaces the initial learning rate.
        curvature: returns the loss on a batch of training data; for policies that observe it.
        model: whose buffers (BatchNorm) are put back after `curvature` was called.
        patience: decisions in a row outside the ranges of training that are borne.
        log_size: decisions that `log` keeps: rules "decision" and "outside" (signal: the action),
            "brake" (the loss), and "cap" where a cap starts or ceases to bind between decisions.

    Raises:
        ValueError: if an argument is out of range or T is missing where it is needed.
        RuntimeError: by `step()`, if no loss was given since the last call.
    """

    _state_fields = state_fields(
        "controller",
        applied_factor="_applied",
        has_loss="_has_loss",
        relief="_relief",
        familiarity="_familiarity",
        num_logged_alarms="_num_logged_alarms",
    )

    def __init__(
        self,
        optimizer: Optimizer,
        policy: Policy | str | os.PathLike[str] = DEFAULT_POLICY,
        *,
        total_steps: int | None = None,
        interval_steps: int | None = None,
        warmup_steps: int = 0,
        min_factor: float | None = None,
        max_factor: float | None = None,
        cap: Cap | None = None,
        curvature: Callable[[], Tensor] | None = None,
        model: nn.Module | None = None,
        patience: int = 3,
        log_size: int = 1000,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` is not an Optimizer, got {type(optimizer).__name__}")
        self.policy = policy if isinstance(policy, Policy) else Policy.load(policy)
        action = self.policy.action.within(min_factor, max_factor)
        parameters = OptimizerParameters(optimizer)
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
            interval_steps=checks.interval_of(self.policy.clock, total_steps, interval_steps),
            clock=self.policy.clock,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            curvature=edge_distance,
            brake=self._brake,
        )
        self.is_unit_cap = action.unit == "cap"
        if self.is_unit_cap and cap is None:
            raise ValueError("`cap` is required: the policy's factor is in units of the cap")
        self._familiarity = Familiarity(self.policy, patience=patience)
        self._has_loss = False
        self._relief = 1.0
        self._is_due = False
        self._num_logged_alarms = 0
        super().__init__(optimizer, cap=cap, log_size=log_size)

    @property
    def total_steps(self) -> int | None:
        """T, optimizer steps of the run."""
        return self.controller.total_steps  # type: ignore[no-any-return]

    def extend(self, total_steps: int) -> None:
        """Make the run longer, from its next decision on, as when it is resumed.

        Progress is then t over the new T; the interval stays, and what is measured over it. A
        state is loaded before: `scheduler.load_state_dict(state)`, then `scheduler.extend(600)`.

        Args:
            total_steps: the new T, all steps of the run from its start.

        Raises:
            ValueError: if it is not above the present T, or T was not given.
        """
        checks.require_longer(self.total_steps, total_steps)
        checks.warn_of_horizon(self.policy.clock, total_steps, stacklevel=3)
        self.controller.total_steps = total_steps

    def observe(self, loss: float | Tensor) -> None:
        """Take the minibatch loss of the step that was just made, without stepping."""
        known = self._brake.num_alarms
        self.controller.observe(loss)
        self._has_loss = True
        if self._brake.num_alarms > known:
            checks.warn_of_alarm(self._brake, known, step=self.last_epoch)

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
            checks.warn_past_horizon(self.policy, controller.total_steps)
        self._is_due = controller.advance()
        if brake.num_alarms > known:
            checks.warn_of_alarm(self._brake, known, step=self.last_epoch)
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
                checks.warn_of_alarm(self._brake, known, step=self.last_epoch, stacklevel=6)
            action = self.policy.act(observation, self._memory)
            if self._familiarity.has_left(observation):
                checks.warn_of_outside(self._familiarity, step=self.last_epoch)
                action = 0.0
            self.controller.act(action)
        return self._set_factor(before=self._applied, decided=is_due)

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
            rule = "outside" if self._familiarity.is_outside else "decision"
            self.record(rule, controller.previous_action, math.nan, float(lrs[0]))
        elif self.bound_by != was_bound_by:
            self.record("cap", math.nan, math.nan, float(lrs[0]))
        return lrs

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
        checks.require_losses_alone(policy)
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
        return {**super().state_dict(), **self._identity(), "memory": self._memory.tolist()}

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
        checks.require_same(self._identity(), state)
        self._sample.check_state(state["controller"]["observer"]["sample"])

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._memory = np.array(state["memory"], np.float32)

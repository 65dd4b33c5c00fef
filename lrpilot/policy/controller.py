"""The decision loop of one training run, shared by the simulator and the deployed scheduler."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.policy.action import FACTOR_RANGE, ActionSpec
from lrpilot.policy.brake import Brake
from lrpilot.policy.edge_distance import EdgeDistance
from lrpilot.policy.observation import ObservationSpec, Observer

BRAKE_FACTOR = 0.1
"""What an alarm of the brake leaves of the learning rate."""
BRAKE_LIMIT = 0.3
"""What is allowed after it, of the learning rate that raised it."""


class Controller:
    """Counts steps, gathers losses, and applies actions for one run.

    The environment and `PolicyLR` both drive this class and nothing else, so what a policy sees
    and does in training is what it sees and does in deployment. `step` is what every optimizer
    step calls; where the loss comes earlier, it is `observe` and then `advance`.

    With a brake, an alarm leaves a tenth of the factor, whatever the policy says, and the policy
    never gets above 0.3 of it again. As long as the loss is above the alarm's threshold, `relief`
    shortens the steps by threshold / loss, since the curvature of a network grows with its loss;
    after a loss that looks like the first of an explosion it is 0 until the next one tells.
    Environments have no brake: there a diverged run ends its episode, and agents learn to avoid it.

    Args:
        observation: what is observed.
        action: what an action does.
        parameters: the optimizer's parameters, gone through again at every decision.
        interval_steps: optimizer steps per decision.
        total_steps: T, or None if neither progress nor an anchor is used.
        warmup_steps: steps before the clock of the intervals starts.
        curvature: measures the curvature; required if it is observed.
        brake: is given every loss when it is read, which for one of a device is the next decision.

    Raises:
        ValueError: if a count is out of range, or what is needed of T and `curvature` is missing.
    """

    def __init__(
        self,
        observation: ObservationSpec,
        action: ActionSpec,
        *,
        parameters: Iterable[Tensor],
        interval_steps: int,
        total_steps: int | None,
        warmup_steps: int = 0,
        curvature: EdgeDistance | None = None,
        brake: Brake | None = None,
    ) -> None:
        if not isinstance(interval_steps, int | np.integer) or interval_steps < 1:
            raise ValueError(f"`interval_steps` must be at least 1, got {interval_steps}")
        if warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must not be negative, got {warmup_steps}")
        if total_steps is None:
            if observation.needs_progress or action.needs_progress:
                raise ValueError(
                    "`total_steps` is required: the policy uses progress or an anchor schedule"
                )
        elif total_steps < 1:
            raise ValueError(f"`total_steps` must be at least 1, got {total_steps}")
        elif warmup_steps >= total_steps:
            raise ValueError(
                f"`warmup_steps` must be below `total_steps` = {total_steps}, got {warmup_steps}"
            )
        self.action = action
        self.brake = brake
        self.observer = Observer(observation, parameters, curvature=curvature, brake=brake)
        self.interval_steps = interval_steps
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.restart()

    def restart(self) -> None:
        """Set the clock to zero; the reference loss is kept."""
        self.num_steps = 0
        self.factor = self.action.start_factor
        self._multiplier = self.action.start_factor
        self.previous_action = 0.0
        self._limit = math.inf

    @property
    def progress(self) -> float:
        """t/T in [0, 1], and 0 when T is unknown."""
        return min(1.0, self.num_steps / self.total_steps) if self.total_steps else 0.0

    def step(self, loss: float | Tensor) -> bool:
        """Take the loss of an optimizer step, and count it; returns whether a decision is due."""
        self.observe(loss)
        return self.advance()

    def observe(self, loss: float | Tensor) -> None:
        """Take the minibatch loss of the step that was just made."""
        self.observer.update(loss)

    @property
    def relief(self) -> float:
        """What the brake leaves of the next steps while the loss is too high; else 1."""
        return 1.0 if self.brake is None else self.brake.relief

    def back_off(self) -> None:
        """Leave a tenth of the factor, and bound it, after an alarm of the brake."""
        factor = self.factor
        self._limit = max(FACTOR_RANGE[0], factor * BRAKE_FACTOR)
        self._stay_below_limit()
        self._limit = max(FACTOR_RANGE[0], factor * BRAKE_LIMIT)

    def advance(self) -> bool:
        """Count one optimizer step, whose loss is observed; returns whether a decision is due."""
        self.num_steps += 1
        elapsed = self.num_steps - self.warmup_steps
        if elapsed == 0 and self.warmup_steps:
            self.observation()
        return elapsed > 0 and elapsed % self.interval_steps == 0

    def observation(self) -> NDArray[np.float32]:
        """Close the interval and return what the policy sees."""
        return self.observer.observe(
            progress=self.progress, factor=self.factor, previous_action=self.previous_action
        )

    def act(self, action: float) -> float:
        """Apply an action in [-1, 1]; returns the new learning rate over the initial one."""
        self.factor, self._multiplier = self.action.apply(
            action, multiplier=self._multiplier, progress=self.progress
        )
        self._stay_below_limit()
        self.previous_action = action
        return self.factor

    def _stay_below_limit(self) -> None:
        if self.factor > self._limit:
            self._multiplier *= self._limit / self.factor
            self.factor = self._limit

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors."""
        return {
            "num_steps": self.num_steps,
            "factor": self.factor,
            "multiplier": self._multiplier,
            "previous_action": self.previous_action,
            "limit": self._limit,
            "observer": self.observer.state_dict(),
            "brake": None if self.brake is None else self.brake.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a controller built with the same arguments."""
        self.num_steps = state["num_steps"]
        self.factor = state["factor"]
        self._multiplier = state["multiplier"]
        self.previous_action = state["previous_action"]
        self._limit = state["limit"]
        if self.brake is not None:
            self.brake.load_state_dict(state["brake"])
        self.observer.load_state_dict(state["observer"])

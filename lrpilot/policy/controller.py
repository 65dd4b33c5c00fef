"""The decision loop of training runs, shared by the simulator and the deployed scheduler."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.policy.action import FACTOR_RANGE, ActionSpec
from lrpilot.policy.brake import Brake
from lrpilot.policy.clock import ClockSpec, progress_of
from lrpilot.policy.edge_distance import EdgeDistance
from lrpilot.policy.elementwise import Numbers, where
from lrpilot.policy.observation import MOVEMENT_WINDOW, ObservationSpec
from lrpilot.policy.observer import Observer
from lrpilot.policy.parameter_sample import Sample

BRAKE_FACTOR = 0.1
"""What an alarm of the brake leaves of the learning rate."""
BRAKE_LIMIT = 0.3
"""What is allowed after it, of the learning rate that raised it."""

_FIELDS = (
    "num_steps",
    "total_steps",
    "interval_steps",
    "next_decision",
    "factor",
    "multiplier",
    "previous_action",
    "limit",
)


class Controller:
    """Counts steps, gathers losses, and applies actions: for one run, or for B runs at once.

    The environments and `PolicyLR` drive this class and nothing else, so what a policy sees and
    does in training is what it sees and does in deployment. `step` is what every optimizer step
    calls; where the loss comes earlier, it is `observe` and then `advance`. After a decision is
    due, `close_interval` gives what the policy sees, and `act` applies what it answers.

    What it counts are numbers of one run, or arrays (B,) on the host, since hundreds of numbers
    are handled faster there than on any device.

    With a brake, an alarm leaves a tenth of the factor, whatever the policy says, and the policy
    never gets above 0.3 of it again. As long as the loss is above the alarm's threshold, `relief`
    shortens the steps by threshold / loss, since the curvature of a network grows with its loss;
    after a loss that looks like the first of an explosion it is 0 until the next one tells.
    Environments have no brake: there a diverged run ends its episode, and agents learn to avoid it.

    Args:
        observation: what is observed.
        action: what an action does.
        sample: what is read of weights and gradients: a `ParameterSample`, or B runs.
        interval_steps: optimizer steps per decision; the most, if the clock's intervals grow.
        clock: how intervals grow; by default they do not.
        total_steps: T, or None if neither progress nor an anchor is used.
        warmup_steps: steps before the clock of the intervals starts.
        num_runs: B, whose clocks `reset` sets; None for one run.
        curvature: measures the curvature; required if it is observed.
        brake: of one run; is given every loss when it is read, which for one of a device is the
            next decision.

    Raises:
        ValueError: if a count is out of range, or what is needed of T and `curvature` is missing.
    """

    def __init__(
        self,
        observation: ObservationSpec,
        action: ActionSpec,
        sample: Sample,
        *,
        interval_steps: int = 1,
        clock: ClockSpec | None = None,
        total_steps: int | None = None,
        warmup_steps: int = 0,
        num_runs: int | None = None,
        curvature: EdgeDistance | None = None,
        brake: Brake | None = None,
    ) -> None:
        self.action = action
        self.brake = brake
        self.observer = Observer(
            observation, sample, num_runs=num_runs, curvature=curvature, brake=brake
        )
        self.warmup_steps = warmup_steps
        self._clock = clock or ClockSpec()
        self._marks_weights = "recent_movement" in observation.groups
        self.interval_steps: Numbers = interval_steps
        self.total_steps: Numbers = total_steps
        if num_runs is None:
            self._check_clock(observation, interval_steps, total_steps)
        else:
            self.interval_steps = np.full(num_runs, float(observation.least_interval))
            self.total_steps = np.ones(num_runs)
        self.restart()

    def _check_clock(
        self, observation: ObservationSpec, interval_steps: int, total_steps: int | None
    ) -> None:
        if not isinstance(interval_steps, int | np.integer) or interval_steps < 1:
            raise ValueError(f"`interval_steps` must be at least 1, got {interval_steps}")
        shortest = min(interval_steps, self._clock.next_interval(0, interval_steps))
        if shortest < observation.least_interval:
            raise ValueError(
                f"`interval_steps` must be at least {observation.least_interval} for what the "
                f"policy observes, got {shortest}"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must not be negative, got {self.warmup_steps}")
        if total_steps is None:
            if observation.needs_progress or self.action.needs_progress:
                raise ValueError(
                    "`total_steps` is required: the policy uses progress or an anchor schedule"
                )
        elif total_steps < 1:
            raise ValueError(f"`total_steps` must be at least 1, got {total_steps}")
        elif self.warmup_steps >= total_steps:
            raise ValueError(
                f"`warmup_steps` must be below `total_steps` = {total_steps}, got "
                f"{self.warmup_steps}"
            )

    def restart(self) -> None:
        """Set the clock to zero; the reference loss is kept."""
        count = self.observer.num_runs

        def of_all(value: float) -> Numbers:
            return value if count is None else np.full(count, value)

        self.num_steps = of_all(0)
        self.factor = of_all(self.action.start_factor)
        self.multiplier = of_all(self.action.start_factor)
        self.previous_action = of_all(0.0)
        self.limit = math.inf
        self.next_decision = self.warmup_steps + self._clock.next_interval(
            self.num_steps, self.interval_steps
        )

    def reset(self, rows: list[int], *, total_steps: list[int], interval_steps: list[int]) -> None:
        """Start the runs of these indices anew; their weights are already initial ones."""
        self.observer.reset(rows)
        self.num_steps[rows] = 0
        self.factor[rows] = self.multiplier[rows] = self.action.start_factor
        self.previous_action[rows] = 0.0
        self.total_steps[rows] = total_steps
        self.interval_steps[rows] = interval_steps
        first = self._clock.next_interval(self.num_steps, self.interval_steps)
        self.next_decision[rows] = first[rows]

    @property
    def progress(self) -> Numbers:
        """t/T in [0, 1], and 0 when T is unknown."""
        return progress_of(self.num_steps, self.total_steps)

    def steps_to_decision(self) -> Numbers:
        """Steps until each run's next decision or its end, whichever comes first; no warm-up."""
        return np.minimum(self.next_decision, self.total_steps) - self.num_steps

    def step(self, loss: float | Tensor, active: Numbers = True) -> Numbers:
        """Take the loss of an optimizer step, and count it; returns whether a decision is due."""
        self.observe(loss, active)
        return self.advance(active)

    def observe(self, loss: float | Tensor, active: Numbers = True) -> None:
        """Take the minibatch loss of the step that the active runs just made."""
        if self.brake is None:
            self.observer.add_loss(loss, active)
            return
        known = self.brake.num_alarms
        self.observer.add_loss(loss)
        if self.brake.num_alarms > known:
            self._back_off()

    def advance(self, active: Numbers = True) -> Numbers:
        """Count one optimizer step, whose loss is observed; returns whether a decision is due."""
        self.num_steps = self.num_steps + active
        if self.warmup_steps and self.num_steps == self.warmup_steps:
            self.close_interval()
        if self._marks_weights:
            left = self.next_decision - self.num_steps
            is_mark = active & ((left == MOVEMENT_WINDOW) | (left == MOVEMENT_WINDOW // 2))
            if is_mark is not False and np.any(is_mark):
                self.observer.mark_weights(is_mark)
        is_due = active & (self.num_steps == self.next_decision)
        if is_due is not False:  # an array, or true of one run
            interval = self._clock.next_interval(
                self.num_steps - self.warmup_steps, self.interval_steps
            )
            self.next_decision = where(is_due, self.num_steps + interval, self.next_decision)
        return is_due

    def close_interval(self, active: Numbers = True) -> NDArray[np.float32]:
        """End the interval of the active runs, and return what their policy sees."""
        if self.brake is not None:
            known = self.brake.num_alarms
            self.observer.flush()
            if self.brake.num_alarms > known:
                self._back_off()
        return self.observer.close_interval(
            progress=self.progress,
            factor=self.factor,
            previous_action=self.previous_action,
            active=active,
        )

    def act(self, action: Numbers) -> Numbers:
        """Apply an action in [-1, 1]; returns the new learning rate over the initial one."""
        self.factor, self.multiplier = self.action.apply(
            action, multiplier=self.multiplier, progress=self.progress
        )
        self.previous_action = action
        if self.brake is not None:
            self._stay_below_limit()
        return self.factor

    @property
    def relief(self) -> float:
        """What the brake leaves of the next steps while the loss is too high; else 1."""
        return 1.0 if self.brake is None else self.brake.relief

    def _back_off(self) -> None:
        """Leave a tenth of the factor, and bound it, after an alarm of the brake."""
        factor = self.factor
        self.limit = max(FACTOR_RANGE[0], factor * BRAKE_FACTOR)
        self._stay_below_limit()
        self.limit = max(FACTOR_RANGE[0], factor * BRAKE_LIMIT)

    def _stay_below_limit(self) -> None:
        if self.factor > self.limit:
            self.multiplier *= self.limit / self.factor
            self.factor = self.limit

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return {
            **{n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in values.items()},
            "observer": self.observer.state_dict(),
            "brake": None if self.brake is None else self.brake.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a controller built with the same arguments."""
        for name in _FIELDS:
            value = state[name]
            setattr(self, name, np.array(value) if isinstance(value, list) else value)
        if self.brake is not None:
            self.brake.load_state_dict(state["brake"])
        self.observer.load_state_dict(state["observer"])

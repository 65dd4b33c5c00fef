"""Brake: which losses say that a training diverges."""

import math
from typing import Any

from lrpilot.loss import DIVERGENCE_FACTOR
from lrpilot.state import Stateful, state_fields

_NUM_FIRST = 5
_NUM_SLOW = 100
_MEMORY = 0.9
_JUMP = 2.0
_NUM_JUMPED = 5
_LARGEST = 1e300  # sums of larger losses would overflow


class Brake(Stateful):
    """Tells a training that diverges from a noisy one, whatever the loss's scale and sign.

    With m the mean of about ten losses L, r and M those of the first five and of about a hundred,
    and r' and M' the same means of |L| (equal to r and M where losses are positive)::

        divergence:  m > r + 9 r'
        explosion:   m > M + 9 max(M', r' / 10)
        jump:        L > r + r' and L > M + 2 max(M', r' / 10), five times in a row

    So positive losses raise an alarm at ten times their first values, or at ten times their recent
    ones, if that is about what they were at the start: losses near zero may fluctuate. A jump is to
    twice the first losses and three times the recent ones: a few steps at such gradients kill a
    network of ReLUs, long before m has seen them. So the first four of them hold the weights
    where they are, and only five minibatches that agree are an alarm. Another rule, nan, is a loss
    that is not finite.

    No other single loss decides: in m it counts at most as five times the threshold, and the slow
    means take it as at most twice their value. If one of the first losses is below 1e-4 of the
    mean before it, the means start anew, since that was no scale (a first loss of 1e300).

    After an alarm only a loss that is twice as high raises the next one, until m is below half of
    its threshold again. Losses that are not finite count as one alarm for a row of them.

    >>> brake = Brake()
    >>> [brake.update(loss) for loss in [2.0, 1.9, 2.1, 900.0, 1.8, 900.0, 900.0]]
    [None, None, None, None, None, None, 'divergence']
    """

    _state_fields = state_fields(
        "num_losses",
        "num_alarms",
        "mean",
        "threshold",
        "loss",
        "relief",
        slow_mean="_slow_mean",
        slow_size="_slow_size",
        least_size="_least_size",
        highest="_highest",
        least_jump="_least_jump",
        ceiling="_ceiling",
        excess="_excess",
        is_lost="_is_lost",
        num_jumped="_num_jumped",
    )

    def __init__(self) -> None:
        self.num_losses = 0
        self.num_alarms = 0
        self.mean = 0.0
        """m; it stops at its threshold."""
        self.threshold = math.inf
        """What m exceeded at the last alarm."""
        self.loss = math.nan
        """The loss of the last alarm."""
        self.relief = 1.0
        """What to leave of the next step. After an alarm: threshold / loss, where a high loss is
        forgotten by a tenth per step, as momentum forgets its gradient. 0 after a loss above the
        threshold before any alarm, so that the next ones tell whether the training explodes, after
        those of a jump, and after one that is not finite. Else 1."""
        self._excess = 1.0
        self._num_jumped = 0
        self._is_lost = False
        self._slow_mean = self._slow_size = self._least_size = 0.0
        self._highest = self._least_jump = math.inf
        self._ceiling = -math.inf

    def update(self, loss: float) -> str | None:
        """Take the next loss; returns the rule that raises an alarm, or None."""
        # no min(), max() and abs(): this runs at every step of a training
        if not -_LARGEST < loss < _LARGEST:
            if not math.isfinite(loss):
                return self._lose(loss)
            loss = math.copysign(_LARGEST, loss)
        if self.relief != 1.0:
            self._excess *= _MEMORY
            self.relief = 1.0 / self._excess if self._excess > 1.0 else 1.0
            self._is_lost = False
        count, slow, size = self.num_losses, self._slow_mean, self._slow_size
        if count < _NUM_FIRST and (size == 0.0 or 0.0 < abs(loss) < 1e-4 * size):
            self._begin(loss)
            return None
        unit = size if size > self._least_size else self._least_size
        threshold = slow + (DIVERGENCE_FACTOR - 1.0) * unit
        rule = "explosion"
        if threshold >= self._highest:
            threshold, rule = self._highest, "divergence"
        jump = slow + _JUMP * unit
        if jump < self._least_jump:
            jump = self._least_jump
        most = 5.0 * threshold
        counted = loss if -most < loss < most else math.copysign(most, loss)
        self.mean += 0.1 * (counted - self.mean)
        if loss > slow + unit:
            counted = slow + unit
        elif loss < slow - unit:
            counted = slow - unit
        else:
            counted = loss
        if count < _NUM_SLOW:
            self.num_losses = count = count + 1
        self._slow_mean = slow = slow + (counted - slow) / count
        self._slow_size = size + ((counted if counted > 0.0 else -counted) - size) / count
        if count <= _NUM_FIRST:
            self._keep_scale()
        is_alarm = False
        if self.mean > threshold:
            self.mean = threshold
            is_alarm = loss > self._ceiling
            if is_alarm:
                self._ceiling = 2.0 * loss
                self.loss, self.threshold = loss, threshold
                self.num_alarms += 1
        elif self.mean < 0.5 * threshold:
            self._ceiling = -math.inf
        if loss > threshold:
            self._shorten(loss / threshold)
        if is_alarm:
            self._num_jumped = _NUM_JUMPED
        elif loss > jump:
            if self._count_jump(loss, jump):
                return "jump"
        elif self._num_jumped < _NUM_JUMPED or loss < 0.5 * jump:
            self._num_jumped = 0
        return rule if is_alarm else None

    def _count_jump(self, loss: float, jump: float) -> bool:
        """Hold the weights until enough losses agree; returns whether that is an alarm."""
        if self._num_jumped == _NUM_JUMPED:
            return False
        self._num_jumped += 1
        if self._num_jumped < _NUM_JUMPED:
            self.relief = 0.0
            return False
        self.loss, self.threshold = loss, jump
        self.num_alarms += 1
        self._excess = loss / jump
        self.relief = 1.0 / self._excess
        return True

    def _shorten(self, excess: float) -> None:
        if not self.is_high:
            self.relief = 0.0
        elif excess > self._excess:
            self._excess = excess
            self.relief = 1.0 / excess

    def _lose(self, loss: float) -> str:
        """Take a loss that is not finite."""
        self.relief = 0.0
        if not self._is_lost:
            self._is_lost = True
            self.loss = loss
            self.num_alarms += 1
        return "nan"

    def describe(self, step: int) -> str:
        """The last alarm in words, raised by the loss after this step."""
        if math.isfinite(self.loss):
            return (
                f"the training diverges: the loss is {self.loss:.3g} after step {step}, and "
                f"{self.threshold:.3g} is too high"
            )
        return (
            f"`loss` should be finite, got {self.loss} after step {step}; the policy sees it as "
            "1e4 times the first loss"
        )

    @property
    def is_high(self) -> bool:
        """Whether m has not come back below half of its threshold since the last alarm."""
        return self._ceiling > -math.inf

    def _begin(self, loss: float) -> None:
        self.num_losses = 1
        self.mean = self._slow_mean = loss
        self._slow_size = abs(loss)
        self._keep_scale()

    def _keep_scale(self) -> None:
        """Take the slow means as those of the first losses."""
        self._highest = self._slow_mean + (DIVERGENCE_FACTOR - 1.0) * self._slow_size
        self._least_size = 0.1 * self._slow_size
        self._least_jump = self._slow_mean + self._slow_size

    def rewind(self) -> None:
        """Expect losses of the recent past again: the weights have been put back to it."""
        self.mean = self._slow_mean
        self._ceiling = -math.inf
        self.relief = self._excess = 1.0
        self._num_jumped = 0
        self._is_lost = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`, also from one of a time before there were jumps."""
        # highest is r + 9 r', and least_size r' / 10
        before = {
            "num_jumped": 0,
            "least_jump": state["highest"] - 80.0 * state["least_size"],
        }
        super().load_state_dict(before | state)

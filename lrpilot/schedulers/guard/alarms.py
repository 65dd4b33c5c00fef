"""Alarms: which losses say that a training goes wrong, and which are healthy."""

import math

from lrpilot.policy.brake import Brake
from lrpilot.schedulers.guard.spike_detector import SpikeDetector
from lrpilot.state import Stateful, state_fields

HEALTHY = "healthy"
UNHEALTHY = "unhealthy"


class Alarms(Stateful):
    """Judges one loss after the other by a `SpikeDetector` and a `Brake`.

    Args:
        detector: raises the alarm "spike".
        patience: unhealthy steps after which a loss that stays too high is an alarm again.

    >>> alarms = Alarms(SpikeDetector(), patience=100)
    >>> [alarms.judge(loss) for loss in [2.0, 1.9, math.nan, 30.0, 30.0, 2.0]]
    ['healthy', 'healthy', 'nan', 'spike', 'unhealthy', 'healthy']
    """

    _state_fields = state_fields(
        "detector", "brake", spike_ceiling="_ceiling", high_steps="_high_steps"
    )

    def __init__(self, detector: SpikeDetector, *, patience: int) -> None:
        self.detector = detector
        self.brake = Brake()
        self._patience = patience
        self._ceiling = -math.inf  # a spike above it is an alarm
        self._high_steps = 0

    def judge(self, loss: float) -> str:
        """The rule that raises an alarm, or "healthy", or "unhealthy" where none is raised."""
        rule = self.brake.update(loss)
        is_spike = rule != "nan" and self.detector.is_spike(loss)
        if is_spike and loss > self._ceiling:
            self._ceiling = 2.0 * loss - self.detector.mean
            rule = rule or "spike"
        if rule is None and self.brake.is_high:
            self._high_steps += 1
            if self._high_steps < self._patience:
                return UNHEALTHY
            rule = "divergence"
        if rule is not None:
            self._high_steps = 0
            return rule
        if is_spike:
            return UNHEALTHY
        self._ceiling = -math.inf
        return HEALTHY

    def threshold(self, rule: str) -> float:
        """What the last loss was compared with by the rule that raised an alarm."""
        if rule == "nan":
            return math.nan
        return self.detector.threshold if rule == "spike" else self.brake.threshold

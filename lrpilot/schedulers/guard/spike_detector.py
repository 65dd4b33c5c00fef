"""SpikeDetector: which losses stand out of the noise."""

import math

from lrpilot.arguments import require_within
from lrpilot.state import Stateful, state_fields

WINDOW = 50
_NUM_FIRST = 5
_LARGEST_FALL = 2.0  # in y; no positive loss falls further
_LARGEST = 1e300  # sums of larger losses would overflow


class SpikeDetector(Stateful):
    """Tells a spike of the loss from its noise, whatever the loss's scale and sign.

    With m and s the running means of the loss L and of |L|, and d that of |y|::

        y = asinh((L - m) / s),   spike:  y > max(deviations * d, asinh(ratio - 1))

    Where the noise is small, a loss above `ratio` times its mean is a spike; where it is large, one
    that stands out of it. asinh is linear for small arguments and logarithmic for large ones, so
    that the heavy tails of small batches raise no alarm. In d, a loss above its mean counts at most
    as d, so that a rising loss does not pass for noise; a spike counts as a loss at the threshold,
    so that a lasting change of level becomes the usual level. The means run over `WINDOW` steps;
    before, all losses count equally, d as if five losses had deviated by 0.3. If one of the first
    five losses is below 1e-4 of the mean before it, the means start anew, since that was no scale.

    Args:
        deviations: threshold in mean absolute deviations.
        ratio: least threshold, in multiples of the mean loss.

    Raises:
        ValueError: if an argument is out of range.

    >>> detector = SpikeDetector()
    >>> [detector.is_spike(loss) for loss in [2.0, 1.9, 2.1, 1.8, 900.0, 1.7]]
    [False, False, False, False, True, False]
    """

    _state_fields = state_fields("num_losses", "mean", "scale", "deviation", "threshold")
    _LARGEST_LIMIT = 50.0  # e^50 times the mean is no noise

    def __init__(self, *, deviations: float = 10.0, ratio: float = 1.5) -> None:
        require_within("deviations", deviations, "(0, inf)")
        require_within("ratio", ratio, "(1, inf)")
        self.deviations = deviations
        self._least = math.asinh(ratio - 1.0)
        self.num_losses = 0
        self.mean = self.scale = 0.0
        self.deviation = 0.3
        self.threshold = math.inf
        """The loss above which the last spike was one."""

    def is_spike(self, loss: float) -> bool:
        """Whether a finite loss is a spike; counts it."""
        if not -_LARGEST < loss < _LARGEST:
            loss = math.copysign(_LARGEST, loss)
        count, mean, deviation = self.num_losses, self.mean, self.deviation
        scale = self.scale
        # no loss yet, none but 0, or a first one of 1e300, which was no scale
        if scale == 0.0 or (count < _NUM_FIRST and 0.0 < abs(loss) < 1e-4 * scale):
            self.num_losses, self.mean, self.scale = 1, loss, abs(loss)
            return False
        y = math.asinh((loss - mean) / scale)
        # no min() and max(): this runs at every step of a training
        limit = self.deviations * deviation
        if limit < self._least:
            limit = self._least
        elif limit > self._LARGEST_LIMIT:
            limit = self._LARGEST_LIMIT
        is_spike = y > limit
        if y < -_LARGEST_FALL:
            y = -_LARGEST_FALL
            loss = mean - scale * math.sinh(_LARGEST_FALL)
        if is_spike:
            loss = self.threshold = mean + scale * math.sinh(limit)
            count = WINDOW
        elif count < WINDOW:
            self.num_losses = count = count + 1
        self.mean = mean + (loss - mean) / count
        self.scale += (abs(loss) - self.scale) / count
        if y < deviation:
            self.deviation += (abs(y) - deviation) / min(count + 4, WINDOW)
        return is_spike

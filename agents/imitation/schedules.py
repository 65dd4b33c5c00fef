"""Fixed schedules that an expert follows: the learning rate over its best peak's."""

import math
from collections.abc import Callable

from lrpilot.policy.elementwise import Numbers, at_least, exp, where

WARMUP_SHARE = 0.1
_LEAST_PROGRESS = 1e-3

_RISE_SHARE = 0.2
_LEAST_FACTOR = 0.01
_STAY_SHARE = 0.5
_PLATEAU = 0.83


def decay_to_zero(progress: Numbers) -> Numbers:
    """Warm-up, then decay to zero: p / 0.1 up to p = 0.1, then (1 - p) / 0.9.

    Progress below 0.001 counts as that much, so that the factor is positive until the end.

    References:
        Bergsma et al. Straight to zero: Why linearly decaying the learning rate to zero works best
        for LLMs. 2025.

    >>> [decay_to_zero(p) for p in (0.05, 0.1, 0.325, 1.0)]
    [0.5, 1.0, 0.75, 0.0]
    """
    warmup = at_least(_LEAST_PROGRESS, progress) / WARMUP_SHARE
    return where(progress < WARMUP_SHARE, warmup, (1.0 - progress) / (1.0 - WARMUP_SHARE))


def slow_rise(progress: Numbers) -> Numbers:
    """Exponential rise, plateau, then to zero: 0.83 x 0.01^(1 - p / 0.2), 0.83, 1.66 (1 - p).

    The plateau is from p = 0.2 to 0.5. At 0.83 times the peak that is best for `decay_to_zero`,
    small trainings end where they do under that one; a policy has twice as long to see from far
    below how much a training bears.

    >>> [round(slow_rise(p), 3) for p in (0.0, 0.1, 0.3, 0.75, 1.0)]
    [0.008, 0.083, 0.83, 0.415, 0.0]
    """
    rise = exp(math.log(_LEAST_FACTOR) * at_least(0.0, 1.0 - progress / _RISE_SHARE))
    fall = (1.0 - progress) / (1.0 - _STAY_SHARE)
    return _PLATEAU * rise * where(progress < _STAY_SHARE, 1.0, fall)


SCHEDULES: dict[str, Callable[[Numbers], Numbers]] = {
    "d2z": decay_to_zero,
    "slow_rise": slow_rise,
}
"""By their names in `imitation.schedule`."""

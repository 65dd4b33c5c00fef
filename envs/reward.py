"""What an environment rewards, for one run (floats) and for B runs (arrays)."""

from lrpilot.loss import is_diverged
from lrpilot.policy.elementwise import Numbers, clip, isfinite, log, where
from lrpilot.policy.observer import Observer

LEVEL_FLOOR = 1e-8


def has_diverged(observer: Observer, divergence_factor: float) -> Numbers:
    """Whether the interval's mean loss is too high, or a loss of the run was not finite."""
    is_high = is_diverged(observer.interval_loss, factor=divergence_factor)
    return is_high | (observer.num_nonfinite > 0)


def log_level(level: Numbers, diverged: Numbers, divergence_factor: float) -> Numbers:
    """The log of y, whose decrease is the reward.

    Args:
        level: y, a loss relative to the start; kept in [1e-8, `divergence_factor`].
        diverged: whose y is `divergence_factor`, as that of a level which is not finite.
        divergence_factor: the highest y.
    """
    is_level = isfinite(level) & (diverged ^ True)
    return log(clip(where(is_level, level, divergence_factor), LEVEL_FLOOR, divergence_factor))

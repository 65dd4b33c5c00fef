"""How far a hypergradient moves a learning rate."""

import math


def next_lr(
    lr: float, change: float, low: float, high: float, *, is_relative: bool
) -> tuple[float, str | None]:
    """The next learning rate, and the bound that shortened the change, if any.

    A change that is not finite is none, and a learning rate beyond a bound is not pulled back.

    >>> next_lr(0.5, 0.25, 0.0, 0.6, is_relative=True)
    (0.6, 'max_factor')
    """
    if change == 0.0 or not math.isfinite(change):
        return lr, None
    target = lr * (1.0 + change) if is_relative else lr + change
    low, high = min(low, lr), max(high, lr)
    if low <= target <= high:
        return target, None
    return (low, "min_factor") if target < low else (high, "max_factor")


def shortened_raises(before: list[float], after: list[float], eta_max: float) -> list[float]:
    """Changed learning rates whose raises, all in the same proportion, end where one is at a cap.

    What is above the cap already, since that has fallen, is not raised, and does not change.

    >>> shortened_raises([0.25, 0.125], [0.75, 0.25], 0.5)
    [0.5, 0.1875]
    """
    share = 1.0
    for old, new in zip(before, after, strict=True):
        if new > max(old, eta_max):
            share = min(share, max(0.0, (eta_max - old) / (new - old)))
    return [
        min(old + share * (new - old), max(old, eta_max)) if new > old else new
        for old, new in zip(before, after, strict=True)
    ]

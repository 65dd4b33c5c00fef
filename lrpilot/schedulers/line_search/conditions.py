"""The conditions of a line search: how long a step may be, and how long it must be."""

import math
from typing import NamedTuple


def armijo_holds(loss: float, new_loss: float, *, lr: float, slope: float, c: float = 0.1) -> bool:
    """Whether f(w - lr d) <= f(w) - c lr <g, d>: the step is not too long.

    Args:
        loss: f(w).
        new_loss: f(w - lr d); NaN and infinities fail.
        lr: the learning rate of the step.
        slope: <g, d>, the fall of the loss per unit of learning rate at w.
        c: the part of the fall promised by the slope that must be kept, in (0, 1).

    >>> [armijo_holds(1.0, (1 - lr) ** 2, lr=lr, slope=4 / 2, c=0.5) for lr in (0.5, 1.0, 1.5)]
    [True, True, False]
    """
    return math.isfinite(new_loss) and new_loss <= loss - c * lr * slope


def goldstein_holds(
    loss: float, new_loss: float, *, lr: float, slope: float, c: float = 0.1
) -> bool:
    """Whether, besides `armijo_holds`, f(w - lr d) >= f(w) - (1 - c) lr <g, d>: not too short.

    Arguments as of `armijo_holds`; c is in (0, 1/2).

    >>> [goldstein_holds(1.0, (1 - lr) ** 2, lr=lr, slope=2.0) for lr in (0.01, 0.5, 1.9)]
    [False, True, False]
    """
    long_enough = new_loss >= loss - (1 - c) * lr * slope
    return long_enough and armijo_holds(loss, new_loss, lr=lr, slope=slope, c=c)


class Found(NamedTuple):
    """What a search decided, and the fall of the loss that it measured and required."""

    factor: float
    rule: str
    fall: float
    required: float

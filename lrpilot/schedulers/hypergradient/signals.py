"""Hypergradients, inner products of gradients and last directions, and how far one moves an LR.

Gradients and directions are dictionaries by the index of the parameter; the directions are those of
parameters that have a gradient.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lrpilot.loss import read_numbers


def cosine(dot: float, left: float, right: float) -> float:
    """A dot product over the norms, whose squares are `left` and `right`; 0 where one is 0.

    >>> cosine(3.0, 4.0, 9.0)
    0.5
    """
    squares = left * right
    return 0.0 if squares == 0.0 else dot / math.sqrt(squares)


def group_signals(
    gradients: dict[int, Tensor],
    directions: dict[int, Tensor],
    weights: Sequence[tuple[int, float]],
    num_groups: int,
    *,
    as_cosine: bool,
) -> list[float]:
    """<g, u> of every group, or its cosine; 0 where no direction is known.

    `weights` has for every parameter the group that it counts for, and a factor of its u.
    """
    left, right = [gradients[i] for i in directions], list(directions.values())
    terms = [torch.dot(g.reshape(-1), u.reshape(-1)) for g, u in zip(left, right, strict=True)]
    if as_cosine and terms:
        terms += [*torch._foreach_norm(left), *torch._foreach_norm(right)]
    values = read_numbers(terms)
    sums = [[0.0, 0.0, 0.0] for _ in range(num_groups)]
    for j, i in enumerate(directions):
        group, weight = weights[i]
        sums[group][0] += weight * values[j]
        if as_cosine:
            norm, other = values[j + len(left)], weight * values[j + 2 * len(left)]
            sums[group][1] += norm * norm
            sums[group][2] += other * other
    return [cosine(*row) if as_cosine else row[0] for row in sums]


def factor_signals(
    gradients: dict[int, Tensor],
    directions: dict[int, Tensor],
    *,
    per_entry: bool,
    as_cosine: bool,
) -> dict[int, Tensor]:
    """<g, u> of every tensor or entry, or its cosine; 0 where it is not finite."""
    if not directions:
        return {}
    left, right = [gradients[i] for i in directions], list(directions.values())
    signals = list(torch._foreach_mul(left, right))
    if not per_entry:
        signals = [signal.sum() for signal in signals]
    if as_cosine:
        norms = torch._foreach_abs(signals)
        if not per_entry:
            norms = torch._foreach_mul(torch._foreach_norm(left), torch._foreach_norm(right))
        torch._foreach_div_(signals, norms)
    for signal in signals:
        signal.nan_to_num_(0.0, 0.0, 0.0)
    return dict(zip(directions, signals, strict=True))


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

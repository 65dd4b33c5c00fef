"""Hypergradients: inner products of gradients with the directions of the last step.

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

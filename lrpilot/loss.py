"""Losses and other tensors of one element, read as floats."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

DIVERGENCE_FACTOR = 10.0
"""A run whose mean loss exceeds so many times its first losses has diverged."""


def is_diverged(loss: Any, first_loss: Any = 1.0, *, factor: float = DIVERGENCE_FACTOR) -> Any:
    """Whether a mean loss, a number, array or tensor, is NaN or too high to come back.

    >>> [is_diverged(loss, first_loss=2.0) for loss in (19.0, 21.0, float("nan"))]
    [False, True, True]
    """
    return (loss <= factor * first_loss) ^ True  # the negation of all three kinds


def read_numbers(numbers: Sequence[Tensor]) -> list[float]:
    """Tensors of one element as floats: on a CPU one by one, else in one transfer to the host.

    >>> read_numbers([torch.tensor(1.0), torch.tensor(2.0)])
    [1.0, 2.0]
    """
    if all(number.is_cpu for number in numbers):
        return [float(number.item()) for number in numbers]
    device = numbers[0].device
    return [float(x) for x in torch.stack([number.to(device) for number in numbers]).tolist()]


def check_loss_tensor(loss: Tensor) -> None:
    """Refuse a tensor that `read_loss` would refuse, without waiting for its value."""
    if loss.numel() != 1:
        raise ValueError(f"`loss` must have one element, got shape {tuple(loss.shape)}")
    if loss.is_complex() or loss.dtype is torch.bool:
        raise TypeError(f"`loss` must be real, got a tensor of {loss.dtype}")


def read_loss(loss: Any) -> float:
    """The value of a loss: a real number, or a tensor or NumPy array of one element.

    NaN and infinities are values like others. A tensor of another device is waited for.

    Raises:
        TypeError: if it is not a real number (a complex one, a bool, a string, None, a list).
        ValueError: if it has several elements or none, or is an integer beyond all floats.

    >>> read_loss(2), read_loss(Tensor([0.5]))
    (2.0, 0.5)
    """
    if type(loss) is float:
        return loss
    value = loss
    if hasattr(loss, "item"):  # of torch, of NumPy, or of a library like it
        if (loss.numel() if isinstance(loss, Tensor) else loss.size) != 1:
            raise ValueError(f"`loss` must have one element, got shape {tuple(loss.shape)}")
        value = loss.item()
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`loss` must be a number or a tensor of one element, got {loss!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("`loss` must be in the range of a float, got a larger integer") from None

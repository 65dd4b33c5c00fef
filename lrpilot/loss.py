"""Losses and other tensors of one element, read as floats."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def read_numbers(numbers: Sequence[Tensor]) -> list[float]:
    """Tensors of one element as floats: on a CPU one by one, else in one transfer to the host.

    >>> read_numbers([torch.tensor(1.0), torch.tensor(2.0)])
    [1.0, 2.0]
    """
    if all(number.is_cpu for number in numbers):
        return [float(number.item()) for number in numbers]
    device = numbers[0].device
    return [float(x) for x in torch.stack([number.to(device) for number in numbers]).tolist()]


def read_loss(loss: Any) -> float:
    """The value of a loss: a number, a NumPy scalar, or a tensor or array of one element.

    NaN and infinities are values like others. A tensor of another device is waited for.

    Raises:
        TypeError: if it is not a number (a string, None, a list).
        ValueError: if it has several elements or none.

    >>> read_loss(2), read_loss(Tensor([0.5]))
    (2.0, 0.5)
    """
    if type(loss) is float:
        return loss
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(f"`loss` must have one element, got shape {tuple(loss.shape)}")
        return float(loss.item())
    size = getattr(loss, "size", 1)
    if isinstance(size, int) and size != 1:
        raise ValueError(f"`loss` must have one element, got shape {loss.shape}")
    try:
        # the sum refuses strings, which float() would parse
        return float(loss.item() if hasattr(loss, "item") else loss + 0.0)
    except TypeError:
        raise TypeError(
            f"`loss` must be a number or a tensor of one element, got {loss!r}"
        ) from None

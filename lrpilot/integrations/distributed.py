"""One loss for all ranks, so that every rank sets the same learning rate."""

import torch
import torch.distributed as dist
from torch import Tensor

from lrpilot.loss import read_loss


def as_tensor(loss: float | Tensor) -> Tensor:
    """A loss as a tensor without dimensions, detached, on its device, which is not waited for.

    Raises:
        TypeError, ValueError: as `lrpilot.loss.read_loss` does.

    >>> as_tensor(torch.ones(1)), as_tensor(0.5)
    (tensor(1.), tensor(0.5000, dtype=torch.float64))
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point():
        return loss.detach().reshape(())
    return torch.tensor(read_loss(loss), dtype=torch.float64)


def mean_over_ranks(
    loss: float | Tensor, group: "dist.ProcessGroup | None" = None
) -> float | Tensor:
    """The mean of the ranks' losses: mean = (1/n) sum_i loss_i, summed in float64.

    Each rank of a data-parallel run has the loss of its own batch. A scheduler must not see that
    one, or the ranks' learning rates, and with them the models, drift apart. It is one all-reduce
    of 8 bytes; without a process group, or in a group of one rank, the loss comes back as it is::

        scheduler.step(mean_over_ranks(loss))

    Args:
        loss: this rank's loss: a number or a tensor of one element. NaN on one rank is NaN on all.
        group: the ranks to average over; by default all.

    Returns:
        The loss itself, or a float64 tensor without dimensions on the loss's device.

    Raises:
        TypeError, ValueError: as `lrpilot.loss.read_loss` does.

    >>> mean_over_ranks(0.5)
    0.5
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return loss
    total = as_tensor(loss).to(torch.float64, copy=True)
    if dist.get_backend(group) == "nccl":
        total = total.to(torch.device("cuda", torch.cuda.current_device()))
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)

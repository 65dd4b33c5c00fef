"""Trial steps of a line search: along a line, from the same state, and back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from lrpilot.loss import read_loss
from lrpilot.schedulers.hypergradient.directions import adam_directions


def adam_direction(gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
    """The step g / (sqrt(v^) + eps), with the second moment v^ that Adam is about to have.

    It is the step of torch's Adam at learning rate 1 if its first beta is 0. g has the coupled
    weight decay; `state` is Adam's before the step, empty at the first one.

    >>> adam_direction(torch.tensor([3.0]), {"betas": (0.9, 0.5), "eps": 1.0}, {})
    tensor([0.7500])
    """
    beta2 = float(group["betas"][1])
    step = float(state["step"]) + 1.0 if state else 1.0
    second = gradient.square().mul_(1.0 - beta2)
    if state:
        second.add_(state["exp_avg_sq"], alpha=beta2)
        if group["amsgrad"]:
            second = torch.maximum(second, state["max_exp_avg_sq"])
    return adam_directions([gradient], [second], [step], betas=(0.0, beta2), eps=group["eps"])[0]


class DescentLine:
    """The weights w - lr d of one parameter group."""

    @torch.no_grad()
    def __init__(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        self._parameters = [p for p in group["params"] if p.grad is not None]
        if any(p.grad.is_sparse for p in self._parameters):
            raise ValueError("`optimizer` must have dense gradients, got a sparse one")
        self._start = [p.clone() for p in self._parameters]
        is_decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, AdamW))
        self._decay = 0.0 if is_decoupled else float(group["weight_decay"])
        gradients = [
            p.grad.add(p, alpha=self._decay) if self._decay else p.grad for p in self._parameters
        ]
        self._directions = gradients
        if not isinstance(optimizer, SGD):
            self._directions = [
                adam_direction(gradient, group, optimizer.state.get(p, {}))
                for gradient, p in zip(gradients, self._parameters, strict=True)
            ]
        self.slope = _dot(gradients, self._directions)
        if self._decay:
            self._start_dot = _dot(self._start, self._directions)
            self._square = _dot(self._directions, self._directions)

    @torch.no_grad()
    def move(self, lr: float) -> float:
        """Put the parameters at w - lr d, rounded as SGD rounds them.

        Returns:
            By how much weight_decay ||.||^2 / 2 grows from w to there.
        """
        self.restore()
        if self._parameters:
            torch._foreach_add_(self._parameters, self._directions, alpha=-lr)
        if not self._decay:
            return 0.0
        return self._decay * lr * (lr * self._square / 2 - self._start_dot)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters back at w."""
        if self._parameters:
            torch._foreach_copy_(self._parameters, self._start)


class ForwardState:
    """What a forward pass reads and changes besides parameters: generators and buffers."""

    @torch.no_grad()
    def __init__(self, model: nn.Module | None) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._buffers = [
            (module, name, buffer, None if buffer is None else buffer.clone())
            for module in (model.modules() if model is not None else ())
            for name, buffer in module._buffers.items()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put all back as it was, and forget low-precision copies of the parameters."""
        torch.clear_autocast_cache()
        torch.set_rng_state(self._cpu)
        torch.cuda.set_rng_state_all(self._cuda)
        for module, name, buffer, value in self._buffers:
            setattr(module, name, buffer)
            if buffer is not None and value is not None:
                buffer.copy_(value)


@contextmanager
def trial_steps(
    optimizer: Optimizer,
    model: nn.Module | None,
    closure: Callable[[], Tensor],
    start: ForwardState,
) -> Iterator[tuple[list[float], Callable[[list[float]], float]]]:
    """The slope of every group, and the loss by the groups' learning rates.

    Trials begin at `start`; in the end all is as it was before them.
    """
    end = ForwardState(model)
    lines = [DescentLine(optimizer, group) for group in optimizer.param_groups]

    def loss_at(lrs: list[float]) -> float:
        start.restore()
        changes = [line.move(lr) for line, lr in zip(lines, lrs, strict=True)]
        return mean_loss(closure(), model) + sum(changes)

    try:
        with torch.no_grad():
            yield [line.slope for line in lines], loss_at
    finally:
        for line in lines:
            line.restore()
        end.restore()


def mean_loss(loss: Any, model: nn.Module | None) -> float:
    """The value of a loss, averaged over the processes of a `DistributedDataParallel` model."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"`closure` must return a tensor of one element, got {loss!r}")
    if isinstance(model, DistributedDataParallel):
        loss = loss.detach().clone()
        torch.distributed.all_reduce(loss, group=model.process_group)
        loss /= torch.distributed.get_world_size(model.process_group)
    return read_loss(loss)


def _dot(xs: list[Tensor], ys: list[Tensor]) -> float:
    """The sum of the inner products of pairs of tensors; at least in single precision."""
    products = []
    for x, y in zip(xs, ys, strict=True):
        dtype = torch.promote_types(x.dtype, torch.float32)
        products.append(torch.dot(x.flatten().to(dtype), y.flatten().to(dtype)))
    return float(torch.stack([p.to(products[0].device) for p in products]).sum()) if xs else 0.0

"""A network linearized around its start, its tangent kernel, and the step that this allows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

Model = Callable[[Sequence[Tensor]], Tensor]


def half_mean_square(residuals: Tensor) -> Tensor:
    """1/(2n) sum_i r_i^2, of shape ()."""
    return residuals.square().mean() / 2


def stable_lr(kernel: Tensor) -> float:
    """2 n / lambda_max(K) of a tangent kernel (n, n).

    >>> stable_lr(torch.diag(torch.tensor([1.0, 4.0])))
    1.0
    """
    return 2.0 * len(kernel) / float(torch.linalg.eigvalsh(kernel)[-1])


def check_plain(optimizer: Optimizer) -> None:
    """Refuse what is not gradient descent, for which `stable_lr` holds.

    Raises:
        ValueError: if it is not SGD, or has momentum or weight decay.
    """
    group = optimizer.param_groups[0]
    is_plain = isinstance(optimizer, torch.optim.SGD) and not (
        group["momentum"] or group["weight_decay"] or group["maximize"]
    )
    if not is_plain:
        raise ValueError(
            "`optimizer` must be SGD without momentum and weight decay for a cap, got "
            + " ".join(repr(optimizer).split())
        )


class LinearizedModel:
    """The model w -> f(w_0) + J (w - w_0) of a function f of the weights.

    J^T u is one backward pass; it is linear in u, so that its derivative by u, another backward
    pass, gives J v.

    Args:
        model: f, from weights to outputs (n,).
        start: w_0.

    >>> model = LinearizedModel(lambda w: torch.stack([w[0] ** 2, 3 * w[0]]), [torch.tensor(2.0)])
    >>> model([torch.tensor(2.5)])  # [4, 6] + 0.5 [4, 3]
    tensor([6.0000, 7.5000])
    >>> model.kernel()
    tensor([[16., 12.],
            [12.,  9.]])
    """

    def __init__(self, model: Model, start: Sequence[Tensor]) -> None:
        self.start = [weight.detach().clone().requires_grad_() for weight in start]
        with torch.enable_grad():
            self._outputs = model(self.start)
            self._cotangent = torch.zeros_like(self._outputs, requires_grad=True)
            self._pulled = torch.autograd.grad(
                self._outputs, self.start, self._cotangent, create_graph=True
            )

    def __call__(self, weights: Sequence[Tensor]) -> Tensor:
        """The outputs at these weights, (n,), with a graph."""
        change = [new - old.detach() for new, old in zip(weights, self.start, strict=True)]
        moved: Tensor = _Push.apply(self, *change)  # type: ignore[no-untyped-call]
        return self._outputs.detach() + moved

    def push(self, change: Sequence[Tensor]) -> Tensor:
        """J v, (n,), for v in the form of the weights."""
        return torch.autograd.grad(self._pulled, self._cotangent, change, retain_graph=True)[0]

    def pull(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        """J^T u, in the form of the weights, for u (n,)."""
        return torch.autograd.grad(self._outputs, self.start, cotangent, retain_graph=True)

    def kernel(self) -> Tensor:
        """K = J J^T, (n, n), row by row."""
        units = torch.eye(len(self._outputs)).to(self._outputs)
        return torch.stack([self.push(self.pull(unit)) for unit in units])


class _Push(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, model: LinearizedModel, *change: Tensor) -> Tensor:
        ctx.model = model
        return model.push(change)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return None, *ctx.model.pull(cotangent)

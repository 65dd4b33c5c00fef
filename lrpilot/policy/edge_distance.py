"""EdgeDistance: how far the learning rate is from the edge of stability, as a policy sees it."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lrpilot.caps.curvature import CurvatureCap

MAX_PRODUCTS = 3
"""Products with the Hessian per measurement; the eigenvector is kept from the last one."""

_SMALLEST = 1e-30


class EdgeDistance:
    """log10(lr / eta_max), with eta_max the largest stable learning rate of `CurvatureCap`.

    It means the same in every network and under every optimizer: 0 is the edge of stability, where
    steps along the sharpest direction cease to shrink (2 / lambda_max for plain SGD), -1 a tenth of
    it. It changes no `.grad`, no generator of torch and no buffer of `model`, costs about 8 steps
    of training on the batch, and holds some vectors of the parameters' size.

    Args:
        optimizer: SGD, Adam or AdamW.
        loss_fn: the loss on a batch of training data, such as the last step's.
        model: whose buffers (BatchNorm) are put back after a measurement; None if it has none.

    Raises:
        TypeError: if the optimizer is another one.
        ValueError: if no parameter requires gradients, or the optimizer maximises.

    References:
        Cohen, Kaur, Li, Kolter, Talwalkar. Gradient descent on neural networks typically occurs
        at the edge of stability. 2021.

    >>> import torch
    >>> w = torch.tensor([3.0, 1.0], requires_grad=True)
    >>> distance = EdgeDistance(torch.optim.SGD([w], lr=0.05), lambda: 2.0 * w[0] ** 2 + w[1] ** 2)
    >>> round(distance(), 3)  # eta_max = 2 / 4
    -1.0
    """

    def __init__(
        self,
        optimizer: Optimizer,
        loss_fn: Callable[[], Tensor],
        *,
        model: nn.Module | None = None,
    ) -> None:
        self._cap = CurvatureCap(
            optimizer,
            loss_fn,
            model=model,
            safety=1.0,
            interval_steps=1,
            max_products=MAX_PRODUCTS,
        )
        # where no Hessian is finite from the first on, nothing counts as stable
        self._cap.load_state_dict({"num_calls": 0, "eta_max": _SMALLEST, "eigenpair": None})

    def __call__(self) -> float:
        """Measure now."""
        eta_max, _ = self._cap()
        lr = max(float(group["lr"]) for group in self._cap.optimizer.param_groups)
        return math.log10(max(lr, _SMALLEST) / eta_max)

    def state_dict(self) -> dict[str, Any]:
        """The last measurement, with a vector of the parameters' size."""
        return self._cap.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`; the continuation is bit-identical."""
        self._cap.load_state_dict(state_dict)

"""Problems for line searches."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from lrpilot.schedulers.line_search.scheduler import LineSearchLR

NAN, INF = math.nan, math.inf
EIGENVALUES = torch.tensor([0.1, 0.5, 1.0, 4.0], dtype=torch.float64)


def quadratic(w: Tensor) -> Tensor:
    return (EIGENVALUES.to(w.dtype) * w.square()).sum() / 2


def start_quadratic(
    lr: Any = 1.0, optimizer_class: Any = torch.optim.SGD, **settings: Any
) -> tuple[Tensor, Optimizer, LineSearchLR]:
    w = torch.tensor([1.0, -2.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = optimizer_class([w], lr=lr)
    return w, optimizer, LineSearchLR(optimizer, None, **settings)


def train(
    scheduler: LineSearchLR, closures: list[Callable[[], Tensor]], composed: Any = None
) -> list[float]:
    """The learning rates of the steps."""
    lrs = []
    for closure in closures:
        scheduler.search(closure)
        lrs += scheduler.current_lrs()
        scheduler.optimizer.step()
        (composed or scheduler).step()
    return lrs


def small_cnn() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * 6 * 6, 3),
        )


def image_batches(num: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 1, 8, 8, generator=generator),
            torch.randint(3, (size,), generator=generator),
        )
        for _ in range(num)
    ]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def cancer_data() -> tuple[Tensor, Tensor]:
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return torch.from_numpy(np.c_[x, np.ones(len(x))]), torch.from_numpy(2.0 * y - 1)


def logistic_loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return functional.softplus(-y * (x @ w)).mean()


def squared_norm(parameters: list[Tensor]) -> float:
    return sum(float(grad_of(p).double().square().sum()) for p in parameters)


def grad_of(w: Tensor) -> Tensor:
    assert w.grad is not None
    return w.grad

"""Trainings under a HypergradientLR."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lrpilot.schedulers.hypergradient.scheduler import HypergradientLR
from tests.running import through_file

NAN, INF = math.nan, math.inf
MakeOptimizer = Callable[..., Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": SGD,
    "sgd_decay": partial(SGD, weight_decay=0.1),
    "momentum": partial(SGD, momentum=0.9),
    "momentum_decay": partial(SGD, momentum=0.9, weight_decay=0.1),
    "dampening": partial(SGD, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "nesterov": partial(SGD, momentum=0.9, nesterov=True),
    "nesterov_decay": partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": Adam,
    "adam_decay": partial(Adam, weight_decay=0.1),
    "amsgrad": partial(Adam, amsgrad=True, weight_decay=0.1),
    "adamw": partial(AdamW, weight_decay=0.1),
    "adamw_amsgrad": partial(AdamW, weight_decay=0.1, amsgrad=True),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "maximize": {"maximize": True},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
# a change far below the rounding of float32, but in the log of a float64 learning rate
TINY = 1e-9


def weights(*, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    shapes = ((3, 4), (4,), ())
    return [torch.nn.Parameter(torch.tensor(rng.normal(size=s), dtype=dtype)) for s in shapes]


def loss_of(parameters: Sequence[Tensor], step: int) -> Tensor:
    """A smooth loss whose data changes from step to step."""
    matrix, vector, offset = parameters
    rng = np.random.default_rng(step)
    data = torch.tensor(rng.normal(size=(6, 3)), dtype=matrix.dtype)
    values = torch.tanh(data @ matrix + vector).sum(1) + offset
    return (values - data[:, 0]).square().mean() + 0.1 * offset.square()


class Training:
    """A training loop of a small model, with a scheduler of ours."""

    def __init__(
        self, make: MakeOptimizer, *, lr: Any = 0.05, dtype: torch.dtype = torch.float64, **kw: Any
    ) -> None:
        self.parameters = weights(dtype=dtype)
        self.optimizer = make(self.parameters, lr=lr)
        self.scheduler = HypergradientLR(self.optimizer, **kw)
        self.num_steps = 0

    def step(self) -> list[float]:
        self.optimizer.zero_grad()
        loss_of(self.parameters, self.num_steps).backward()
        self.optimizer.step()
        self.scheduler.step()
        self.num_steps += 1
        values = [x for p in self.parameters for x in p.detach().flatten().tolist()]
        scales = [x for s in self.scheduler.scales for x in s.flatten().tolist()]
        return [*self.scheduler.current_lrs(), *values, *scales]

    def state(self) -> dict[str, Any]:
        return {
            "parameters": [p.detach().clone() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "num_steps": self.num_steps,
        }


def through_torch_save(state: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = through_file(state)
    return loaded


def one_weight(value: float = 1.0, *, lr: Any = 0.1, **kw: Any) -> tuple[Tensor, HypergradientLR]:
    w = torch.nn.Parameter(torch.tensor([value]))
    arguments: dict[str, Any] = {"hyper_lr": 0.1, "update": "additive"} | kw
    return w, HypergradientLR(SGD([w], lr=lr), **arguments)


def take_step(scheduler: HypergradientLR, *gradients: Any) -> float:
    """An optimizer step with these gradients of the parameters; the learning rate it used."""
    parameters = [p for group in scheduler.optimizer.param_groups for p in group["params"]]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = None if gradient is None else torch.as_tensor(gradient).to(p).expand_as(p).clone()
    scheduler.optimizer.step()
    return scheduler.current_lrs()[0]

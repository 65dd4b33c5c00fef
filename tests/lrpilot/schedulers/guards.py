"""Guards, and trainings under them."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from lrpilot.policy.actor import Policy
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.observation import ObservationSpec
from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.schedulers.guard.scheduler import Guard
from lrpilot.schedulers.policy_lr import PolicyLR
from tests.running import through_file
from tests.scheduling import lrs_of, plain_action

NAN, INF = math.nan, math.inf


def policy() -> Policy:
    rng = np.random.default_rng(0)
    observation = ObservationSpec(("progress", "loss", "lr"))
    layer = rng.normal(size=(len(observation.names), 1)).astype(np.float32)
    layers = [(layer, np.zeros(1, np.float32))]
    return Policy(layers, observation, plain_action(), ClockSpec(num_decisions=10))


def warm_up(optimizer: Optimizer, main: LRScheduler) -> SequentialLR:
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=5), main], [5])


SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "constant": partial(ConstantLR, factor=1.0),
    "cosine": partial(CosineAnnealingLR, T_max=70),
    "exponential": partial(ExponentialLR, gamma=0.9),
    "milestones": partial(MultiStepLR, milestones=[4, 9]),
    "lambda": partial(LambdaLR, lr_lambda=lambda epoch: 1.0 / (1.0 + epoch)),
    "cyclic": partial(CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=4, cycle_momentum=False),
    "one cycle": partial(OneCycleLR, max_lr=0.1, total_steps=200),
    "restarts": partial(CosineAnnealingWarmRestarts, T_0=7),
    "plateau": partial(ReduceLROnPlateau, patience=1, factor=0.5),
    "policy": lambda optimizer: PolicyLR(optimizer, policy(), total_steps=60, interval_steps=2),
    "greedy": partial(GreedyLR, semantics="paper", patience=1),
    "warm-up": lambda optimizer: warm_up(optimizer, CosineAnnealingLR(optimizer, 70)),
    "warm-up, policy": lambda optimizer: warm_up(
        optimizer, PolicyLR(optimizer, policy(), total_steps=60, interval_steps=2)
    ),
    "chain": lambda optimizer: ChainedScheduler(
        [ExponentialLR(optimizer, 0.9), LinearLR(optimizer, 0.5, total_iters=8)]
    ),
}


def sgd(*lrs: Any) -> Optimizer:
    groups = [{"params": [torch.ones(3, requires_grad=True)], "lr": lr} for lr in lrs or (0.1,)]
    return SGD(groups, lr=0.1, momentum=0.9)


def constant(*lrs: Any) -> ConstantLR:
    return ConstantLR(sgd(*lrs), factor=1.0)


def bare(scheduler: LRScheduler, losses: list[float]) -> list[list[float]]:
    """What a scheduler does without a guard."""
    rows = []
    for loss in losses:
        scheduler.optimizer.step()
        if isinstance(scheduler, ReduceLROnPlateau | PolicyLR | GreedyLR):
            scheduler.step(loss)
        else:
            for part in getattr(scheduler, "_schedulers", []):
                if isinstance(part, PolicyLR):
                    part.observe(loss)
            scheduler.step()
        rows.append(lrs_of(scheduler.optimizer))
    return rows


def rules(guard: Guard) -> list[str]:
    return [decision.rule for decision in guard.log]


def snapshot_step(guard: Guard) -> int:
    """The step at which the guard's snapshot was taken, or put back."""
    step: int = guard.state_dict()["rollback"]["snapshot_step"]
    return step


def snapshot_tensors(guard: Guard) -> dict[str, Tensor]:
    """What the guard would put back."""
    tensors: dict[str, Tensor] = guard.state_dict()["rollback"]["snapshot"]["tensors"]
    return tensors


def noise(num: int, *, deviation: float = 0.1, seed: int = 0) -> list[float]:
    return list(2.0 * np.exp(deviation * np.random.default_rng(seed).normal(size=num)))


def through_torch_save(state: Any) -> Any:
    return through_file(state)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(SGD, lr=5.0),
    "momentum": partial(SGD, lr=1.0, momentum=0.9),
    "AdamW": partial(AdamW, lr=0.01),
}


class Training:
    """A small network with BatchNorm that regresses on random data."""

    def __init__(
        self,
        optimizer_class: Callable[[Any], Optimizer],
        *,
        rollback: bool = True,
        **arguments: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(256, 8, generator=generator)
        self.y = self.x[:, :1] * self.x[:, 1:2] + self.x[:, 2:3]
        self.model = nn.Sequential(
            nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 1)
        )
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        self.optimizer = optimizer_class(self.model.parameters())
        self.guard = Guard(
            CosineAnnealingLR(self.optimizer, 400),
            model=self.model if rollback else None,
            **arguments,
        )
        self.num_steps = 0

    def backward(self, factor: float = 1.0) -> Tensor:
        index = torch.arange(64).add(37 * self.num_steps) % 256
        self.num_steps += 1
        loss = factor * (self.model(self.x[index]) - self.y[index]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        detached: Tensor = loss.detach()
        return detached

    def step(self, factor: float = 1.0) -> float:
        """A step whose loss is multiplied, and, if there is a rollback to heal it, the gradient."""
        loss = self.backward(factor) if self.guard.rolls_back else factor * self.backward()
        self.optimizer.step()
        self.guard.step(loss)
        return float(loss)

    def tensors(self) -> dict[str, Any]:
        return copy.deepcopy(
            {"model": self.model.state_dict(), "state": self.optimizer.state_dict()["state"]}
        )


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    torch.testing.assert_close(first, second, rtol=0.0, atol=0.0, equal_nan=True)

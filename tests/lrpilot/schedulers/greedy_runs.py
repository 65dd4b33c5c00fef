"""Short runs of GreedyLR."""

import math
import random
from typing import Any

import torch
from torch.optim import Optimizer

from lrpilot.schedulers.greedy.scheduler import GreedyLR

NAN = math.nan
SEMANTICS = ["robust", "paper", "transformers"]
QUICK: dict[str, dict[str, Any]] = {
    "robust": {"window_size": 10, "patience": 5, "factor": 0.5},
    "paper": {"patience": 2, "factor": 0.5, "min_lr": 1e-3},
    "transformers": {"patience": 2, "factor": 0.5, "smooth": True, "window_size": 4},
}


def sgd(*lrs: Any) -> Optimizer:
    groups = [{"params": [torch.ones(2, requires_grad=True)], "lr": lr} for lr in lrs or (0.1,)]
    return torch.optim.SGD(groups, lr=0.1)


def quick(semantics: str, optimizer: Optimizer | None = None, **arguments: Any) -> GreedyLR:
    chosen = QUICK[semantics] | arguments
    return GreedyLR(sgd() if optimizer is None else optimizer, semantics=semantics, **chosen)


def losses(num: int, seed: int = 0) -> list[float]:
    """Falls and rises with noise, NaN, infinities, zeros and 1e30 now and then."""
    rng = random.Random(seed)
    level, slope, values = 2.0, -0.1, []
    for _ in range(num):
        slope = rng.uniform(-0.3, 0.2) if rng.random() < 0.05 else slope
        level += slope
        odd = rng.choice([NAN, math.inf, -math.inf, 0.0, 1e30])
        values.append(odd if rng.random() < 0.02 else level + rng.gauss(0.0, 0.1))
    return values

"""Policies of random or constant actions, and what they are run on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from lrpilot.policy.action import ActionSpec
from lrpilot.policy.actor import Policy
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.observation import ObservationSpec
from tests.scheduling import plain_action

NAN = math.nan
HALVE = plain_action(max_log_change=math.log(2))


def random_policy(
    seed: int = 0,
    *,
    groups: tuple[str, ...] = ("progress", "loss", "lr"),
    action: ActionSpec | None = None,
    clock: ClockSpec | None = None,
    scale: float = 2.0,
    num_entries: int = 10_000,
) -> Policy:
    rng = np.random.default_rng(seed)
    observation = ObservationSpec(groups, num_entries)
    sizes = (len(observation.names), 8, 1)
    layers = [
        (
            rng.normal(0.0, scale / np.sqrt(m), (m, n)).astype(np.float32),
            rng.normal(0.0, 0.3, n).astype(np.float32),
        )
        for m, n in pairwise(sizes)
    ]
    return Policy(
        layers=layers,
        observation=observation,
        action=action or plain_action(),
        clock=clock or ClockSpec(num_decisions=10),
    )


def constant_policy(
    value: float, *, groups: tuple[str, ...] = ("loss",), action: ActionSpec = HALVE
) -> Policy:
    """A policy that always takes the same action."""
    observation = ObservationSpec(groups)
    size = len(observation.names)
    layers = [(np.zeros((size, 1), np.float32), np.full(1, value, np.float32))]
    return Policy(layers, observation, action, ClockSpec(num_decisions=10))


def sgd(*lrs: Any) -> Optimizer:
    groups = [{"params": [torch.ones(3, requires_grad=True)], "lr": lr} for lr in lrs or (0.1,)]
    return torch.optim.SGD(groups, lr=0.1)


def losses(num: int, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    falling = rng.normal(0.0, 0.3, num) - 0.02 * np.arange(num)
    return [float(np.float32(x)) for x in np.exp(falling)]


@dataclass
class ScriptedCap:
    answers: Iterator[float]
    name: str = "deterministic"
    given: list[float] = field(default_factory=list)

    def __call__(self) -> tuple[float, str]:
        self.given.append(next(self.answers))
        return self.given[-1], self.name

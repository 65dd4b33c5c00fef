"""GreedyLR that is told perturbed losses; what is trained, and its gradients, are untouched."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from lrpilot.arguments import require_choice
from lrpilot.evaluation.experiments.greedy.schedulers import practical
from lrpilot.loss import read_loss
from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.tasks.runs import Run

KINDS = ("gaussian", "periodic spikes", "random spikes", "oscillation", "adversarial")
SPIKE_PERIOD, SPIKE_LENGTH, SPIKE_PROBABILITY = 50, 3, 0.02


class Perturbation:
    """Adds noise to one loss after the other, as the paper's robustness experiments do.

    With strength s, call t, and u uniform in [0.5, 2], a loss l becomes

    | kind            | loss                                                      |
    |-----------------|-----------------------------------------------------------|
    | gaussian        | l + s N(0, 1)                                             |
    | periodic spikes | l (1 + s) in the first 3 of every 50 calls                |
    | random spikes   | l (1 + s u) with probability 0.02                         |
    | oscillation     | l (1 + s sin((0.1 + s) t))                                |
    | adversarial     | l (1 + s / 2) if l is below the loss before it            |

    Args:
        kind: one of these.
        strength: s.
        seed: of the noise.

    Raises:
        ValueError: if the kind is none of these.
    """

    def __init__(self, kind: str, strength: float, *, seed: int) -> None:
        require_choice("kind", kind, KINDS)
        self.kind, self.strength = kind, strength
        self._rng = np.random.default_rng(seed)
        self._num_calls = 0
        self._last_loss = math.nan

    def __call__(self, loss: float) -> float:
        """The loss that the scheduler is told."""
        call, last = self._num_calls, self._last_loss
        self._num_calls, self._last_loss = call + 1, loss
        strength, rng = self.strength, self._rng
        if self.kind == "gaussian":
            return loss + strength * float(rng.normal())
        if self.kind == "periodic spikes":
            return loss * (1.0 + strength * (call % SPIKE_PERIOD < SPIKE_LENGTH))
        if self.kind == "random spikes":
            is_spike, height = rng.random() < SPIKE_PROBABILITY, rng.uniform(0.5, 2.0)
            return loss * (1.0 + strength * float(height) * is_spike)
        if self.kind == "oscillation":
            return loss * (1.0 + strength * math.sin((0.1 + strength) * call))
        return loss * (1.0 + strength / 2 * (loss < last))


class PerturbedGreedyLR(GreedyLR):
    """GreedyLR on losses that are perturbed before it sees them.

    Args:
        optimizer: the wrapped optimizer.
        perturb: makes of a loss the one that it is told.
        **arguments: of `GreedyLR`.
    """

    def __init__(
        self, optimizer: Optimizer, *, perturb: Callable[[float], float], **arguments: Any
    ) -> None:
        self._perturb = perturb
        super().__init__(optimizer, **arguments)

    def step(  # type: ignore[override]
        self, loss: float | Tensor | None = None, epoch: int | None = None, *, metrics: Any = None
    ) -> None:
        """Set the learning rates of the next step; call it after `optimizer.step()`."""
        told = None if loss is None else self._perturb(read_loss(loss))
        super().step(told, epoch, metrics=metrics)


def perturbed(
    optimizer: Optimizer, *, total_steps: int, run: Run, kind: str, strength: float
) -> GreedyLR:
    """`practical` on perturbed losses; the run's seed fixes the noise."""
    noise = Perturbation(kind, strength, seed=run.generator.initial_seed())
    make = partial(PerturbedGreedyLR, perturb=noise)
    return practical(optimizer, total_steps=total_steps, make=make)

"""Batched runs of networks beside single runs of the same seeds: the loop that compares them."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.tasks.networks.batch import BatchedNetworkRuns
from lrpilot.tasks.task import Task

SEEDS = (5, 6, 7)
EVERYONE = torch.ones(len(SEEDS), dtype=torch.bool)


def start_batch(task: Task) -> Any:
    """Batched runs of `SEEDS`."""
    runs = task.start_batch(len(SEEDS))
    runs.reset(list(range(len(SEEDS))), list(SEEDS))
    return runs


def lrs_of(task: Task, step: int = 0) -> Tensor:
    """A learning rate of its own for each run, which falls from step to step."""
    factors = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    lrs: Tensor = task.base_lr * factors * (1 - step / 60)
    return lrs.to(getattr(task, "device", "cpu"))


def tolerance_of(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> float:
    """By how much batched runs may differ.

    1e-9 in float64. In float32 1e-5, but 5e-3 under Adam, which divides by the root of tiny second
    moments, so that rounding grows.
    """
    if parameters[0].dtype == torch.float64:
        return 1e-9
    return 5e-3 if isinstance(optimizer, torch.optim.Adam) else 1e-5


class Pair:
    """Batched runs, and the single runs that they shall equal."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.runs = start_batch(task)
        assert isinstance(self.runs, BatchedNetworkRuns)
        self.singles: list[Any] = [task.start(seed) for seed in SEEDS]
        self.tolerance = tolerance_of(self.singles[0].parameters, self.singles[0].optimizer)

    def restart(self, row: int, seed: int) -> None:
        """Start one run anew, while the others go on."""
        self.runs.reset([row], [seed])
        self.singles[row] = self.task.start(seed)

    def step(self, step: int = 0, active: Tensor = EVERYONE) -> None:
        """One step of the active runs on both sides; their losses are equal, others' are 0."""
        lrs = lrs_of(self.task, step)
        losses = self.runs.step(lrs, active.to(lrs.device))
        expected = [
            float(single.step(lr)) if is_active else 0.0
            for single, lr, is_active in zip(
                self.singles, lrs.tolist(), active.tolist(), strict=True
            )
        ]
        assert losses.tolist() == pytest.approx(expected, abs=self.tolerance)

    def check(self) -> None:
        """Assert that what the runs hold and measure is equal."""
        privileged = [single.privileged_loss() for single in self.singles]
        measured = self.runs.privileged_losses().tolist()
        assert measured == pytest.approx(privileged, abs=self.tolerance)
        for row, single in zip(self.runs.parameters, self.singles, strict=True):
            expected = nn.utils.parameters_to_vector(single.parameters)
            torch.testing.assert_close(row, expected, rtol=0.0, atol=self.tolerance)

    def check_samples(self) -> None:
        """Assert that what an observer reads of the runs is what it reads of single ones."""
        weights, gradients = self.runs.weights(), self.runs.gradients()
        for i, single in enumerate(self.singles):
            sample = ParameterSample(single.parameters, ObservationSpec().num_entries)
            torch.testing.assert_close(weights[i], sample.weights(), rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(gradients[i], sample.gradients(), rtol=1e-6, atol=1e-9)


def compare(task: Task, num_steps: int) -> None:
    """Assert that batched runs equal single ones for so many steps."""
    pair = Pair(task)
    for step in range(num_steps):
        pair.step(step)
    pair.check()

"""Three batched runs of a task, for the tests that step them."""

from typing import Any

import torch
from torch import Tensor

from lrpilot.tasks.task import Task
from tests.running import check_batched_runs

SEEDS = [5, 6, 7]
EVERYONE = torch.ones(len(SEEDS), dtype=torch.bool)


def start_batch(task: Task) -> Any:
    """Batched runs of `SEEDS`."""
    runs = task.start_batch(len(SEEDS))
    runs.reset(list(range(len(SEEDS))), SEEDS)
    return runs


def lrs_of(task: Task) -> Tensor:
    """A learning rate of its own for each run."""
    lrs: Tensor = task.base_lr * torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    return lrs


def compare(task: Task, num_steps: int = 20) -> None:
    """Assert that batched runs equal single ones, within the tolerance of dtype and optimizer."""
    run: Any = task.start(0)
    is_float32 = run.parameters[0].dtype == torch.float32
    is_adam = isinstance(run.optimizer, torch.optim.Adam)
    tolerance = 5e-3 if is_float32 and is_adam else None
    check_batched_runs(task, SEEDS, num_steps=num_steps, tolerance=tolerance)

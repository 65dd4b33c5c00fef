"""Factorizations of 12 x 8 matrices, and what tests read of them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrpilot.tasks.nmf.batch import BatchedNMFRuns
from lrpilot.tasks.nmf.problem import NOISES
from lrpilot.tasks.nmf.run import NMFRun
from lrpilot.tasks.nmf.task import NMFTask

ADDED = ("gaussian", "relative")
LEVEL = 0.7
VARIED: dict[str, Any] = {
    "shape": (12, 10),
    "rank": 4,
    "smallest_shape": (6, 5),
    "smallest_rank": 2,
    "scale_range": (0.01, 100.0),
    "condition_range": (1.0, 10.0),
    "sparsity_range": (0.0, 0.2),
}
# noise, cap and update that go together
CAPPED = [
    *((noise, "segment", "simultaneous") for noise in ("none", *ADDED)),
    *((noise, "ball", "simultaneous") for noise in NOISES),
    *((noise, "block", "alternating") for noise in ("none", "minibatch")),
]


make_task: Callable[..., NMFTask] = partial(
    NMFTask,
    name="nmf",
    optimizer=torch.optim.SGD,
    base_lr=0.01,
    total_steps=50,
    shape=(12, 8),
    rank=3,
    batch_size=4,
)


def factors(run: NMFRun) -> tuple[Tensor, Tensor]:
    return run.w.detach().clone(), run.h.detach().clone()


def gradients(run: NMFRun) -> tuple[Tensor, Tensor]:
    assert run.w.grad is not None
    assert run.h.grad is not None
    return run.w.grad.double(), run.h.grad.double()


def exact_gradients(w: Tensor, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    residual = w.double() @ h.double() - v.double()
    return residual @ h.double().mT, w.double().mT @ residual


def objective(w: Tensor, h: Tensor, v: Tensor) -> Tensor:
    return (w.double() @ h.double() - v.double()).square().sum((-2, -1)) / 2


def rms(parts: tuple[Tensor, Tensor]) -> float:
    return math.sqrt(sum(float(x.square().sum()) for x in parts) / sum(x.numel() for x in parts))


def size_of(run: NMFRun) -> tuple[int, int, int]:
    """Valid rows, columns and rank of a padded run."""
    rows, columns = run.objective.size.tolist()
    return rows, columns, int((run.w > 0).any(0).sum())


def valid_block(run: NMFRun) -> tuple[Tensor, Tensor, Tensor]:
    m, n, r = size_of(run)
    w, h = factors(run)
    return w[:m, :r], h[:r, :n], run.matrix[:m, :n]


def padded_task(**changes: Any) -> NMFTask:
    return make_task(smallest_shape=(6, 5), smallest_rank=1, **changes)


def padded_run(**changes: Any) -> NMFRun:
    """Smaller than the largest size in rows, columns and rank."""
    run = padded_task(**changes).start(2)
    assert all(a < b for a, b in zip(size_of(run), (12, 8, 3), strict=True))
    return run


def batch_of(task: NMFTask, seeds: list[int]) -> BatchedNMFRuns:
    runs = BatchedNMFRuns(task, len(seeds))
    runs.reset(list(range(len(seeds))), seeds)
    return runs

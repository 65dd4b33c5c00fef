"""Experts: what a search found to be the best peak of a fixed schedule, for one training each."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lrpilot.files import write_whole
from lrpilot.policy.elementwise import Numbers, at_least, where
from lrpilot.tasks.task import Task

Floats = NDArray[np.float64]

WARMUP_SHARE = 0.1
_LARGEST_RISE = 2.0
_LEAST_PROGRESS = 1e-3


@dataclass(frozen=True)
class Expert:
    """A training, and how it is trained best.

    Args:
        task_seed: which training of the task.
        total_steps: T.
        peak_lr: the best peak of `decay_to_zero`, as a learning rate of the task.
        gain: log of the held-out loss at the start over the best at the end.
        stake: how much the choice of the peak matters: the mean log held-out loss at the end over
            all peaks but the best two, minus the best one; within 0 and 1.
    """

    task_seed: int
    total_steps: int
    peak_lr: float
    gain: float
    stake: float


def decay_to_zero(progress: Numbers) -> Numbers:
    """Warm-up, then decay to zero: p / 0.1 up to p = 0.1, then (1 - p) / 0.9.

    Progress below 0.001 counts as that much, so that the factor is positive until the end.

    References:
        Bergsma et al. Straight to zero: Why linearly decaying the learning rate to zero works best
        for LLMs. 2025.

    >>> [decay_to_zero(p) for p in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    warmup = at_least(_LEAST_PROGRESS, progress) / WARMUP_SHARE
    return where(progress < WARMUP_SHARE, warmup, (1.0 - progress) / (1.0 - WARMUP_SHARE))


def search_experts(
    task: Task, *, seeds: Sequence[int], total_steps: int, peak_factors: Sequence[float]
) -> list[Expert]:
    """Train each of these trainings with every peak, all as one computation, and note the best.

    The best peak is the vertex of the parabola through the log held-out losses of the best of
    `peak_factors` and of its two neighbours, at most half way to one of them.

    Args:
        task: which is batched, and has held-out examples.
        seeds: of the trainings.
        total_steps: T of all of them.
        peak_factors: peaks over the task's `base_lr`, ascending, at least three.

    Raises:
        ValueError: if the factors are too few or do not ascend, or the task cannot be batched.
    """
    factors = np.array(peak_factors, np.float64)
    if len(factors) < 3 or factors[0] <= 0.0 or (np.diff(factors) <= 0.0).any():
        raise ValueError(
            "`peak_factors` must be at least three positive numbers that ascend, got "
            f"{list(peak_factors)}"
        )
    shape = len(seeds), len(factors)
    num_runs = shape[0] * shape[1]
    runs = task.start_batch(num_runs)
    runs.reset(list(range(num_runs)), np.repeat(seeds, shape[1]).tolist())

    def held_out() -> Floats:
        losses: Floats = runs.privileged_losses().double().cpu().numpy().reshape(shape)
        return losses

    first = held_out()[:, :1]
    peaks = torch.as_tensor(np.tile(factors * task.base_lr, shape[0]), device=runs.device)
    everyone = torch.ones(num_runs, dtype=torch.bool, device=runs.device)
    for step in range(total_steps):
        runs.step(peaks * decay_to_zero((step + 0.5) / total_steps), everyone)
    levels = np.log(held_out() / first)
    # a run that diverged is as bad as one that ends at e^2 times its first loss
    levels = np.nan_to_num(levels, nan=_LARGEST_RISE).clip(max=_LARGEST_RISE)
    ordered = np.sort(levels, axis=1)
    stakes = (ordered[:, 2:].mean(1) - ordered[:, 0]).clip(0.0, 1.0)
    log_factors = np.log(factors)
    return [
        Expert(
            task_seed=seed,
            total_steps=total_steps,
            peak_lr=task.base_lr * float(np.exp(vertex(log_factors, row))),
            gain=float(-row.min()),
            stake=float(stake),
        )
        for seed, row, stake in zip(seeds, levels, stakes, strict=True)
    ]


def vertex(x: Floats, y: Floats) -> float:
    """Where the parabola through the lowest point and its neighbours is lowest.

    The lowest point itself if it is the first or the last one.

    >>> vertex(np.array([0.0, 1.0, 2.0]), np.array([4.0, 1.0, 2.0]))
    1.25
    """
    k = int(y.argmin())
    if k in (0, len(y) - 1):
        return float(x[k])
    curvature = y[k - 1] - 2.0 * y[k] + y[k + 1]
    if curvature <= 0.0:
        return float(x[k])
    shift = (y[k - 1] - y[k + 1]) / (2.0 * curvature)
    return float(x[k] + shift * (x[k + 1] - x[k - 1]) / 2.0)


def write_experts(experts: Sequence[Expert], path: Path) -> None:
    """One row per expert, in a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Expert)])
    writer.writeheader()
    writer.writerows(map(asdict, experts))
    write_whole(path, text.getvalue())


def read_experts(path: Path) -> list[Expert]:
    """What `write_experts` wrote.

    Raises:
        ValueError: if the file holds no experts.
    """
    kinds = {field.name: int if field.type is int else float for field in fields(Expert)}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(kinds):
            raise ValueError(f"`experts` must name a file of experts, got {path}")
        rows = list(reader)
    return [Expert(**{name: kinds[name](row[name]) for name in kinds}) for row in rows]

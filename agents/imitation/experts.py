"""Experts: how trainings end under a fixed schedule, at each of several peak learning rates."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.agents.imitation.schedules import decay_to_zero
from lrpilot.envs.reward import LEVEL_FLOOR
from lrpilot.files import write_whole
from lrpilot.tasks.task import Task

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_LARGEST_RISE = 2.0
_FINE = 101
_COLUMNS = ("task_seed", "total_steps")


def log_levels(losses: Tensor, first: Tensor) -> Floats:
    """The log of held-out losses over those at the start, at least log 1e-8.

    At most 2, which is that of what diverged.
    """
    levels: Floats = (losses.double() / first.double()).log().cpu().numpy()
    return np.nan_to_num(levels, nan=_LARGEST_RISE).clip(math.log(LEVEL_FLOOR), _LARGEST_RISE)


@dataclass(frozen=True)
class Experts:
    """N trainings of a task, each of which ran once at every one of K peaks of `decay_to_zero`.

    Args:
        peak_lrs: the peaks, learning rates of the task, ascending, (K,).
        task_seeds: which trainings, (N,).
        total_steps: their horizons T, (N,).
        levels: log of the held-out loss at the end over the one at the start, at most 2, (N, K).
    """

    peak_lrs: Floats
    task_seeds: Integers
    total_steps: Integers
    levels: Floats

    def __len__(self) -> int:
        return len(self.task_seeds)

    def __add__(self, other: Self) -> Self:
        if not np.array_equal(self.peak_lrs, other.peak_lrs):
            raise ValueError(
                f"`other` must have the peaks {self.peak_lrs.tolist()}, got "
                f"{other.peak_lrs.tolist()}"
            )
        names = ("task_seeds", "total_steps", "levels")
        joined = [np.concatenate((getattr(self, n), getattr(other, n))) for n in names]
        return type(self)(self.peak_lrs, *joined)

    def of_horizon(self, total_steps: int) -> Self:
        """Those whose T is this one."""
        chosen = self.total_steps == total_steps
        names = ("task_seeds", "total_steps", "levels")
        return type(self)(self.peak_lrs, *(getattr(self, name)[chosen] for name in names))

    def best_peaks(self, error: float) -> Floats:
        """The peaks that are best for whoever follows them inexactly, (N,).

        log lr is the one for which the mean level is lowest, where the log of the learning rate
        that is run is off by a normal error of this standard deviation. The level between two
        peaks that ran is on a straight line, and beyond the last one as there. So where a little
        more diverges, the best peak is well below that.
        """
        log_peaks = np.log(self.peak_lrs)
        fine = np.linspace(log_peaks[0], log_peaks[-1], _FINE)
        levels = np.stack([np.interp(fine, log_peaks, row) for row in self.levels])
        blur = np.exp(-(((fine[:, None] - fine) / error) ** 2) / 2)
        # what lies beyond the ends is as at the ends
        beyond_first = np.exp(-(((fine[:, None] - (2 * fine[0] - fine[1:])) / error) ** 2) / 2)
        beyond_last = np.exp(-(((fine[:, None] - (2 * fine[-1] - fine[:-1])) / error) ** 2) / 2)
        blur[:, 0] += beyond_first.sum(1)
        blur[:, -1] += beyond_last.sum(1)
        best: Floats = np.exp(fine[(levels @ (blur / blur.sum(1, keepdims=True)).T).argmin(1)])
        return best

    def stakes(self) -> Floats:
        """How much the peak matters: the mean level without the best two, over the best, (N,).

        Within 0 and 1.
        """
        ordered = np.sort(self.levels, axis=1)
        stakes: Floats = (ordered[:, 2:].mean(1) - ordered[:, 0]).clip(0.0, 1.0)
        return stakes

    def write(self, path: Path) -> None:
        """Write one row per training, with a column of levels for each peak, as CSV."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow([*_COLUMNS, *self.peak_lrs.tolist()])
        for seed, steps, levels in zip(
            self.task_seeds.tolist(), self.total_steps.tolist(), self.levels.tolist(), strict=True
        ):
            writer.writerow([seed, steps, *levels])
        write_whole(path, text.getvalue())

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        if tuple(header[:2]) != _COLUMNS or not rows:
            raise ValueError(f"`experts.path` must be a file of experts, got {path}")
        values = np.array(rows, np.float64)
        seeds, steps = values[:, :2].astype(np.int64).T
        return cls(np.array(header[2:], np.float64), seeds, steps, values[:, 2:])


def search_experts(
    task: Task, *, seeds: Sequence[int], total_steps: int, peak_factors: Sequence[float]
) -> Experts:
    """Train each of these trainings with every peak, all as one computation.

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

    first = runs.privileged_losses()
    peak_lrs = factors * task.base_lr
    lrs = torch.as_tensor(np.tile(peak_lrs, shape[0]), device=runs.device)
    everyone = torch.ones(num_runs, dtype=torch.bool, device=runs.device)
    for step in range(total_steps):
        runs.step(lrs * decay_to_zero((step + 0.5) / total_steps), everyone)
    return Experts(
        peak_lrs=peak_lrs,
        task_seeds=np.array(seeds, np.int64),
        total_steps=np.full(len(seeds), total_steps),
        levels=log_levels(runs.privileged_losses(), first).reshape(shape),
    )

"""Episodes: which run is trained, from which initial learning rate, for how long."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrpilot.tasks.task import Task

# evaluation takes its seeds from here upwards, so an agent never sees them
FIRST_EVALUATION_SEED = 2**30
OPTIONS = ("task_seed", "initial_lr", "total_steps", "num_epochs")


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """What the episodes of an environment are drawn from.

    In a mixture, the ranges are those of the drawn task.

    Args:
        task: the inner training problem.
        horizon_factors: range of the horizon T, relative to the task's `total_steps` or, if they
            are given, to `num_epochs` epochs.
        initial_lr_factors: range of the initial learning rate over the task's `base_lr`.
        num_epochs: passes through the training examples; may be a fraction.

    Raises:
        ValueError: if a range is reversed or not positive, or a task has no epochs of one length.
    """

    task: Task
    horizon_factors: Sequence[float]
    initial_lr_factors: Sequence[float]
    num_epochs: float | None

    def __post_init__(self) -> None:
        for name in ("horizon_factors", "initial_lr_factors"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high < math.inf:
                raise ValueError(f"`{name}` must be 0 < low <= high, got {(low, high)}")
        for task in self.task.members():
            self._horizons(task)  # refuses a task without epochs at once

    @property
    def longest(self) -> int:
        """The largest T at factor 1, steps."""
        return max(self._default_steps(task) for task in self.task.members())

    @property
    def horizon_range(self) -> tuple[int, int]:
        """The smallest and the largest T, steps."""
        lows, highs = zip(*map(self._horizons, self.task.members()), strict=True)
        return min(lows), max(highs)

    def _default_steps(self, task: Task) -> int:
        if self.num_epochs is None:
            return task.total_steps
        return steps_of_epochs(task, self.num_epochs)

    def _horizons(self, task: Task) -> tuple[int, int]:
        steps = self._default_steps(task)
        low, high = self.horizon_factors
        return max(1, round(steps * low)), max(1, round(steps * high))

    def draw(self, rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, Any]:
        """A new episode.

        Args:
            rng: source of the draws; how much it is used does not depend on the options.
            options: values of `OPTIONS` that are fixed.

        Returns:
            Task seed, initial learning rate and horizon, and the name of the task.

        Raises:
            ValueError: if an option is unknown or out of range, or the horizon is given twice.
        """
        unknown = set(options) - set(OPTIONS)
        if unknown:
            raise ValueError(f"`options` must be among {', '.join(OPTIONS)}, got {unknown}")
        if {"total_steps", "num_epochs"} <= set(options):
            raise ValueError("`options` must hold `total_steps` or `num_epochs`, got both")

        def between(bounds: Sequence[float]) -> float:
            return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))

        seed = int(rng.integers(FIRST_EVALUATION_SEED))
        seed = options.get("task_seed", seed)
        task = self.task.member_of_seed(seed)
        episode = {
            "task": task.name,
            "task_seed": seed,
            "initial_lr": task.base_lr * between(self.initial_lr_factors),
            "total_steps": max(1, round(between(self._horizons(task)))),
        }
        if "num_epochs" in options:
            episode["total_steps"] = steps_of_epochs(task, options["num_epochs"])
        for name in ("initial_lr", "total_steps"):
            episode[name] = options.get(name, episode[name])
        if not 0.0 < episode["initial_lr"] < math.inf:
            raise ValueError(f"`initial_lr` must be positive, got {episode['initial_lr']}")
        return episode


def steps_of_epochs(task: Task, num_epochs: float) -> int:
    """Optimizer steps of so many epochs, rounded, at least 1.

    Raises:
        ValueError: if `num_epochs` is not positive, or the task has no epochs of one length.
    """
    if not 0.0 < num_epochs < math.inf:
        raise ValueError(f"`num_epochs` must be positive, got {num_epochs}")
    return max(1, round(num_epochs * task.steps_per_epoch()))

"""Episodes: which run is trained, from which initial learning rate, for how long."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lrpilot.policy.settings import ControlSettings
from lrpilot.tasks.task import Task

# evaluation takes its seeds from here upwards, so an agent never sees them
FIRST_EVALUATION_SEED = 2**30
OPTIONS = ("task_seed", "initial_lr", "total_steps", "num_epochs")


@dataclass(frozen=True)
class Episodes:
    """What the episodes of an environment are drawn from.

    In a mixture, the ranges are those of the drawn task.

    Args:
        task: the inner training problem.
        settings: the ranges of horizons and of initial learning rates.

    Raises:
        ValueError: if a horizon is in epochs, and a task has none of one length.
    """

    task: Task
    settings: ControlSettings

    def __post_init__(self) -> None:
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
        if self.settings.num_epochs is None:
            return task.total_steps
        return steps_of_epochs(task, self.settings.num_epochs)

    def _horizons(self, task: Task) -> tuple[int, int]:
        steps = self._default_steps(task)
        low, high = self.settings.horizon_factors
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
            "initial_lr": task.base_lr * between(self.settings.initial_lr_factors),
            "total_steps": max(1, round(between(self._horizons(task)))),
        }
        if "num_epochs" in options:
            episode["total_steps"] = steps_of_epochs(task, options["num_epochs"])
        for name in ("initial_lr", "total_steps"):
            episode[name] = options.get(name, episode[name])
        if not 0.0 < episode["initial_lr"] < math.inf:
            raise ValueError(f"`initial_lr` must be positive, got {episode['initial_lr']}")
        return episode


def settings_for(task: Task, settings: ControlSettings) -> ControlSettings:
    """The settings with what follows from the task: its horizons, and the decisions in a run.

    Raises:
        ValueError: if a horizon is in epochs, and the task has none of one length.
    """
    episodes = Episodes(task, settings)
    num_decisions = settings.num_decisions
    if settings.interval_steps is not None:
        num_decisions = max(1, round(episodes.longest / settings.interval_steps))
    return replace(settings, num_decisions=num_decisions, horizon_range=episodes.horizon_range)


def steps_of_epochs(task: Task, num_epochs: float) -> int:
    """Optimizer steps of so many epochs, rounded, at least 1.

    Raises:
        ValueError: if `num_epochs` is not positive, or the task has no epochs of one length.
    """
    if not 0.0 < num_epochs < math.inf:
        raise ValueError(f"`num_epochs` must be positive, got {num_epochs}")
    return max(1, round(num_epochs * task.steps_per_epoch()))

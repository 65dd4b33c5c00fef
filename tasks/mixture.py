"""Several tasks as one, so that one agent learns on all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch

from lrpilot.tasks.devices import on_device
from lrpilot.tasks.groups import GroupedRuns
from lrpilot.tasks.runs import OptimizerFactory, Run
from lrpilot.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class MixtureTask(Task):
    """Every seed is a run of one of several tasks, drawn with probability w_i / sum_j w_j.

    A run is in all respects one of its own task: an environment takes its initial learning rate,
    horizon and reward scale from there. The draw has a generator of its own, so that the runs of a
    task within the mixture are spread as those of the task alone.

    Args:
        name: short name.
        tasks: the tasks, at least one, each renamed to its key.
        weights: w_i > 0 by key; those not named have 1.
        device: where the runs of all tasks live (see `DeviceTask`); None leaves each on its own.

    Raises:
        ValueError: if there is no task, one is a mixture itself, a weight is not positive or
            names no task, or a task has no device that could be chosen.
    """

    name: str = "mixture"
    tasks: Mapping[str, Task]
    weights: Mapping[str, float] = field(default_factory=dict)
    device: str | None = None
    # the longest horizon and the smallest learning rate of the tasks; what trains is their own
    optimizer: OptimizerFactory = field(init=False, repr=False)
    base_lr: float = field(init=False)
    total_steps: int = field(init=False)
    reward_scale: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"`tasks` must hold at least one task, got {self.tasks}")
        for name, task in self.tasks.items():
            if isinstance(task, MixtureTask):
                raise ValueError(f"`tasks` must not hold a mixture, got {name!r}")
        for name, weight in self.weights.items():
            if name not in self.tasks:
                raise ValueError(f"`weights` must be of {list(self.tasks)}, got one of {name!r}")
            if not 0.0 < weight < float("inf"):
                raise ValueError(f"`weights` must be positive and finite, got {weight}")
        # by name, so that the draw does not depend on the order in a configuration
        named = {name: replace(self.tasks[name], name=name) for name in sorted(self.tasks)}
        if self.device is not None:
            named = {name: on_device(task, self.device) for name, task in named.items()}
        values = {
            "tasks": named,
            "optimizer": next(iter(named.values())).optimizer,
            "base_lr": min(task.base_lr for task in named.values()),
            "total_steps": max(task.total_steps for task in named.values()),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def members(self) -> Sequence[Task]:
        """The tasks."""
        return tuple(self.tasks.values())

    def index_of_seed(self, seed: int) -> int:
        """Which of the members the run of this seed is of."""
        weights = np.array([self.weights.get(name, 1.0) for name in self.tasks])
        bounds = np.cumsum(weights) / weights.sum()
        # a torch generator's first number would be what many tasks draw first from the same seed
        return int(np.searchsorted(bounds[:-1], np.random.default_rng(seed).random(), "right"))

    def member_of_seed(self, seed: int) -> Task:
        """The task whose run `start(seed)` is."""
        return self.members()[self.index_of_seed(seed)]

    def reward_scale_of(self, seed: int) -> float:
        """That of the run's own task."""
        return self.member_of_seed(seed).reward_scale_of(seed)

    def at_lr(self, lr: float, optimizer: OptimizerFactory | None = None) -> Self:
        """The mixture of the same tasks, all with this initial learning rate."""
        tasks = {name: task.at_lr(lr, optimizer) for name, task in self.tasks.items()}
        return replace(self, tasks=tasks)

    def start(self, seed: int) -> Run:
        """A new run of the task of this seed."""
        return self.member_of_seed(seed).start(seed)

    def start_batch(self, num_runs: int) -> "BatchedMixture":
        """B runs, those of one task as one computation.

        Raises:
            ValueError: if one of the tasks cannot be batched, or they are on several devices.
        """
        return BatchedMixture(self, num_runs)


class BatchedMixture(GroupedRuns):
    """B runs of a mixture: every task has B rows, and run i is in row i of its own task."""

    def __init__(self, mixture: MixtureTask, num_runs: int) -> None:
        groups = [member.start_batch(num_runs) for member in mixture.members()]
        devices = {group.device for group in groups}
        if len(devices) > 1:
            raise ValueError(f"`tasks` must be on one device to be batched, got {sorted(devices)}")
        super().__init__(groups, num_runs, dtype=torch.float64)
        self._mixture = mixture
        self._place = torch.arange(num_runs)

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        members = [self._mixture.index_of_seed(seed) for seed in seeds]
        self._group[rows] = torch.tensor(members)
        for k, group in enumerate(self._groups):
            mine = [i for i, member in enumerate(members) if member == k]
            if mine:
                group.reset([rows[i] for i in mine], [seeds[i] for i in mine])
        self._find_members()

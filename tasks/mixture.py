"""Several tasks as one, so that one agent learns on all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lrpilot.tasks.runs import BatchedRuns, OptimizerFactory, Run
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

    Raises:
        ValueError: if there is no task, one is a mixture itself, or a weight is not positive or
            names no task.
    """

    name: str = "mixture"
    tasks: Mapping[str, Task]
    weights: Mapping[str, float] = field(default_factory=dict)
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

    def at_lr(self, lr: float) -> Self:
        """The mixture of the same tasks, all with this initial learning rate."""
        return replace(self, tasks={name: task.at_lr(lr) for name, task in self.tasks.items()})

    def start(self, seed: int) -> Run:
        """A new run of the task of this seed."""
        return self.member_of_seed(seed).start(seed)

    def start_batch(self, num_runs: int) -> "BatchedMixture":
        """B runs, those of one task as one computation.

        Raises:
            ValueError: if one of the tasks cannot be batched, or they are on several devices.
        """
        return BatchedMixture(self, num_runs)


class BatchedMixture(BatchedRuns):
    """B runs of a mixture: every task has B rows, and run i is in row i of its own task.

    Args:
        task: the mixture.
        num_runs: B, at least 1.

    Raises:
        ValueError: see `MixtureTask.start_batch`.
    """

    def __init__(self, task: MixtureTask, num_runs: int) -> None:
        self._task = task
        self._parts = [member.start_batch(num_runs) for member in task.members()]
        devices = {part.device for part in self._parts}
        if len(devices) > 1:
            raise ValueError(f"`tasks` must be on one device to be batched, got {sorted(devices)}")
        super().__init__(num_runs, device=devices.pop())
        # each run's task; -1 before its first start
        self._members = torch.full((num_runs,), -1)

    def _rows(self, k: int) -> Tensor:
        """The indices of the runs of a task, on the device."""
        return (self._members == k).nonzero().squeeze(1).to(self.device)

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        members = [self._task.index_of_seed(seed) for seed in seeds]
        self._members[rows] = torch.tensor(members)
        for k, part in enumerate(self._parts):
            mine = [i for i, member in enumerate(members) if member == k]
            if mine:
                part.reset([rows[i] for i in mine], [seeds[i] for i in mine])

    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs; returns the losses before it, 0 for the other runs."""
        losses = torch.zeros(self.num_runs, dtype=torch.float64, device=self.device)
        for k, part in enumerate(self._parts):
            rows = self._rows(k)
            mine = torch.zeros_like(active)
            mine[rows] = active[rows]
            if mine.any():
                losses[mine] = part.step(lrs, mine)[mine].double()
        return losses

    def cap(self) -> tuple[Tensor, str]:
        """A batched mixture has none.

        Raises:
            ValueError: always.
        """
        raise ValueError("`cap` must be asked of runs that have one, got a mixture")

    def privileged_losses(self) -> Tensor:
        """Each run's privileged loss."""
        losses = torch.zeros(self.num_runs, dtype=torch.float64, device=self.device)
        for k, part in enumerate(self._parts):
            rows = self._rows(k)
            if len(rows):
                losses[rows] = part.privileged_losses()[rows].double()
        return losses

    def weights(self) -> Tensor:
        """Each run's sampled parameter entries; smaller networks' are followed by zeros."""
        return self._gather([part.weights() for part in self._parts])

    def gradients(self) -> Tensor:
        """The last gradients of these entries."""
        return self._gather([part.gradients() for part in self._parts])

    def _gather(self, values: list[Tensor]) -> Tensor:
        num_columns = max(value.shape[1] for value in values)
        gathered = torch.zeros(self.num_runs, num_columns, device=self.device)
        for k, value in enumerate(values):
            rows = self._rows(k)
            gathered[rows, : value.shape[1]] = value[rows]
        return gathered

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors (loads with `weights_only=True`)."""
        return {
            "members": self._members.clone(),
            "parts": [part.state_dict() for part in self._parts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same mixture."""
        self._members = state["members"].clone()
        for part, part_state in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(part_state)

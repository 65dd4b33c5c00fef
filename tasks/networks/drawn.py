"""Batched networks of one architecture whose runs draw their own data and optimizers."""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrpilot.state import state_fields
from lrpilot.tasks.groups import GroupedRuns
from lrpilot.tasks.networks.batch import BatchedNetworkRuns
from lrpilot.tasks.networks.minibatches import BatchedMinibatchSampler
from lrpilot.tasks.networks.stacked_optimizer import UpdateSettings, extend, read_settings
from lrpilot.tasks.runs import BatchedRuns, OptimizerFactory


class Drawn(NamedTuple):
    """What one run has drawn."""

    model: nn.Module
    data: tuple[Tensor, Tensor, Tensor, Tensor]
    """Inputs and targets, (examples, ...) each, of training and held out."""
    optimizer: OptimizerFactory
    constants: tuple[float, ...]
    """Numbers of the run's own; the first is the optimizer's learning rate over the one that is
    asked for."""


class DrawnRuns(BatchedNetworkRuns):
    """B networks in training as one computation, each with data and an optimizer of its own.

    Args:
        example: what a run may draw; the others' tensors have its shapes.
        optimizer: of runs that draw none.
        num_runs: B, at least 1.
        batch_size: examples per step.
        device: where the runs live.
    """

    _state_fields = state_fields(
        minibatches="_minibatches", seeds="_seeds", **BatchedNetworkRuns._state_fields
    )

    def __init__(
        self,
        example: Drawn,
        *,
        optimizer: OptimizerFactory,
        num_runs: int,
        batch_size: int,
        device: str,
    ) -> None:
        super().__init__(example.model, optimizer=optimizer, num_runs=num_runs, device=device)
        self._minibatches = BatchedMinibatchSampler(
            self.generators, num_examples=len(example.data[0]), batch_size=batch_size
        )
        self._data = [part.new_zeros(num_runs, *part.shape) for part in example.data]
        shape = num_runs, len(example.constants)
        self._constants = torch.zeros(shape, dtype=torch.float64, device=device)
        # None where no run was started yet
        self._seeds: list[int | None] = [None] * num_runs

    @abstractmethod
    def _draw(self, generator: torch.Generator) -> Drawn:
        """What a run draws."""

    def grow(self, num_runs: int) -> None:
        """Make room for as many runs; those that are here keep their indices."""
        super().grow(num_runs)
        self._minibatches.grow()
        self._data = [extend(part, num_runs) for part in self._data]
        self._constants = extend(self._constants, num_runs)
        self._seeds += [None] * (num_runs - len(self._seeds))

    def _start(self, row: int, seed: int) -> UpdateSettings:
        drawn = self._draw(self.generators[row])
        self._seeds[row] = seed
        for parts, part in zip(self._data, drawn.data, strict=True):
            parts[row] = part
        self._constants[row] = torch.tensor(drawn.constants, dtype=torch.float64)
        self._minibatches.start([row])
        self._take(row, drawn.model)
        return read_settings(drawn.optimizer(drawn.model.parameters(), lr=1.0))

    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs, each at the learning rate times its optimizer's factor."""
        return super().step(lrs * self._constants[:, 0], active)

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        index = self._minibatches.next(rows.cpu()).to(self.device, non_blocking=True)
        examples = rows.unsqueeze(1), index
        return self._data[0][examples], self._data[1][examples]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs that draw from the same; data are drawn."""
        started = {row: seed for row, seed in enumerate(state["seeds"]) if seed is not None}
        if started:
            self.reset(list(started), list(started.values()))
        super().load_state_dict(state)


class DrawnGroups(GroupedRuns):
    """B runs, each in the group of its architecture, which it may leave when it starts anew.

    Groups grow when they have no place left.

    Args:
        num_groups: how many architectures there are.
        num_runs: B, at least 1.
        dtype: of the losses.
    """

    def __init__(self, num_groups: int, num_runs: int, *, dtype: torch.dtype) -> None:
        groups: list[BatchedRuns] = [self._new_group(k, 1) for k in range(num_groups)]
        super().__init__(groups, num_runs, dtype=dtype)

    @abstractmethod
    def _new_group(self, k: int, num_runs: int) -> DrawnRuns:
        """So many runs of the k-th architecture, not yet started."""

    @abstractmethod
    def _group_of(self, seed: int) -> int:
        """Which architecture the run of this seed has."""

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        self._group[rows] = self._place[rows] = -1
        wanted: dict[int, list[tuple[int, int]]] = {}
        for row, seed in zip(rows, seeds, strict=True):
            wanted.setdefault(self._group_of(seed), []).append((row, seed))
        for k, runs in wanted.items():
            group = self._groups[k]
            assert isinstance(group, DrawnRuns)
            taken = set(self._place[self._group == k].tolist())
            if len(taken) + len(runs) > group.num_runs:
                group.grow(len(taken) + len(runs))
            free = [place for place in range(group.num_runs) if place not in taken][: len(runs)]
            group.reset(free, [seed for _, seed in runs])
            new = [row for row, _ in runs]
            self._group[new], self._place[new] = k, torch.tensor(free)
        self._find_members()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        self._groups = [
            self._new_group(k, len(group["seeds"])) for k, group in enumerate(state["groups"])
        ]
        super().load_state_dict(state)

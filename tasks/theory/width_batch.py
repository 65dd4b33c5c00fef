"""Many two-layer networks on noisy labels as one tensor computation."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrpilot.tasks.networks.batch import BatchedNetworkRuns
from lrpilot.tasks.networks.minibatches import BatchedMinibatchSampler
from lrpilot.tasks.networks.stacked_optimizer import UpdateSettings

if TYPE_CHECKING:
    from lrpilot.tasks.theory.width import WidthTask


class BatchedWidthRuns(BatchedNetworkRuns):
    """B two-layer networks of one width, each on examples of its own.

    Args:
        task: what is trained.
        num_runs: B, at least 1.

    Raises:
        ValueError: see `BatchedNetworkRuns`.
    """

    def __init__(self, task: "WidthTask", num_runs: int) -> None:
        model = task.make_model(torch.Generator())
        super().__init__(model, optimizer=task.optimizer, num_runs=num_runs)
        self._task = task
        self._splits = task.load()
        self._chosen = torch.zeros(num_runs, task.num_train, dtype=torch.int64)
        self._labels = torch.zeros_like(self._chosen)
        self._minibatches = BatchedMinibatchSampler(
            self.generators, num_examples=task.num_train, batch_size=task.batch_size
        )

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        super().reset(rows, seeds)
        self._minibatches.start(rows)

    def _start(self, row: int, seed: int) -> UpdateSettings:
        generator = self.generators[row]
        self._chosen[row], self._labels[row] = self._task.draw_examples(generator)
        self._take(row, self._task.make_model(generator))
        return self._settings

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        picked = self._minibatches.next(rows)
        chosen = self._chosen[rows].gather(1, picked)
        return self._splits.train.inputs[chosen], self._labels[rows].gather(1, picked)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._task.loss(outputs, targets)

    @torch.no_grad()
    def privileged_losses(self) -> Tensor:
        """The losses on all held-out images."""
        return self._measured(*self._splits.held_out)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the examples and the orders of the current epochs."""
        return {
            **super().state_dict(),
            "chosen": self._chosen.clone(),
            "labels": self._labels.clone(),
            "minibatches": self._minibatches.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        super().load_state_dict(state)
        self._chosen, self._labels = state["chosen"].clone(), state["labels"].clone()
        self._minibatches.load_state_dict(state["minibatches"])

"""Many wide networks in the kernel regime as one tensor computation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrpilot.tasks.networks.batch import BatchedNetworkRuns
from lrpilot.tasks.networks.stacked_optimizer import UpdateSettings
from lrpilot.tasks.theory.linearized import (
    LinearizedModel,
    check_plain,
    half_mean_square,
    stable_lr,
)

if TYPE_CHECKING:
    from lrpilot.tasks.theory.lazy import LazyTask


class _Network(nn.Module):
    """The task's network as a module."""

    def __init__(self, task: "LazyTask", weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self._task = task

    def forward(self, inputs: Tensor) -> Tensor:
        return self._task.network(inputs)(list(self.weights))


class BatchedLazyRuns(BatchedNetworkRuns):
    """B networks of a `LazyTask`, all on the same images, each full batch.

    Args:
        task: what is trained; not linearized.
        num_runs: B, at least 1.

    Raises:
        ValueError: if the task is linearized; see also `BatchedNetworkRuns`.
    """

    def __init__(self, task: "LazyTask", num_runs: int) -> None:
        if task.linearized:
            raise ValueError("`linearized` of batched runs must be False, got True")
        self._inputs, self._targets = task.split("train")
        self._task = task
        model = self._draw(torch.Generator())
        self._optimizer = task.optimizer(model.parameters(), lr=1.0)
        super().__init__(model, optimizer=task.optimizer, num_runs=num_runs)
        self._starts = torch.zeros_like(self.parameters)
        self._caps = torch.full((num_runs,), torch.nan, dtype=torch.float64)

    def _draw(self, generator: torch.Generator) -> _Network:
        return _Network(self._task, self._task.draw_weights(self._inputs.shape[1], generator))

    def _start(self, row: int, seed: int) -> UpdateSettings:
        self._take(row, self._draw(self.generators[row]))
        self._starts[row] = self.parameters[row]
        self._caps[row] = torch.nan
        return self._settings

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = self._inputs, self._targets
        return inputs.expand(len(rows), *inputs.shape), targets.expand(len(rows), *targets.shape)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return half_mean_square(outputs - targets)

    def cap(self) -> tuple[Tensor, str]:
        """2 n / lambda_max of the tangent kernel at the start of each run, as in `LazyRun.cap`.

        Raises:
            ValueError: if the optimizer is not plain gradient descent.
        """
        check_plain(self._optimizer)
        network = self._task.network(self._inputs)
        for row in self._caps.isnan().nonzero().flatten().tolist():
            weights = [part[0] for part in self._stacked(self._starts[row : row + 1])]
            self._caps[row] = stable_lr(LinearizedModel(network, weights).kernel())
        return self._caps, "estimate"

    def privileged_losses(self) -> Tensor:
        """L, on the training images."""
        return self._measured(self._inputs, self._targets)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the weights that the runs started from."""
        return {**super().state_dict(), "starts": self._starts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        super().load_state_dict(state)
        self._starts = state["starts"].clone()
        self._caps.fill_(torch.nan)

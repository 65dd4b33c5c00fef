"""What batched runs of the language tasks share: transformers as one tensor computation."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrpilot.tasks.language.base import LanguageTask
from lrpilot.tasks.language.transformer import RunDropout
from lrpilot.tasks.networks.batch import BatchedNetworkRuns
from lrpilot.tasks.networks.stacked_optimizer import UpdateSettings


class BatchedLanguageRuns(BatchedNetworkRuns):
    """B transformers in training as one computation; they share one copy of the data.

    Args:
        task: what is trained.
        num_runs: B, at least 1.

    Raises:
        ValueError: see `BatchedNetworkRuns`.
    """

    def __init__(self, task: LanguageTask, num_runs: int) -> None:
        super().__init__(
            task.make_model(0, torch.Generator()),
            optimizer=task.optimizer,
            num_runs=num_runs,
            device=task.device,
            max_gradient_norm=task.max_gradient_norm,
            precision=task.precision,
        )
        self._task = task
        self._dropouts = [part for part in self._model.modules() if isinstance(part, RunDropout)]

    def _start(self, row: int, seed: int) -> UpdateSettings:
        self._take(row, self._task.make_model(seed, self.generators[row]))
        return self._settings

    def _lengths(self, inputs: Tensor) -> list[int]:
        """How many columns of each run's inputs, (rows, batch, columns), a single run would see."""
        return [inputs.shape[2]] * len(inputs)

    def _losses(
        self, rows: Tensor, parameters: list[Tensor], inputs: Tensor, targets: Tensor
    ) -> Tensor:
        if self._task.dropout > 0.0:
            generators = [self.generators[row] for row in rows.tolist()]
            streams = list(zip(generators, self._lengths(inputs), strict=True))
            for dropout in self._dropouts:
                dropout.streams = streams
        return super()._losses(rows, parameters, inputs, targets)

    def _mapped(self, *arguments: Any, **dimensions: Any) -> Tensor:
        # the CPU's flash attention is the one operation that cannot be mapped
        with sdpa_kernel(SDPBackend.MATH):
            return super()._mapped(*arguments, **dimensions)

"""Many image classifiers of one architecture as one tensor computation."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrpilot.tasks.images.augmentation import crop_and_flip, draw_crops
from lrpilot.tasks.networks.batch import BatchedNetworkRuns
from lrpilot.tasks.networks.minibatches import Minibatches
from lrpilot.tasks.networks.stacked_optimizer import UpdateSettings

if TYPE_CHECKING:
    from lrpilot.tasks.images.task import ImageTask


def runs_and_channels_last(images: Tensor) -> Tensor:
    """The same images (runs, batch, channels, height, width), laid out for a grouped convolution.

    In memory a pixel's channels of all runs lie side by side: `torch.func.vmap` convolves runs as
    groups of channels, and so gets what is channels last without a copy.
    """
    return images.permute(1, 3, 4, 0, 2).contiguous().permute(3, 0, 4, 1, 2)


def can_lie_channels_last(model: nn.Module) -> bool:
    """Whether no module asks `torch.func.vmap` for a memory layout, which it does not know."""
    asking = nn.GroupNorm | nn.modules.pooling._AdaptiveAvgPoolNd
    return not any(isinstance(module, asking) for module in model.modules())


class BatchedImageRuns(BatchedNetworkRuns):
    """B networks of an `ImageTask`; they share one copy of the data.

    Args:
        task: what is trained.
        num_runs: B, at least 1.

    Raises:
        ValueError: see `BatchedNetworkRuns`.
    """

    def __init__(self, task: "ImageTask", num_runs: int) -> None:
        super().__init__(
            task.make_model(0),
            optimizer=task.optimizer,
            num_runs=num_runs,
            device=task.device,
            precision=task.precision,
        )
        self._task = task
        is_on_gpu = torch.device(task.device).type == "cuda"
        self._lies_channels_last = is_on_gpu and can_lie_channels_last(self._model)
        self.data = task.load()
        self._minibatches = Minibatches(
            self.generators, num_examples=len(self.data.train_x), batch_size=task.batch_size
        )

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        super().reset(rows, seeds)
        self._minibatches.start(rows)

    def _start(self, row: int, seed: int) -> UpdateSettings:
        self._take(row, self._task.make_model(seed))
        return self._settings

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.cpu()
        index = self._minibatches.next(rows).to(self.device, non_blocking=True)
        images = self.data.train_x[index]
        if self._task.augment:
            images = self._augmented(images, rows.tolist())
        if self._lies_channels_last:
            images = runs_and_channels_last(images)
        return images, self.data.train_y[index]

    def _augmented(self, images: Tensor, rows: list[int]) -> Tensor:
        task = self._task
        crops = [
            draw_crops(task.batch_size, padding=task.crop_padding, generator=self.generators[row])
            for row in rows
        ]
        augmented = crop_and_flip(
            images.flatten(0, 1),
            torch.cat(crops, dim=1).to(self.device, non_blocking=True),
            padding=task.crop_padding,
            padding_mode=task.padding_mode,
        )
        return augmented.view(images.shape)

    def privileged_losses(self) -> Tensor:
        """Cross-entropies on the first `num_privileged` held-out images."""
        size = self._task.num_privileged
        return self._measured(self.data.held_out_x[:size], self.data.held_out_y[:size])

    def state_dict(self) -> dict[str, Any]:
        """The state, with the orders of the current epochs."""
        return {**super().state_dict(), "minibatches": self._minibatches.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        super().load_state_dict(state)
        self._minibatches.load_state_dict(state["minibatches"])

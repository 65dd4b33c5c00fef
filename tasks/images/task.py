"""Image classification: networks of `models.py` on the sets of `lrpilot.tasks.data.images`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot.tasks.data.images import ImageData, load_image_data
from lrpilot.tasks.images.augmentation import PADDING_MODES, crop_and_flip, draw_crops
from lrpilot.tasks.images.batch import BatchedImageRuns
from lrpilot.tasks.images.models import lenet, small_cnn
from lrpilot.tasks.networks.supervised import (
    EpochOrder,
    check_precision,
    forward,
    measuring,
    split_metrics,
)
from lrpilot.tasks.runs import Closure, ClosureRun
from lrpilot.tasks.task import Task

__all__ = ["ImageRun", "ImageTask", "lenet", "small_cnn"]

EVALUATION_BATCH = 1000


@lru_cache(maxsize=4)
def _data_on_device(
    name: str, data_dir: str | None, num_train: int | None, device: str
) -> ImageData:
    data = load_image_data(name, data_dir=data_dir, num_train=num_train)
    moved = {
        key: value.to(device) for key, value in vars(data).items() if isinstance(value, Tensor)
    }
    return ImageData(**moved, num_classes=data.num_classes)


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """Classify images; the loss is the mean cross-entropy, in nats.

    Args:
        data: "digits", "fashion_mnist" or "cifar10".
        model: called as `model(channels, num_classes)`, with `image_size=` (pixels per side) if
            it has an argument of that name; returns a module that maps images (batch, channels,
            height, width) to logits (batch, classes).
        batch_size: images per step; epochs are shuffled, an incomplete batch is dropped.
        augment: train on random crops of the padded images, half of them mirrored, drawn from the
            run's generator; what is measured is never augmented.
        crop_padding: pixels that are added on each side before an image is cropped.
        padding_mode: "reflect" or "zeros"; see `lrpilot.tasks.images.augmentation.crop_and_flip`.
        num_train: use the first so many training images; None uses all.
        num_privileged: held-out images in the privileged loss.
        data_dir: folder of the data files (default: environment variable `LRPILOT_DATA`).
        device: where model and data live; on a GPU the model is laid out channels last.
        precision: of the forward pass and its gradients: "float32", or "bfloat16" by autocast.

    Raises:
        ValueError: if a size is below 1 or above what the data has, or a name is unknown.
        lrpilot.tasks.data.archives.DataError: by `start`, if the data is missing or unreadable.
    """

    data: str
    model: Callable[..., nn.Module] = small_cnn
    batch_size: int = 64
    augment: bool = False
    crop_padding: int = 4
    padding_mode: str = "reflect"
    num_train: int | None = None
    num_privileged: int = 256
    data_dir: str | None = None
    device: str = "cpu"
    precision: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "num_privileged"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.crop_padding < 0:
            raise ValueError(f"`crop_padding` must be at least 0, got {self.crop_padding}")
        if self.padding_mode not in PADDING_MODES:
            raise ValueError(
                f"`padding_mode` must be one of {PADDING_MODES}, got {self.padding_mode!r}"
            )
        check_precision(self.precision)

    def load(self) -> ImageData:
        """The data on the device; one copy per process."""
        data = _data_on_device(self.data, self.data_dir, self.num_train, self.device)
        if self.batch_size > len(data.train_x):
            raise ValueError(
                f"`batch_size` must be at most the {len(data.train_x)} training images, got "
                f"{self.batch_size}"
            )
        if self.num_privileged > len(data.held_out_x):
            raise ValueError(
                f"`num_privileged` must be at most the {len(data.held_out_x)} held-out images, got "
                f"{self.num_privileged}"
            )
        size = data.train_x.shape[-1]
        if self.augment and self.crop_padding >= size:
            raise ValueError(
                f"`crop_padding` must be below the images' {size} pixels, got {self.crop_padding}"
            )
        return data

    def make_model(self, seed: int) -> nn.Module:
        """The network of this seed, on the device; no global generator is touched."""
        data = self.load()
        has_size = "image_size" in inspect.signature(self.model).parameters
        size = {"image_size": data.train_x.shape[-1]} if has_size else {}
        with torch.random.fork_rng(devices=[]):
            # unlike torch.manual_seed, this leaves the generators of GPUs alone
            torch.default_generator.manual_seed(seed)
            model = self.model(data.train_x.shape[1], data.num_classes, **size)
        model = model.to(self.device)
        # on a CPU it pays in bfloat16; float32 results stay as they were measured without it
        if torch.device(self.device).type == "cuda" or self.precision == "bfloat16":
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def steps_per_epoch(self) -> int:
        """Optimizer steps in which a run goes through its training images once."""
        return len(self.load().train_x) // self.batch_size

    def start(self, seed: int) -> "ImageRun":
        """A new network on freshly shuffled data."""
        return ImageRun(self, seed)

    def start_batch(self, num_runs: int) -> BatchedImageRuns:
        """B runs as one computation.

        Raises:
            ValueError: if the model or the optimizer cannot be batched (see
                `BatchedNetworkRuns`).
        """
        return BatchedImageRuns(self, num_runs)


class ImageRun(ClosureRun):
    """One network in training."""

    def __init__(self, task: ImageTask, seed: int) -> None:
        self.data = task.load()
        self.model = task.make_model(seed)
        super().__init__(
            self.model.parameters(),
            optimizer=task.optimizer,
            lr=task.base_lr,
            generator=torch.Generator().manual_seed(seed),
        )
        self._task = task
        self._epoch = EpochOrder(len(self.data.train_x), task.batch_size, self.generator)

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        index = self._epoch.next().to(self._task.device, non_blocking=True)
        images = self.data.train_x.index_select(0, index)
        if self._task.augment:
            images = self._augmented(images)
        return images, self.data.train_y.index_select(0, index)

    def _augmented(self, images: Tensor) -> Tensor:
        task = self._task
        crops = draw_crops(len(images), padding=task.crop_padding, generator=self.generator)
        return crop_and_flip(
            images,
            crops.to(task.device, non_blocking=True),
            padding=task.crop_padding,
            padding_mode=task.padding_mode,
        )

    def _logits(self, images: Tensor) -> Tensor:
        return forward(self.model, images, self._task.precision)

    def _draw_loss(self) -> Closure:
        images, labels = self._next_batch()
        return lambda: functional.cross_entropy(self._logits(images), labels)

    def privileged_loss(self) -> float:
        """Cross-entropy on the first `num_privileged` held-out images."""
        size = self._task.num_privileged
        with measuring(self.model):
            logits = self._logits(self.data.held_out_x[:size])
            return float(functional.cross_entropy(logits, self.data.held_out_y[:size]))

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the whole held-out and test splits."""
        with measuring(self.model):
            return split_metrics(self.data, self._logits, batch_size=EVALUATION_BATCH)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the model's buffers and the order of the current epoch."""
        return {
            **super().state_dict(),
            "buffers": [buffer.clone() for buffer in self.model.buffers()],
            **self._epoch.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task."""
        super().load_state_dict(state)
        for buffer, value in zip(self.model.buffers(), state["buffers"], strict=True):
            buffer.copy_(value)
        self._epoch.load_state_dict(state)

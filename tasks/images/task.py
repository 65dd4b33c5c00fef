"""Image classification: networks of `models.py` on the sets of `lrpilot.tasks.data.images`."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from lrpilot.arguments import require_count
from lrpilot.tasks.data.images import ImageData, load_image_data
from lrpilot.tasks.images.augmentation import PADDING_MODES, crop_and_flip, draw_crops
from lrpilot.tasks.images.models import small_cnn
from lrpilot.tasks.networks.randomness import seeded
from lrpilot.tasks.networks.supervised import BatchedSupervisedRuns, SupervisedRun, SupervisedTask


@lru_cache(maxsize=4)
def _load(name: str, data_dir: str | None, num_train: int | None, device: str) -> ImageData:
    return load_image_data(name, data_dir=data_dir, num_train=num_train).to(device)


@dataclass(frozen=True, kw_only=True)
class ImageTask(SupervisedTask):
    """Classify images; the loss is the mean cross-entropy, in nats.

    Args:
        data: "digits", "fashion_mnist" or "cifar10".
        model: called as `model(channels, num_classes)`, with `image_size=` (pixels per side) if
            it has an argument of that name; returns a module that maps images (batch, channels,
            height, width) to logits (batch, classes). On a GPU it is laid out channels last.
        augment: train on random crops of the padded images, half of them mirrored, drawn from the
            run's generator; what is measured is never augmented.
        crop_padding: pixels that are added on each side before an image is cropped.
        padding_mode: "reflect" or "zeros"; see `lrpilot.tasks.images.augmentation.crop_and_flip`.
        num_train: use the first so many training images; None uses all.
        data_dir: folder of the data files (default: environment variable `LRPILOT_DATA`).
    """

    data: str
    model: Callable[..., nn.Module] = small_cnn
    augment: bool = False
    crop_padding: int = 4
    padding_mode: str = "reflect"
    num_train: int | None = None
    data_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("crop_padding", self.crop_padding, least=0)
        is_met = self.padding_mode in PADDING_MODES
        self._require("padding_mode", is_met, f"be one of {PADDING_MODES}")

    def load(self) -> ImageData:
        """The images on the device; one copy per process."""
        data = _load(self.data, self.data_dir, self.num_train, self.device)
        self._check_sizes(data)
        size = data.train_x.shape[-1]
        is_met = not self.augment or self.crop_padding < size
        self._require("crop_padding", is_met, f"be below the images' {size} pixels")
        return data

    def make_model(self, seed: int) -> nn.Module:
        """The network of this seed, on the device; no global generator is touched."""
        data = self.load()
        has_size = "image_size" in inspect.signature(self.model).parameters
        size = {"image_size": data.train_x.shape[-1]} if has_size else {}
        with seeded(seed):
            model = self.model(data.train_x.shape[1], data.num_classes, **size)
        model = model.to(self.device)
        # on a CPU it pays in bfloat16; float32 results stay as they were measured without it
        if torch.device(self.device).type == "cuda" or self.precision == "bfloat16":
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def augmented(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A training batch for each of these generators, cropped and mirrored if `augment`.

        Args:
            images: (generators, batch, channels, height, width).
            generators: of the runs.
        """
        if not self.augment:
            return images
        padding = self.crop_padding
        crops = [draw_crops(images.shape[1], padding=padding, generator=rng) for rng in generators]
        return crop_and_flip(
            images.flatten(0, 1),
            torch.cat(crops, dim=1).to(self.device, non_blocking=True),
            padding=padding,
            padding_mode=self.padding_mode,
        ).view(images.shape)

    def start(self, seed: int) -> "ImageRun":
        """A new network on freshly shuffled images."""
        return ImageRun(self, seed)

    def start_batch(self, num_runs: int) -> "BatchedImageRuns":
        """B runs as one computation; see `BatchedSupervisedRuns`."""
        return BatchedImageRuns(self, num_runs)


class ImageRun(SupervisedRun):
    """One image classifier in training."""

    data: ImageData
    _task: ImageTask

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        images, labels = super()._next_batch()
        return self._task.augmented(images.unsqueeze(0), [self.generator]).squeeze(0), labels


class BatchedImageRuns(BatchedSupervisedRuns):
    """B image classifiers in training as one computation."""

    _task: ImageTask

    def __init__(self, task: ImageTask, num_runs: int) -> None:
        super().__init__(task, num_runs)
        is_on_gpu = torch.device(task.device).type == "cuda"
        self._lies_channels_last = is_on_gpu and can_lie_channels_last(self._model)

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = super()._next_batches(rows)
        images = self._task.augmented(images, [self.generators[row] for row in rows.tolist()])
        return runs_and_channels_last(images) if self._lies_channels_last else images, labels


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

"""Image classification by small convolutional networks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.data import ImageData, load_image_data
from tasks.runs import Run, Task, backpropagate

EVALUATION_BATCH = 1000


def small_cnn(channels: int, num_classes: int) -> nn.Module:
    """Three 3x3 convolutions, the mean over the image, and a linear layer; any image size.

    16, 32 and 32 channels with strides 2, 2 and 1: 14,666 parameters for CIFAR-10.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def lenet(channels: int, num_classes: int) -> nn.Module:
    """LeNet-5 with ReLU and max-pooling for 32 x 32 images: 62,006 parameters for CIFAR-10.

    References:
        LeCun, Bottou, Bengio, Haffner. Gradient-based learning applied to document
        recognition. 1998.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


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
        model: called as `model(channels, num_classes)`; returns a module that maps images
            (batch, channels, height, width) to logits (batch, classes).
        batch_size: images per step; epochs are shuffled, an incomplete batch is dropped.
        num_train: use the first so many training images; None uses all.
        num_privileged: held-out images in the privileged loss.
        data_dir: folder of the data files (default: environment variable `LRPILOT_DATA`).
        device: where model and data live.

    Raises:
        ValueError: if a size is below 1 or above what the data has.
        tasks.data.DataError: by `start`, if the data is missing or unreadable.
    """

    data: str
    model: Callable[[int, int], nn.Module] = small_cnn
    batch_size: int = 64
    num_train: int | None = None
    num_privileged: int = 256
    data_dir: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "num_privileged"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")

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
        return data

    def start(self, seed: int) -> "ImageRun":
        """A new network on freshly shuffled data."""
        return ImageRun(self, seed)


class ImageRun(Run):
    """One network in training."""

    def __init__(self, task: ImageTask, seed: int) -> None:
        self.data = task.load()
        with torch.random.fork_rng(devices=[]):
            # unlike torch.manual_seed, this leaves the generators of GPUs alone
            torch.default_generator.manual_seed(seed)
            model = task.model(self.data.train_x.shape[1], self.data.num_classes)
        self.model = model.to(task.device)
        super().__init__(
            self.model.parameters(),
            optimizer=task.optimizer,
            lr=task.base_lr,
            generator=torch.Generator().manual_seed(seed),
        )
        # a line search replaces it, since it tries steps on the closure's minibatch
        self.backward: Callable[[Callable[[], Tensor]], Tensor] = backpropagate
        self._task = task
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        size = self._task.batch_size
        if self._position + size > len(self._order):
            self._order = torch.randperm(len(self.data.train_x), generator=self.generator)
            self._position = 0
        index = self._order[self._position : self._position + size].to(self._task.device)
        self._position += size
        return self.data.train_x.index_select(0, index), self.data.train_y.index_select(0, index)

    def _backward(self) -> Tensor:
        images, labels = self._next_batch()
        self.optimizer.zero_grad()
        return self.backward(lambda: functional.cross_entropy(self.model(images), labels))

    @torch.no_grad()
    def privileged_loss(self) -> float:
        """Cross-entropy on the first `num_privileged` held-out images."""
        size = self._task.num_privileged
        logits = self.model(self.data.held_out_x[:size])
        return float(functional.cross_entropy(logits, self.data.held_out_y[:size]))

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the whole held-out and test splits."""
        metrics = {}
        for split in ("held_out", "test"):
            loss, accuracy = self._loss_and_accuracy(
                getattr(self.data, f"{split}_x"), getattr(self.data, f"{split}_y")
            )
            metrics[f"{split}_loss"] = loss
            metrics[f"{split}_accuracy"] = accuracy
        return metrics

    @torch.no_grad()
    def _loss_and_accuracy(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        loss = correct = 0.0
        batches = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
        for x, y in batches:
            logits = self.model(x)
            loss += float(functional.cross_entropy(logits, y, reduction="sum"))
            correct += float((logits.argmax(1) == y).sum())
        return loss / len(labels), correct / len(labels)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the order of the current epoch."""
        state = super().state_dict()
        return {**state, "order": self._order.clone(), "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task."""
        super().load_state_dict(state)
        self._order = state["order"].clone()
        self._position = state["position"]

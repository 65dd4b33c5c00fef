"""A two-layer network on noisy labels, narrower or wider than it takes to fit them."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot.state import state_fields
from lrpilot.tasks.data.images import ImageData, load_image_data
from lrpilot.tasks.data.splits import SPLITS
from lrpilot.tasks.devices import DeviceTask
from lrpilot.tasks.networks.batch import BatchedNetworkRuns
from lrpilot.tasks.networks.minibatches import BatchedMinibatchSampler, MinibatchSampler
from lrpilot.tasks.networks.stacked_optimizer import UpdateSettings
from lrpilot.tasks.runs import Closure, ClosureRun

# of all pixels' standard deviation; pixels that hardly vary would become mere noise
SMALLEST_STD = 0.3


@lru_cache(maxsize=2)
def load_pixels(name: str, data_dir: str | None, device: str = "cpu") -> ImageData:
    """An image set as rows of pixels (examples, d), standardized by the training images.

    They are scaled so that ||x||^2 is about 1.
    """
    data = load_image_data(name, data_dir=data_dir)
    pixels = data.train_x.flatten(1)
    mean = pixels.mean(0)
    scale = pixels.std(0).clamp(min=SMALLEST_STD) * math.sqrt(pixels.shape[1])
    inputs = {f"{part}_x": getattr(data, f"{part}_x").flatten(1) for part in SPLITS}
    scaled = {key: (value - mean) / scale for key, value in inputs.items()}
    return replace(data, **scaled).to(device)


class TwoLayerNetwork(nn.Module):
    """f(x) = V tanh(W x + b) / sqrt(h) + c; W is drawn from N(0, 1), V, b and c are 0.

    Args:
        num_inputs: d.
        width: h, hidden units.
        num_outputs: k.
        generator: of W.
    """

    def __init__(
        self, num_inputs: int, width: int, num_outputs: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.inner_weight = nn.Parameter(torch.randn(width, num_inputs, generator=generator))
        self.inner_bias = nn.Parameter(torch.zeros(width))
        self.outer_weight = nn.Parameter(torch.zeros(num_outputs, width))
        self.outer_bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (..., k) of inputs (..., d)."""
        hidden = torch.tanh(functional.linear(inputs, self.inner_weight, self.inner_bias))
        scaled = self.outer_weight / math.sqrt(len(self.inner_bias))
        return functional.linear(hidden, scaled, self.outer_bias)


@dataclass(frozen=True, kw_only=True)
class WidthTask(DeviceTask):
    """Least squares on n images, some with wrong labels, by a two-layer network of width h.

    With d pixels, k classes, and e_y the unit vector of a label, W, b, V and c are trained on::

        f(x) = V tanh(W x + b) / sqrt(h) + c,   L = 1/(2n) sum_i ||f(x_i) - e_{y_i}||^2

    from entries of W that are drawn from N(0, 1), and zeros else. Scaled so, the useful learning
    rates hardly depend on the width. The seed draws the n images, which of their labels
    are wrong, W, and the minibatches; the data of a seed is the same at every width. Held-out and
    test labels are right.

    Trained until it fits, its squared error on unseen images peaks around the width at which its
    h (d + 1 + k) + k parameters are as many as the n k numbers that it is to fit, and falls again
    beyond it (double descent); see `interpolation_width`.

    Args:
        width: h, hidden units.
        data: an image set of `lrpilot.tasks.data.images`.
        num_train: n.
        label_noise: share of the n labels that are replaced by another class, drawn uniformly.
        batch_size: images per step; epochs are shuffled, an incomplete batch is dropped.
        data_dir: folder of the data files (default: environment variable `LRPILOT_DATA`).

    References:
        Belkin, Hsu, Ma, Mandal. Reconciling modern machine-learning practice and the classical
        bias-variance trade-off. 2019.
        Nakkiran, Kaplun, Bansal, Yang, Barak, Sutskever. Deep double descent: where bigger models
        and more data hurt. 2020.
    """

    width: int
    data: str = "digits"
    num_train: int = 300
    label_noise: float = 0.2
    batch_size: int = 50
    data_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("width", "num_train", "batch_size")
        is_met = self.batch_size <= self.num_train
        self._require("batch_size", is_met, f"be at most `num_train` = {self.num_train}")
        self._require("label_noise", 0.0 <= self.label_noise <= 1.0, "be in [0, 1]")

    @property
    def interpolation_width(self) -> float:
        """The width at which the parameters are as many as the numbers to fit, n k."""
        data = load_pixels(self.data, self.data_dir)
        num_parameters_per_unit = data.train_x.shape[1] + 1 + data.num_classes
        return (self.num_train - 1) * data.num_classes / num_parameters_per_unit

    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.num_train // self.batch_size

    def load(self) -> ImageData:
        """The data on the device; one copy per process."""
        data = load_pixels(self.data, self.data_dir, self.device)
        available = len(data.train_y)
        self._require("num_train", self.num_train <= available, f"be at most {available}")
        return data

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean over examples of ||f(x) - e_y||^2 / 2, of shape ()."""
        targets = functional.one_hot(labels, outputs.shape[-1])
        return (outputs - targets).square().sum(-1).mean() / 2

    def draw_examples(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions in the training split, and labels (some wrong), (n,) each, on the device."""
        data = self.load()
        chosen = torch.randperm(len(data.train_y), generator=generator)[: self.num_train]
        labels = load_pixels(self.data, self.data_dir).train_y[chosen]
        num_wrong = round(self.label_noise * self.num_train)
        wrong = torch.randperm(self.num_train, generator=generator)[:num_wrong]
        shifts = torch.randint(1, data.num_classes, (num_wrong,), generator=generator)
        labels[wrong] = (labels[wrong] + shifts) % data.num_classes
        return chosen.to(self.device), labels.to(self.device)

    def make_model(self, generator: torch.Generator) -> TwoLayerNetwork:
        """A new network, on the device."""
        data = self.load()
        sizes = data.train_x.shape[1], self.width, data.num_classes
        return TwoLayerNetwork(*sizes, generator).to(self.device)

    def start(self, seed: int) -> "WidthRun":
        """A new network on newly drawn examples."""
        return WidthRun(self, seed)

    def start_batch(self, num_runs: int) -> "BatchedWidthRuns":
        """B runs as one computation; see `BatchedNetworkRuns`."""
        return BatchedWidthRuns(self, num_runs)


class WidthRun(ClosureRun):
    """One two-layer network in training."""

    _state_fields = state_fields("chosen", "labels", **ClosureRun._state_fields)

    def __init__(self, task: WidthTask, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._task, self.data = task, task.load()
        self.chosen, self.labels = task.draw_examples(generator)
        self.model = task.make_model(generator)
        parameters = self.model.parameters()
        super().__init__(parameters, optimizer=task.optimizer, lr=task.base_lr, generator=generator)
        self._epoch = MinibatchSampler(task.num_train, task.batch_size, generator)

    def _draw_loss(self) -> Closure:
        picked = self._epoch.next().to(self._task.device, non_blocking=True)
        chosen = self.chosen.index_select(0, picked)
        inputs = self.data.train_x.index_select(0, chosen)
        labels = self.labels.index_select(0, picked)
        return lambda: self._task.loss(self.model(inputs), labels)

    @torch.no_grad()
    def privileged_loss(self) -> float:
        """The loss on all held-out images, whose labels are right."""
        outputs = self.model(self.data.held_out_x)
        return float(self._task.loss(outputs, self.data.held_out_y))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the held-out and test splits, accuracy on the n given labels."""
        given = self.model(self.data.train_x[self.chosen]).argmax(1)
        metrics = {"train_accuracy": float((given == self.labels).double().mean())}
        for name in ("held_out", "test"):
            labels = getattr(self.data, f"{name}_y")
            outputs = self.model(getattr(self.data, f"{name}_x"))
            metrics[f"{name}_loss"] = float(self._task.loss(outputs, labels))
            metrics[f"{name}_accuracy"] = float((outputs.argmax(1) == labels).double().mean())
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The state, with the examples and the order of the current epoch."""
        return {**super().state_dict(), **self._epoch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task."""
        super().load_state_dict(state)
        self._epoch.load_state_dict(state)


class BatchedWidthRuns(BatchedNetworkRuns):
    """B two-layer networks of one width, each on examples of its own."""

    _state_fields = state_fields(
        "chosen", "labels", minibatches="_minibatches", **BatchedNetworkRuns._state_fields
    )

    def __init__(self, task: WidthTask, num_runs: int) -> None:
        model = task.make_model(torch.Generator())
        super().__init__(model, optimizer=task.optimizer, num_runs=num_runs, device=task.device)
        self._task, self.data = task, task.load()
        shape = num_runs, task.num_train
        self.chosen = torch.zeros(shape, dtype=torch.int64, device=task.device)
        self.labels = torch.zeros_like(self.chosen)
        self._minibatches = BatchedMinibatchSampler(
            self.generators, num_examples=task.num_train, batch_size=task.batch_size
        )

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        super().reset(rows, seeds)
        self._minibatches.start(rows)

    def _start(self, row: int, seed: int) -> UpdateSettings:
        generator = self.generators[row]
        self.chosen[row], self.labels[row] = self._task.draw_examples(generator)
        self._take(row, self._task.make_model(generator))
        return self._settings

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        picked = self._minibatches.next(rows.cpu()).to(self.device, non_blocking=True)
        chosen = self.chosen[rows].gather(1, picked)
        return self.data.train_x[chosen], self.labels[rows].gather(1, picked)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._task.loss(outputs, targets)

    @torch.no_grad()
    def privileged_losses(self) -> Tensor:
        """The losses on all held-out images."""
        return self._measured(self.data.held_out_x, self.data.held_out_y)

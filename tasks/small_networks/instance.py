"""What one seed draws: a small network and the data that it is trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrpilot.tasks.data.images import load_image_data

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
NORMALIZATIONS = ("none", "layer")
NUM_TEST = 256
_TEACHER_WIDTH = 16
_CLUSTERS_PER_CLASS = 2


@dataclass(frozen=True)
class Split:
    """Inputs (examples, dimension) and labels (examples,)."""

    x: Tensor
    y: Tensor

    def select(self, index: Tensor) -> "Split":
        """The examples of these indices, which are on the CPU."""
        index = index.to(self.x.device, non_blocking=True)
        return Split(self.x.index_select(0, index), self.y.index_select(0, index))


@dataclass(frozen=True)
class Setup:
    """What runs that are computed together have in common."""

    depth: int
    """Hidden layers."""
    width: int
    activation: str
    normalization: str
    dimension: int
    num_classes: int
    batch_size: int
    num_train: int


@dataclass(frozen=True)
class Instance:
    """What one run trains, and its network before the first step."""

    setup: Setup
    train: Split
    held_out: Split
    test: Split
    model: nn.Sequential


class Dice:
    """Draws from ranges, each from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform(self, bounds: Sequence[float]) -> float:
        """Uniform between the bounds."""
        share = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        return bounds[0] + share * (bounds[1] - bounds[0])

    def integer(self, bounds: Sequence[int]) -> int:
        """An integer from the bounds' range, both included."""
        return int(self.uniform((bounds[0], bounds[1] + 1)))

    def log_uniform(self, bounds: Sequence[float]) -> float:
        """Between the bounds, the logarithm uniform."""
        return math.exp(self.uniform((math.log(bounds[0]), math.log(bounds[1]))))

    def log_uniform_integer(self, bounds: Sequence[int]) -> int:
        """An integer from the bounds' range, both included, log-uniform."""
        low, high = bounds
        return min(high, int(math.exp(self.uniform((math.log(low), math.log(high + 1))))))

    def choice(self, names: Sequence[str]) -> str:
        """One of the names."""
        return names[int(self.uniform((0, len(names))))]


Sizes = tuple[int, int, int]


def draw_teacher(
    sizes: Sizes, dimension: int, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gaussian inputs, labelled by a random network with one hidden layer."""
    x = torch.randn(sum(sizes), dimension, generator=generator)
    first = torch.randn(dimension, _TEACHER_WIDTH, generator=generator) * 2 / math.sqrt(dimension)
    logits = (x @ first).tanh() @ torch.randn(_TEACHER_WIDTH, num_classes, generator=generator)
    return x, (logits - logits.mean(0)).argmax(1)


def draw_clusters(
    sizes: Sizes, dimension: int, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gaussian clusters of variance 1, whose centers lie on a sphere of random radius."""
    radius = Dice(generator).uniform((1.0, 4.0))
    num_clusters = _CLUSTERS_PER_CLASS * num_classes
    centers = torch.randn(num_clusters, dimension, generator=generator)
    centers *= radius / centers.norm(dim=1, keepdim=True)
    cluster = torch.randint(num_clusters, (sum(sizes),), generator=generator)
    noise = torch.randn(len(cluster), dimension, generator=generator)
    return centers[cluster] + noise, cluster % num_classes


def draw_digits(
    sizes: Sizes, dimension: int, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Some of the ten digits, projected at random; each split draws from its own images."""
    data = load_image_data("digits")
    digits = torch.randperm(10, generator=generator)[:num_classes]
    images, labels = [], []
    for size, name in zip(sizes, ("train", "held_out", "test"), strict=True):
        label = torch.randint(num_classes, (size,), generator=generator)
        images_of, labels_of = getattr(data, f"{name}_x"), getattr(data, f"{name}_y")
        # positions of each digit, padded, so that one draw serves all of them
        is_digit = labels_of == digits[:, None]
        counts = is_digit.sum(1)
        positions = is_digit.long().argsort(dim=1, descending=True, stable=True)
        share = torch.rand(size, generator=generator)
        index = positions[label, (share * counts[label]).long()]
        images.append(images_of[index].flatten(1))
        labels.append(label)
    x = torch.cat(images)
    if dimension != x.shape[1]:
        x = x @ torch.randn(x.shape[1], dimension, generator=generator)
    return x, torch.cat(labels)


DATA = {"teacher": draw_teacher, "mixture": draw_clusters, "digits": draw_digits}


def make_network(setup: Setup, generator: torch.Generator, dtype: torch.dtype) -> nn.Sequential:
    """The network, its weights drawn from the generator as torch's own layers draw theirs."""

    def linear(num_inputs: int, num_outputs: int) -> nn.Linear:
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, num_inputs, num_outputs, dtype=dtype)
        bound = 1.0 / math.sqrt(num_inputs)
        for parameter in layer.parameters():
            # drawn in float32, so that a network in float64 begins where its twin does
            drawn = torch.rand(parameter.shape, generator=generator)
            parameter.detach().copy_((2 * drawn - 1) * bound)
        return layer

    layers: list[nn.Module] = []
    num_inputs = setup.dimension
    for _ in range(setup.depth):
        layers.append(linear(num_inputs, setup.width))
        if setup.normalization == "layer":
            layers.append(nn.LayerNorm(setup.width, dtype=dtype))
        layers.append(ACTIVATIONS[setup.activation]())
        num_inputs = setup.width
    return nn.Sequential(*layers, linear(num_inputs, setup.num_classes))

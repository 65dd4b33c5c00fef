"""Random small networks and data: what one seed of `SmallNetworkTask` draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lrpilot.tasks.data.images import load_image_data

if TYPE_CHECKING:
    from lrpilot.tasks.small_networks.task import SmallNetworkTask

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
NORMALIZATIONS = ("none", "layer")
DATA = ("teacher", "mixture", "digits")
NUM_TEST = 256
_TEACHER_WIDTH = 16
_CLUSTERS_PER_CLASS = 2


@dataclass(frozen=True)
class Split:
    """Inputs (examples, dimension) and labels (examples,)."""

    x: Tensor
    y: Tensor


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
class SmallProblem:
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

    def log_uniform_integer(self, bounds: Sequence[int]) -> int:
        """An integer from the bounds' range, both included, log-uniform."""
        low, high = bounds
        return min(high, int(math.exp(self.uniform((math.log(low), math.log(high + 1))))))

    def choice(self, names: Sequence[str]) -> str:
        """One of the names."""
        return names[int(self.uniform((0, len(names))))]


def draw_setup(task: "SmallNetworkTask", generator: torch.Generator) -> Setup:
    """Sizes and functions from the ranges of the task."""
    dice = Dice(generator)
    return Setup(
        depth=dice.integer(task.depth_range),
        width=dice.log_uniform_integer(task.width_range),
        activation=dice.choice(task.activations),
        normalization=dice.choice(task.normalizations),
        dimension=dice.log_uniform_integer(task.dimension_range),
        num_classes=dice.integer(task.classes_range),
        batch_size=dice.log_uniform_integer(task.batch_size_range),
        num_train=dice.log_uniform_integer(task.num_train_range),
    )


def draw_problem(task: "SmallNetworkTask", generator: torch.Generator) -> SmallProblem:
    """One of the task's setups, data, and a network."""
    dice = Dice(generator)
    setup = task.draw_setup(generator)
    dimension, num_classes = setup.dimension, setup.num_classes
    sizes = setup.num_train, task.num_privileged, NUM_TEST
    draw = {"teacher": _draw_teacher, "mixture": _draw_mixture, "digits": _draw_digits}
    x, y = draw[dice.choice(task.data)](sizes, dimension, num_classes, generator)
    label_noise = dice.uniform(task.label_noise_range)
    is_noisy = torch.rand(len(y), generator=generator) < label_noise
    y = torch.where(is_noisy, torch.randint(num_classes, (len(y),), generator=generator), y)
    x = x * torch.arange(1, dimension + 1).pow(-dice.uniform(task.spectrum_decay_range))
    dtype = getattr(torch, task.dtype)
    x = (x / x[: setup.num_train].square().mean().sqrt()).to(dtype)
    train, held_out, test = map(Split, x.split(sizes), y.split(sizes))
    return SmallProblem(setup, train, held_out, test, make_network(setup, generator, dtype))


_Sizes = tuple[int, int, int]


def _draw_teacher(
    sizes: _Sizes, dimension: int, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gaussian inputs, labelled by a random network with one hidden layer."""
    x = torch.randn(sum(sizes), dimension, generator=generator)
    first = torch.randn(dimension, _TEACHER_WIDTH, generator=generator) * 2 / math.sqrt(dimension)
    logits = (x @ first).tanh() @ torch.randn(_TEACHER_WIDTH, num_classes, generator=generator)
    return x, (logits - logits.mean(0)).argmax(1)


def _draw_mixture(
    sizes: _Sizes, dimension: int, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gaussian clusters of variance 1, whose centers lie on a sphere of random radius."""
    radius = Dice(generator).uniform((1.0, 4.0))
    num_clusters = _CLUSTERS_PER_CLASS * num_classes
    centers = torch.randn(num_clusters, dimension, generator=generator)
    centers *= radius / centers.norm(dim=1, keepdim=True)
    cluster = torch.randint(num_clusters, (sum(sizes),), generator=generator)
    noise = torch.randn(len(cluster), dimension, generator=generator)
    return centers[cluster] + noise, cluster % num_classes


def _draw_digits(
    sizes: _Sizes, dimension: int, num_classes: int, generator: torch.Generator
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

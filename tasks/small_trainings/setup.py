"""What runs that are computed together have in common, and the networks of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor, nn

from lrpilot.tasks.networks.batch import cross_entropies
from lrpilot.tasks.small_networks.instance import Dice
from lrpilot.tasks.small_trainings.families import FAMILIES, SIZES, Ends, Family
from lrpilot.tasks.small_trainings.layers import Blueprint, Layers

BATCH_SIZES = (8, 256)
_DROPOUT_SHARE = 0.3
NUM_MASKS = 2**20
# odd, so that the windows of the steps do not come back before all of the table was used
_STRIDE = 648_055


@dataclass(frozen=True)
class Setup:
    """Everything that fixes the shapes of a run's tensors, and what is computed of them."""

    family: Family
    ends: Ends
    batch_size: int
    num_train: int
    has_dropout: bool

    @cached_property
    def blueprint(self) -> Blueprint:
        """Parameters and size of the network."""
        layers = Blueprint(self.family.initial_std)
        self.family.outputs(layers, torch.zeros(1, 1, *self.ends.shape), self.ends)
        return layers

    def losses(
        self,
        layers: Layers,
        inputs: Tensor,
        targets: Tensor,
        smoothing: Tensor | None = None,
    ) -> Tensor:
        """Losses (R,) of R networks: squared errors, or cross-entropies in nats.

        Args:
            layers: what the networks are made of.
            inputs: (R, examples, ...).
            targets: (R, examples, ...).
            smoothing: share of each target that is spread over all classes, (R,); None is 0.
        """
        outputs = self.family.outputs(layers, inputs, self.ends)
        return self.losses_of(outputs, targets, smoothing)

    def losses_of(
        self, outputs: Tensor, targets: Tensor, smoothing: Tensor | None = None
    ) -> Tensor:
        """Losses (R,) of outputs (R, examples, ...)."""
        if self.ends.loss == "values":
            return (outputs - targets).square().flatten(1).mean(1)
        losses = cross_entropies(outputs, targets.long()).flatten(1).mean(1)
        if smoothing is None:
            return losses
        even = (outputs.logsumexp(-1) - outputs.mean(-1)).flatten(1).mean(1)
        return losses.lerp(even, smoothing)

    def masks(self, first: Tensor, num_steps: Tensor, rates: Tensor) -> Tensor:
        """Factors of dropout, (R, entries): 0 with the probability `rates`, else 1 / (1 - rates).

        They are made from a window of a table of random numbers, another one in each step; one
        generator for each of many small networks would take longer than the networks.

        Args:
            first: where the window of a run's first step begins, (R, 1).
            num_steps: steps that are done, (R, 1).
            rates: of the runs, (R, 1).
        """
        size = self.batch_size * self.blueprint.num_dropped
        place = (first + num_steps * _STRIDE).long().squeeze(1) % NUM_MASKS
        uniform = _uniform(first.device).as_strided((NUM_MASKS, size), (1, 1))[place]
        return (uniform >= rates).to(rates.dtype).div_(1.0 - rates)


@cache
def _uniform(device: torch.device) -> Tensor:
    """A table of uniform random numbers, the same in all processes and on all devices."""
    return torch.rand(2 * NUM_MASKS, generator=torch.Generator().manual_seed(0)).to(device)


class Network(nn.Module):
    """One network of a setup; of `Layers`, it keeps the parameters and the running statistics.

    Args:
        setup: its shape.
        generator: what its parameters are drawn from, in float32, as torch's own layers draw
            theirs; norms begin at 1, embeddings uniform in [-1, 1].
        init_scale: multiplies all other parameters.
        dtype: of the parameters.
    """

    def __init__(
        self, setup: Setup, generator: torch.Generator, *, init_scale: float, dtype: torch.dtype
    ) -> None:
        super().__init__()
        specs = setup.blueprint.parameters
        drawn = torch.rand(setup.blueprint.num_parameters, generator=generator)
        parts = drawn.split([math.prod(spec.shape) for spec in specs])
        for k, (spec, part) in enumerate(zip(specs, parts, strict=True)):
            bound = spec.bound * init_scale
            value = (2 * part - 1).mul_(bound).add_(spec.center).view(spec.shape)
            self.register_parameter(f"parameter_{k}", nn.Parameter(value.to(dtype)))
        for k, size in enumerate(setup.blueprint.statistics):
            self.register_buffer(f"mean_{k}", torch.zeros(size, dtype=dtype))
            self.register_buffer(f"variance_{k}", torch.ones(size, dtype=dtype))


def draw_setup(dice: Dice, family: str, size: str, num_train_range: Sequence[int]) -> Setup:
    """A random setup of this family and size."""
    kind, limits = FAMILIES[family], SIZES[size]
    fewest, most = limits.num_parameters
    most, costliest = kind.size_factor * most, kind.size_factor * limits.max_multiplications
    while True:
        network = kind.draw(dice, limits)
        batch_size = dice.log_uniform_integer(BATCH_SIZES)
        setup = Setup(
            family=network,
            ends=_draw_ends(dice, *kind.kinds[dice.integer((0, len(kind.kinds) - 1))]),
            batch_size=batch_size,
            num_train=dice.log_uniform_integer(num_train_range),
            has_dropout=dice.uniform((0, 1)) < _DROPOUT_SHARE,
        )
        cost = batch_size * setup.blueprint.num_multiplications
        is_within = fewest <= setup.blueprint.num_parameters <= most
        if is_within and cost <= costliest:
            return setup


def _draw_ends(dice: Dice, kind: str, loss: str) -> Ends:
    num_symbols = 0
    if kind == "vectors":
        shape: tuple[int, ...] = (dice.log_uniform_integer((8, 64)),)
    elif kind == "images":
        shape = (8, 8, 1)
    elif kind == "patches":
        shape = ((8, 8), (16, 4))[dice.integer((0, 1))]
    elif kind == "text":
        shape, num_symbols = (dice.log_uniform_integer((8, 32)),), dice.integer((32, 96))
    else:
        shape, num_symbols = (dice.log_uniform_integer((6, 16)),), dice.integer((6, 24))
    num_outputs = dice.integer((2, 10) if loss == "classes" else (1, 4))
    return Ends(kind, shape, num_symbols, loss, num_symbols if loss == "next" else num_outputs)

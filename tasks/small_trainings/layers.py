"""The layers of many networks of one shape, each network with parameters of its own."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "gelu": functional.gelu}
_EPSILON = 1e-5
_MOMENTUM = 0.1
_REACH = 3


class Layers:
    """One forward pass of R networks, whose layers are called in the order of their parameters.

    Inputs and outputs are (R, examples, ...), the last dimension the features.

    Args:
        parameters: of the networks, (R, ...) each, in the order in which the layers ask for them.
        statistics: the running means and variances of batch normalization, (R, features) each.
        masks: factors of dropout, (R, entries); None drops nothing.
        is_training: whether batch normalization takes the statistics of the batch.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        statistics: Iterable[Tensor] = (),
        *,
        masks: Tensor | None = None,
        is_training: bool = True,
    ) -> None:
        self._parameters = iter(parameters)
        self._statistics = iter(statistics)
        self._masks = masks
        self._num_dropped = 0
        self._is_training = is_training
        self.new_statistics: list[Tensor] = []
        """What the running statistics are after this pass."""

    def parameter(self, *shape: int, bound: float, center: float = 0.0) -> Tensor:
        """The next parameter, (R, *shape); it begins uniform within `center` +- `bound`."""
        return next(self._parameters)

    def _running(self, size: int) -> tuple[Tensor, Tensor]:
        """Running mean and variance, (R, size, 1) each."""
        return next(self._statistics).unsqueeze(2), next(self._statistics).unsqueeze(2)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The affine map x W + b of x (R, rows, inputs)."""
        return torch.baddbmm(bias.unsqueeze(1), x, weight)

    def linear(self, x: Tensor, num_outputs: int) -> Tensor:
        """A linear layer of the features."""
        num_inputs = x.shape[-1]
        bound = 1.0 / math.sqrt(num_inputs)
        weight = self.parameter(num_inputs, num_outputs, bound=bound)
        bias = self.parameter(num_outputs, bound=bound)
        return self.multiply(x.flatten(1, -2), weight, bias).view(*x.shape[:-1], num_outputs)

    def embed(self, symbols: Tensor, num_symbols: int, width: int) -> Tensor:
        """Vectors (R, ..., width) of symbols (R, ...)."""
        table = self.parameter(num_symbols, width, bound=1.0)
        networks = torch.arange(len(table), device=table.device)
        first = num_symbols * networks.view(-1, *[1] * (symbols.dim() - 1))
        vectors: Tensor = functional.embedding(symbols.long() + first, table.flatten(0, 1))
        return vectors

    def add_positions(self, x: Tensor) -> Tensor:
        """Learned vectors of the positions added to x (R, examples, length, width)."""
        return x + self.parameter(*x.shape[-2:], bound=1.0).unsqueeze(1)

    def convolve(self, x: Tensor, num_channels: int, *, stride: int = 1) -> Tensor:
        """A 3 x 3 convolution, padded, of images (R, examples, height, width, channels)."""
        patches: Tensor = _Patches.apply(x, stride)  # type: ignore[no-untyped-call]
        return self.linear(patches, num_channels)

    def max_pool(self, x: Tensor) -> Tensor:
        """The largest of each 2 x 2 pixels of images (R, examples, height, width, channels)."""
        height, width = x.shape[2:4]
        return x.view(*x.shape[:2], height // 2, 2, width // 2, 2, -1).amax((3, 5))

    def _scaled(self, x: Tensor) -> Tensor:
        """The trained scale and shift that follow a normalization."""
        size = x.shape[-1]
        weight, bias = self.parameter(size, bound=0.0, center=1.0), self.parameter(size, bound=0.0)
        shape = len(weight), *[1] * (x.dim() - 2), size
        return torch.addcmul(bias.view(shape), x, weight.view(shape))

    def layer_norm(self, x: Tensor) -> Tensor:
        """Layer normalization of the features."""
        return self._scaled(functional.layer_norm(x, x.shape[-1:], eps=_EPSILON))

    def group_norm(self, x: Tensor, num_groups: int) -> Tensor:
        """Group normalization of images (R, examples, height, width, channels)."""
        groups = x.unflatten(-1, (num_groups, -1)).movedim(-2, 2)
        normal = functional.layer_norm(groups, groups.shape[3:], eps=_EPSILON)
        return self._scaled(normal.movedim(2, -2).flatten(-2))

    def batch_norm(self, x: Tensor) -> Tensor:
        """Batch normalization of each feature over all that goes before it."""
        old_mean, old_variance = self._running(x.shape[-1])
        # features first, so that torch's fused layer normalization does it
        flat = x.flatten(1, -2).mT
        if self._is_training:
            count = flat.shape[2]
            normal, mean, inverse = torch.native_layer_norm(
                flat.contiguous(), (count,), None, None, _EPSILON
            )
            variance = inverse.detach().pow(-2) - _EPSILON
            unbiased = variance * (count / (count - 1))
            for old, new in ((old_mean, mean.detach()), (old_variance, unbiased)):
                self.new_statistics.append(old.lerp(new, _MOMENTUM).squeeze(2))
        else:
            normal = (flat - old_mean) * (old_variance + _EPSILON).rsqrt()
        return self._scaled(normal.mT.reshape(x.shape))

    def normalize(self, x: Tensor, normalization: str) -> Tensor:
        """The normalization of this name: "none", "layer", "batch" or "group"."""
        if normalization == "none":
            return x
        if normalization == "group":
            return self.group_norm(x, 2)
        return self.batch_norm(x) if normalization == "batch" else self.layer_norm(x)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout."""
        if self._masks is None:
            return x
        first, size = self._num_dropped, x[0].numel()
        self._num_dropped += size
        return x * self._masks[:, first : first + size].view(x.shape)

    def attend(self, x: Tensor, num_heads: int, *, is_causal: bool) -> Tensor:
        """Self-attention among the positions of x (R, examples, length, width)."""
        length, width = x.shape[-2:]
        parts = self.linear(x, 3 * width).view(-1, length, 3, num_heads, width // num_heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        return self.linear(mixed.transpose(1, 2).reshape(x.shape), width)

    def recur(self, x: Tensor, width: int, cell: str) -> Tensor:
        """The states (R, examples, length, width) of a recurrent cell: "tanh", "gru" or "lstm"."""
        num_gates = {"tanh": 1, "gru": 3, "lstm": 4}[cell]
        inputs = self.linear(x, num_gates * width).unbind(2)
        bound = 1.0 / math.sqrt(width)
        weight = self.parameter(width, num_gates * width, bound=bound)
        bias = self.parameter(num_gates * width, bound=bound)
        state = memory = x.new_zeros(*x.shape[:2], width)
        states = []
        for given in inputs:
            own = self.multiply(state, weight, bias)
            if cell == "tanh":
                state = (given + own).tanh()
            elif cell == "gru":
                opened = (given[..., : 2 * width] + own[..., : 2 * width]).sigmoid()
                reset, keep = opened.chunk(2, dim=-1)
                new = torch.addcmul(given[..., 2 * width :], reset, own[..., 2 * width :]).tanh()
                state = new.lerp(state, keep)
            else:
                gates = given + own
                into, out, forget = gates[..., : 3 * width].sigmoid().chunk(3, dim=-1)
                memory = forget * memory + into * gates[..., 3 * width :].tanh()
                state = out * memory.tanh()
            states.append(state)
        return torch.stack(states, dim=2)


class _Patches(torch.autograd.Function):
    """The 3 x 3 patch around each (or each other) pixel of x (..., height, width, channels)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        ctx.shape, ctx.stride = x.shape, stride
        padded = functional.pad(x, (0, 0, 1, 1, 1, 1))
        return torch.cat([padded[place] for place in _shifts(x.shape, stride)], dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        *examples, height, width, channels = ctx.shape
        padded = gradient.new_zeros(*examples, height + 2, width + 2, channels)
        parts = gradient.split(channels, dim=-1)
        for place, part in zip(_shifts(ctx.shape, ctx.stride), parts, strict=True):
            padded[place] += part
        return padded[..., 1:-1, 1:-1, :], None


def _shifts(shape: torch.Size, stride: int) -> list[tuple[Any, ...]]:
    """Where in the padded image the pixels lie that come first, second, ... in the patches."""
    height, width = shape[-3:-1]
    return [
        (..., slice(i, i + height, stride), slice(j, j + width, stride), slice(None))
        for i in range(_REACH)
        for j in range(_REACH)
    ]


class ParameterSpec(NamedTuple):
    """A parameter that begins uniform within `center` +- `bound`."""

    shape: tuple[int, ...]
    bound: float
    center: float


class Blueprint(Layers):
    """A forward pass of one example through a network of zeros, that finds what it consists of.

    Args:
        initial_std: of all weights, where biases begin at 0; None: as torch's own layers begin.

    Attributes:
        parameters: what the layers ask for.
        statistics: features of each batch normalization.
        num_dropped: entries that dropout sees.
        num_multiplications: of the linear layers.
    """

    def __init__(self, initial_std: float | None = None) -> None:
        super().__init__(())
        self._initial_std = initial_std
        self.parameters: list[ParameterSpec] = []
        self.statistics: list[int] = []
        self.num_dropped = 0
        self.num_multiplications = 0

    @property
    def num_parameters(self) -> int:
        """Entries of all parameters."""
        return sum(math.prod(spec.shape) for spec in self.parameters)

    def parameter(self, *shape: int, bound: float, center: float = 0.0) -> Tensor:
        """Note the parameter."""
        if self._initial_std is not None and bound > 0.0:
            # a uniform variable within +- b has the standard deviation b / sqrt(3)
            bound = self._initial_std * math.sqrt(3) if len(shape) > 1 else 0.0
        self.parameters.append(ParameterSpec(shape, bound, center))
        return torch.zeros(1, *shape)

    def _running(self, size: int) -> tuple[Tensor, Tensor]:
        self.statistics.append(size)
        return torch.zeros(1, size, 1), torch.zeros(1, size, 1)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Count the multiplications."""
        self.num_multiplications += x.shape[1] * weight.numel()
        return super().multiply(x, weight, bias)

    def batch_norm(self, x: Tensor) -> Tensor:
        """Of one vector there is no variance."""
        self._running(x.shape[-1])
        return self._scaled(x)

    def drop(self, x: Tensor) -> Tensor:
        """Count the entries."""
        self.num_dropped += x[0].numel()
        return x

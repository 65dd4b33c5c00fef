"""Families of small networks: what their shape is, and how they compute."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from lrpilot.tasks.small_networks.instance import Dice
from lrpilot.tasks.small_trainings.layers import ACTIVATIONS, Layers


@dataclass(frozen=True)
class Ends:
    """What goes into a network, and what comes out of it."""

    kind: str
    """Of the inputs: "vectors", "images", "patches" (sequences of vectors), "symbols" or "text"."""
    shape: tuple[int, ...]
    """Of one input: (features,), (height, width, 1), (length, features), or (length,)."""
    num_symbols: int
    """0 unless the inputs are symbols or text."""
    loss: str
    """"classes", "values" (squared errors) or "next" (the symbol after each position)."""
    num_outputs: int


@dataclass(frozen=True)
class Size:
    """How large the networks are: ranges, and the most that they may cost."""

    mlp_widths: tuple[int, int]
    half_channels: tuple[int, int]
    num_heads: tuple[int, int]
    half_head_widths: tuple[int, int]
    rnn_widths: tuple[int, int]
    num_parameters: tuple[int, int]
    max_multiplications: int
    """Of one minibatch's forward pass; it keeps a million steps affordable."""


SIZES = {
    "small": Size((8, 64), (2, 8), (1, 2), (3, 6), (8, 32), (500, 10_000), 250_000),
    "wide": Size((64, 256), (8, 24), (2, 4), (4, 16), (32, 96), (10_000, 100_000), 4_000_000),
}


class Family(ABC):
    """Networks of one kind."""

    kinds: ClassVar[tuple[tuple[str, str], ...]]
    """Kinds of inputs, and losses, that they are trained on."""
    initial_std: ClassVar[float | None] = None
    """Of all weights, where biases begin at 0; None: as torch's own layers begin."""
    size_factor: ClassVar[int] = 1
    """How much larger the networks may be than those of other families."""

    @classmethod
    @abstractmethod
    def draw(cls, dice: Dice, size: Size) -> Self:
        """A random network of this family and size."""

    @abstractmethod
    def outputs(self, layers: Layers, x: Tensor, ends: Ends) -> Tensor:
        """Outputs (R, examples, outputs), of "next" (R, examples, length, outputs)."""


@dataclass(frozen=True)
class MLP(Family):
    """Hidden layers: linear, normalization, activation, dropout; residual after the first."""

    kinds = (("vectors", "classes"), ("vectors", "values"))
    depth: int
    width: int
    activation: str
    normalization: str
    is_residual: bool

    @classmethod
    def draw(cls, dice: Dice, size: Size) -> Self:
        """1 to 5 hidden layers, small ones of 8 to 64 units."""
        return cls(
            depth=dice.integer((1, 5)),
            width=dice.log_uniform_integer(size.mlp_widths),
            activation=dice.choice(tuple(ACTIVATIONS)),
            normalization=dice.choice(("none", "layer", "batch")),
            is_residual=dice.uniform((0, 1)) < 0.3,
        )

    def outputs(self, layers: Layers, x: Tensor, ends: Ends) -> Tensor:
        """Outputs (R, examples, outputs)."""
        for depth in range(self.depth):
            hidden = layers.normalize(layers.linear(x, self.width), self.normalization)
            hidden = layers.drop(ACTIVATIONS[self.activation](hidden))
            x = x + hidden if self.is_residual and depth > 0 else hidden
        return layers.linear(x, ends.num_outputs)


@dataclass(frozen=True)
class CNN(Family):
    """3 x 3 convolutions, the second of them (or the only one) with a stride of 2.

    Each is followed by normalization and activation; the later ones may be residual. The head is
    linear, of the mean over the pixels or of all of them.
    """

    kinds = (("images", "classes"), ("images", "classes"), ("images", "values"))
    depth: int
    width: int
    activation: str
    normalization: str
    is_residual: bool
    has_mean: bool

    @classmethod
    def draw(cls, dice: Dice, size: Size) -> Self:
        """1 to 4 convolutions, small ones with 4 to 16 channels."""
        return cls(
            depth=dice.integer((1, 4)),
            width=2 * dice.log_uniform_integer(size.half_channels),
            activation=dice.choice(tuple(ACTIVATIONS)),
            normalization=dice.choice(("none", "batch", "group")),
            is_residual=dice.uniform((0, 1)) < 0.5,
            has_mean=dice.uniform((0, 1)) < 0.5,
        )

    def outputs(self, layers: Layers, x: Tensor, ends: Ends) -> Tensor:
        """Outputs (R, examples, outputs)."""
        strided = min(1, self.depth - 1)
        for depth in range(self.depth):
            hidden = layers.convolve(x, self.width, stride=2 if depth == strided else 1)
            hidden = ACTIVATIONS[self.activation](layers.normalize(hidden, self.normalization))
            x = x + hidden if self.is_residual and depth > strided else hidden
        features = x.mean((2, 3)) if self.has_mean else x.flatten(2)
        return layers.linear(layers.drop(features), ends.num_outputs)


@dataclass(frozen=True)
class LeNet(Family):
    """Stages of 3 x 3 convolutions that halve the image, then hidden layers; nothing is normalized.

    As in LeNet, a stage ends with max-pooling; or its last convolution has a stride of 2. Since
    torch's initial weights shrink what goes through each layer, training begins on a plateau: the
    outputs hardly depend on the inputs, until in few steps they do.
    """

    kinds = (("images", "classes"),)
    size_factor = 4
    num_stages: int
    depth: int
    width: int
    num_hidden: int
    activation: str
    has_pooling: bool

    @classmethod
    def draw(cls, dice: Dice, size: Size) -> Self:
        """1 to 3 stages of 1 or 2 convolutions, small ones with 4 to 16 channels."""
        return cls(
            num_stages=dice.integer((1, 3)),
            depth=dice.integer((1, 2)),
            width=2 * dice.log_uniform_integer(size.half_channels),
            num_hidden=dice.integer((0, 2)),
            activation=dice.choice(("relu", "relu", "gelu", "tanh")),
            has_pooling=dice.uniform((0, 1)) < 0.5,
        )

    def outputs(self, layers: Layers, x: Tensor, ends: Ends) -> Tensor:
        """Outputs (R, examples, outputs)."""
        activation = ACTIVATIONS[self.activation]
        for _ in range(self.num_stages):
            for depth in range(self.depth):
                is_strided = depth == self.depth - 1 and not self.has_pooling
                x = activation(layers.convolve(x, self.width, stride=2 if is_strided else 1))
            x = layers.max_pool(x) if self.has_pooling else x
        x = x.flatten(2)
        for _ in range(self.num_hidden):
            x = layers.drop(activation(layers.linear(x, 4 * self.width)))
        return layers.linear(layers.drop(x), ends.num_outputs)


@dataclass(frozen=True)
class Transformer(Family):
    """Blocks of self-attention and a hidden layer, each residual and normalized before or after.

    It is causal where each position is to predict the next symbol; elsewhere the head is of the
    mean over the positions.
    """

    kinds: ClassVar[tuple[tuple[str, str], ...]] = (
        ("patches", "classes"),
        ("patches", "values"),
        ("symbols", "classes"),
        ("symbols", "next"),
        ("symbols", "next"),
    )
    depth: int
    num_heads: int
    head_width: int
    activation: str
    is_pre_normalized: bool

    @classmethod
    def draw(cls, dice: Dice, size: Size) -> Self:
        """1 or 2 blocks; small ones of 1 or 2 heads of width 6 to 12."""
        return cls(
            depth=dice.integer((1, 2)),
            num_heads=dice.integer(size.num_heads),
            head_width=2 * dice.integer(size.half_head_widths),
            activation=dice.choice(tuple(ACTIVATIONS)),
            is_pre_normalized=dice.uniform((0, 1)) < 0.7,
        )

    def outputs(self, layers: Layers, x: Tensor, ends: Ends) -> Tensor:
        """Outputs (R, examples, outputs), or (R, examples, length, outputs)."""
        is_causal = ends.loss == "next"
        width = self.num_heads * self.head_width
        x = layers.drop(layers.add_positions(_embedded(layers, x, ends, width)))
        for _ in range(self.depth):
            for part in ("attention", "hidden"):
                inner = layers.layer_norm(x) if self.is_pre_normalized else x
                if part == "attention":
                    inner = layers.attend(inner, self.num_heads, is_causal=is_causal)
                else:
                    hidden = ACTIVATIONS[self.activation](layers.linear(inner, 2 * width))
                    inner = layers.linear(hidden, width)
                x = x + layers.drop(inner)
                x = x if self.is_pre_normalized else layers.layer_norm(x)
        x = layers.layer_norm(x) if self.is_pre_normalized else x
        return layers.linear(x if is_causal else x.mean(2), ends.num_outputs)


@dataclass(frozen=True)
class GPT(Transformer):
    """Transformers whose weights begin small, as GPT-2's do, half of them on real text."""

    kinds = (("text", "next"), ("text", "next"), ("symbols", "next"), ("patches", "classes"))
    initial_std = 0.02
    size_factor = 6

    @classmethod
    def draw(cls, dice: Dice, size: Size) -> Self:
        """1 or 2 blocks; small ones of 1 to 4 heads of width 6 to 16."""
        most_heads, widest = size.num_heads[1], size.half_head_widths[1]
        larger = replace(
            size,
            num_heads=(size.num_heads[0], 2 * most_heads),
            half_head_widths=(size.half_head_widths[0], widest + 2),
        )
        return super().draw(dice, larger)


@dataclass(frozen=True)
class RNN(Family):
    """A recurrent cell; the head is of the last state, or of each to predict the next symbol."""

    kinds = Transformer.kinds
    cell: str
    width: int
    is_normalized: bool

    @classmethod
    def draw(cls, dice: Dice, size: Size) -> Self:
        """A plain cell (tanh), GRU or LSTM, small ones with 8 to 32 units."""
        return cls(
            cell=dice.choice(("tanh", "gru", "lstm")),
            width=dice.log_uniform_integer(size.rnn_widths),
            is_normalized=dice.uniform((0, 1)) < 0.3,
        )

    def outputs(self, layers: Layers, x: Tensor, ends: Ends) -> Tensor:
        """Outputs (R, examples, outputs), or (R, examples, length, outputs)."""
        x = layers.drop(_embedded(layers, x, ends, self.width))
        states = layers.recur(x, self.width, self.cell)
        if ends.loss != "next":
            states = states[:, :, -1]
        if self.is_normalized:
            states = layers.layer_norm(states)
        return layers.linear(layers.drop(states), ends.num_outputs)


def _embedded(layers: Layers, x: Tensor, ends: Ends, width: int) -> Tensor:
    """Symbols or patches as (R, examples, length, width)."""
    if ends.num_symbols:
        return layers.embed(x, ends.num_symbols, width)
    return layers.linear(x, width)


FAMILIES: dict[str, type[Family]] = {
    "mlp": MLP,
    "cnn": CNN,
    "transformer": Transformer,
    "rnn": RNN,
    "gpt": GPT,
    "lenet": LeNet,
}

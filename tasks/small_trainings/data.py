"""Data for small trainings: vectors, images, patches of images, sequences of symbols, and text."""

import math
from collections import Counter
from functools import cache

import torch
from torch import Tensor

from lrpilot.tasks.small_networks.instance import (
    Dice,
    Sizes,
    draw_clusters,
    draw_digits,
    draw_teacher,
)
from lrpilot.tasks.small_trainings.families import Ends

_TEACHER_WIDTH = 16
_TEMPLATES_PER_CLASS = 2
_SIDE = 8
_NUM_INPUT_CLASSES = 4
_SPLITS = (0.8, 0.9, 1.0)
"""Where the training, held-out and test pieces of a text end."""


def random_network(x: Tensor, num_outputs: int, generator: torch.Generator) -> Tensor:
    """Outputs (examples, num_outputs) of a random network with one hidden layer, of mean 0."""
    num_features = x.shape[1]
    first = torch.randn(num_features, _TEACHER_WIDTH, generator=generator)
    hidden = (x @ first * (2 / math.sqrt(num_features))).tanh()
    outputs: Tensor = hidden @ torch.randn(_TEACHER_WIDTH, num_outputs, generator=generator)
    return outputs - outputs.mean(0)


def smoothed(images: Tensor) -> Tensor:
    """Images (N, 64) of 8 x 8 pixels, each averaged with its neighbours, of variance 1."""
    x = images.view(-1, _SIDE, _SIDE)
    for dim in (-1, -2):
        x = x.roll(1, dim) + 2 * x + x.roll(-1, dim)
    x = x.flatten(-2)
    return x / x.square().mean().sqrt()


def draw_templates(
    sizes: Sizes, dimension: int, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Smooth random images, two for each class, in noise of random strength."""
    noise = Dice(generator).uniform((0.5, 2.0))
    num_templates = _TEMPLATES_PER_CLASS * num_classes
    templates = smoothed(torch.randn(num_templates, dimension, generator=generator))
    index = torch.randint(num_templates, (sum(sizes),), generator=generator)
    x = torch.randn(len(index), dimension, generator=generator).mul_(noise).add_(templates[index])
    return x, index % num_classes


def draw_fields(
    sizes: Sizes, dimension: int, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Smooth random images, labelled by a random network."""
    x = smoothed(torch.randn(sum(sizes), dimension, generator=generator))
    return x, random_network(x, num_classes, generator).argmax(1)


VECTORS = {"teacher": draw_teacher, "clusters": draw_clusters, "digits": draw_digits}
IMAGES = {"templates": draw_templates, "fields": draw_fields, "digits": draw_digits}


def draw_sequences(
    num_sequences: int, length: int, num_symbols: int, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Sequences (num_sequences, length) of random grammars, one grammar for each label.

    In a grammar the last symbol, or where there is only one grammar the last one or two, has from
    2 to 8 successors (some of them the same), of which the next symbol is one at random; symbols of
    low numbers are more frequent.
    """
    dice = Dice(generator)
    num_grammars = int(labels.max()) + 1
    order = dice.integer((1, 2)) if num_grammars == 1 else 1
    num_successors = dice.integer((2, 8))
    shape = num_grammars * num_symbols**order, num_successors
    skewed = torch.rand(shape, generator=generator).square_()
    # one flat table, in which a state and a choice have one place
    successors = (skewed * num_symbols).long().flatten()
    choices = torch.randint(num_successors, (length, num_sequences), generator=generator)
    symbol = torch.randint(num_symbols, (num_sequences,), generator=generator)
    state, symbols = symbol, [symbol]
    for choice in choices[1:]:
        place = (labels * num_symbols**order + state) * num_successors
        symbol = successors[place + choice]
        state = (state * num_symbols + symbol) % num_symbols**order
        symbols.append(symbol)
    return torch.stack(symbols, dim=1)


@cache
def manual() -> Tensor:
    """Python's own manual, as characters by their rank of frequency, (characters,).

    Another version of Python has another one.
    """
    from pydoc_data.topics import topics  # a megabyte that nobody else reads

    text = "\n".join(topics[name] for name in sorted(topics))
    ranks = {c: rank for rank, (c, _) in enumerate(Counter(text).most_common())}
    return torch.tensor([ranks[c] for c in text], dtype=torch.uint8)


def draw_text(sizes: Sizes, length: int, num_symbols: int, generator: torch.Generator) -> Tensor:
    """Pieces (examples, length) of the manual that comes with Python, each split from its own part.

    Some passages stand in it twice. The `num_symbols` - 1 most frequent characters keep their
    number, the others have the last.
    """
    pieces = manual().clamp(max=num_symbols - 1).unfold(0, length, 1)
    ends = [round(share * len(pieces)) for share in _SPLITS]
    starts = [
        torch.randint(low, high - length, (size,), generator=generator)
        for low, high, size in zip((0, *ends[:-1]), ends, sizes, strict=True)
    ]
    return pieces[torch.cat(starts)]


def draw_examples(
    ends: Ends, sizes: Sizes, generator: torch.Generator, *, noise: float
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of so many training, held-out and test examples.

    Inputs have variance 1; of vectors, feature j is scaled by j^-a, a uniform in [0, 1]. Values to
    be predicted are those of a random network, of variance 1, in Gaussian noise.

    Args:
        ends: their shapes.
        sizes: how many there are of each.
        generator: of all draws.
        noise: share of the labels that are replaced by random ones, or the standard deviation of
            the values' noise; a random grammar has its own, and text none.
    """
    total = sum(sizes)
    if ends.kind == "text":
        text = draw_text(sizes, ends.shape[0] + 1, ends.num_symbols, generator)
        return text[:, :-1], text[:, 1:]
    if ends.kind == "symbols":
        (length,) = ends.shape
        if ends.loss == "next":
            labels = torch.zeros(total, dtype=torch.int64)
            symbols = draw_sequences(total, length + 1, ends.num_symbols, labels, generator)
            return symbols[:, :-1].to(torch.uint8), symbols[:, 1:].to(torch.uint8)
        labels = torch.randint(ends.num_outputs, (total,), generator=generator)
        x = draw_sequences(total, length, ends.num_symbols, labels, generator).to(torch.uint8)
        return x, _with_noise(labels, ends.num_outputs, noise, generator)
    dice = Dice(generator)
    kinds = VECTORS if ends.kind == "vectors" else IMAGES
    num_features = math.prod(ends.shape)
    num_classes = ends.num_outputs if ends.loss == "classes" else _NUM_INPUT_CLASSES
    draw = kinds[dice.choice(tuple(kinds))]
    x, labels = draw(sizes, num_features, num_classes, generator)
    if ends.kind == "vectors":
        x = x * torch.arange(1, num_features + 1).pow(-dice.uniform((0.0, 1.0)))
    x = x / x[: sizes[0]].square().mean().sqrt()
    if ends.loss == "classes":
        y = _with_noise(labels, ends.num_outputs, noise, generator)
    else:
        values = random_network(x, ends.num_outputs, generator)
        values /= values[: sizes[0]].square().mean().sqrt()
        y = values + noise * torch.randn(values.shape, generator=generator)
    if ends.shape == (16, 4):
        # each patch is a square of the image
        x = x.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
    return x.view(-1, *ends.shape), y


def _with_noise(
    labels: Tensor, num_classes: int, share: float, generator: torch.Generator
) -> Tensor:
    is_noisy = torch.rand(len(labels), generator=generator) < share
    other = torch.randint(num_classes, (len(labels),), generator=generator)
    return torch.where(is_noisy, other, labels).to(torch.uint8)

"""Plain PyTorch loops on what the tasks train: what environments are compared with."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.side_by_side import Action
from lrpilot.tasks.data.images import load_image_data
from lrpilot.tasks.data.texts import PADDING
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.language.gpt import GPTTask
from lrpilot.tasks.language.sentences import SentenceTask
from lrpilot.tasks.small_networks.task import SmallNetworkTask
from lrpilot.tasks.task import Task
from lrpilot.tasks.theory.lazy import LazyTask
from lrpilot.tasks.theory.width import WidthTask


def bare_step(task: Task) -> Action:
    """A step of a plain PyTorch loop on the task's model, data and optimizer."""
    return partial(next, bare_steps(task))


def bare_steps(task: Task) -> Iterator[None]:
    """A plain PyTorch loop on the task's model, data and optimizer; one step per `next`."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(task, LazyTask):
        return lazy_steps(task)
    if isinstance(task, WidthTask):
        return width_steps(task, generator)
    if isinstance(task, GPTTask):
        model = task.make_model(0)
        batches = text_batches(task.load().train, task.batch_size, task.context, generator)
    elif isinstance(task, SentenceTask):
        model, sentences = task.make_model(0), task.load()
        batches = shuffled(sentences.train_x, sentences.train_y, task.batch_size, generator)
        batches = ((x[:, : int((x != PADDING).sum(1).max())], y) for x, y in batches)
    elif isinstance(task, SmallNetworkTask):
        instance = task.start(0).instance
        model, examples = instance.model, instance.train
        batches = shuffled(examples.x, examples.y, instance.setup.batch_size, generator)
    else:
        assert isinstance(task, ImageTask)
        model, images = task.make_model(0), task.load()
        batches = shuffled(images.train_x, images.train_y, task.batch_size, generator)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        logits: Tensor = model(inputs)
        return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())

    return optimizer_steps(task, model.parameters(), batches, loss_of)


def lazy_steps(task: LazyTask) -> Iterator[None]:
    """Gradient descent on all of the task's digits, by a network of one hidden layer."""
    images = load_image_data("digits")
    x = images.train_x[: task.num_train].flatten(1).double()
    y = (images.train_y[: task.num_train] % 2 * 2 - 1).double()
    inner, outer = (weight.requires_grad_() for weight in task.start(0).state_dict()["start"])

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = torch.relu(inputs @ inner * math.sqrt(2.0 / inputs.shape[1]))
        residuals: Tensor = hidden @ outer / math.sqrt(task.width) - targets
        return residuals.square().mean() / 2

    return optimizer_steps(task, [inner, outer], itertools.repeat((x, y)), loss_of)


def width_steps(task: WidthTask, generator: torch.Generator) -> Iterator[None]:
    """Least squares on some labelled digits by a two-layer network."""
    data, model = task.load(), task.make_model(generator)
    chosen, labels = task.draw_examples(generator)
    batches = shuffled(data.train_x[chosen], labels, task.batch_size, generator)

    def loss_of(inputs: Tensor, classes: Tensor) -> Tensor:
        outputs: Tensor = model(inputs)
        targets = functional.one_hot(classes, outputs.shape[1])
        return (outputs - targets).square().sum(1).mean() / 2

    return optimizer_steps(task, model.parameters(), batches, loss_of)


def optimizer_steps(
    task: Task,
    parameters: Iterable[Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[None]:
    """One optimizer step per `next`."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = task.optimizer(trained, lr=task.base_lr)
    for inputs, targets in batches:
        loss = loss_of(inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def shuffled(
    x: Tensor, y: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless epochs without their incomplete batches."""
    while True:
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x) - batch_size + 1, batch_size):
            index = order[start : start + batch_size]
            yield x[index], y[index]


def text_batches(
    text: Tensor, batch_size: int, context: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random windows, and the characters that follow each of theirs."""
    offsets = torch.arange(context + 1)
    while True:
        starts = torch.randint(len(text) - context, (batch_size, 1), generator=generator)
        windows = text[starts + offsets].long()
        yield windows[:, :-1], windows[:, 1:]

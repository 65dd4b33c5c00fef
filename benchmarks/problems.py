"""What several benchmarks train."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from benchmarks.side_by_side import Action
from lrpilot.envs import LRControlEnv, LRControlVecEnv
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.images.models import lenet
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.task import Task

AnyTask = TypeVar("AnyTask", bound=Task)

ENDLESS = 10**9
MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
IMAGES = partial(ImageTask, optimizer=MOMENTUM, base_lr=0.01, total_steps=ENDLESS)
CIFAR = partial(IMAGES, data="cifar10", num_train=10_000)
CNNS = (IMAGES(name="digits, CNN 14k", data="digits"), CIFAR(name="CIFAR-10, CNN 15k"))


def available(tasks: Iterable[AnyTask]) -> Iterator[AnyTask]:
    """The tasks whose data are at hand; says which are left out."""
    for task in tasks:
        try:
            task.start(0)
        except DataError as error:
            print(f"{task.name}: left out, since {str(error).splitlines()[0]}\n")
        else:
            yield task


def own_step(task: Task) -> Action:
    """A step of the task's own run."""
    return partial(task.start(0).step, task.base_lr)


def decision(task: Task, **arguments: Any) -> Action:
    """A decision, which leaves the learning rate as it is, in an environment of these arguments."""
    env = LRControlEnv(task, initial_lr_factors=(1.0, 1.0), **arguments)
    env.reset(seed=0, options={"task_seed": 0})
    return partial(env.step, np.zeros(1, np.float32))


def batched_step(task: Task, num_runs: int, device: str = "cpu") -> Action:
    """A step of each of so many batched runs."""
    runs = task.start_batch(num_runs)
    runs.reset(list(range(num_runs)), list(range(num_runs)))
    lrs = torch.full((num_runs,), task.base_lr, device=device)
    return partial(runs.step, lrs, torch.ones(num_runs, dtype=torch.bool, device=device))


def batched_decision(task: Task, num_runs: int, **arguments: Any) -> Action:
    """A decision in each of so many batched environments of these arguments."""
    env = LRControlVecEnv(task, num_runs, initial_lr_factors=(1.0, 1.0), **arguments)
    env.seed(0)
    env.reset()
    return partial(env.step, np.zeros((num_runs, 1), np.float32))


class LeNetTraining:
    """LeNet (62,006 parameters) on noisy copies of ten random images, in batches of 128."""

    def __init__(self, make_optimizer: Callable[..., Optimizer], num_batches: int = 2) -> None:
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(10, 3, 32, 32, generator=generator)
        labels = torch.randint(10, (num_batches * 128,), generator=generator)
        images = centres[labels] + 4 * torch.randn(len(labels), 3, 32, 32, generator=generator)
        self.batches = list(zip(images.split(128), labels.split(128), strict=True))
        torch.manual_seed(0)
        self.model = lenet(3, 10)
        self.optimizer = make_optimizer(self.model.parameters())
        self.num_steps = 0

    def loss(self, batch: int) -> Tensor:
        """The loss on a batch."""
        x, y = self.batches[batch % len(self.batches)]
        return functional.cross_entropy(self.model(x), y)

    def step(self) -> None:
        """One bare training step, on the next batch."""
        self.optimizer.zero_grad()
        self.loss(self.num_steps).backward()
        self.optimizer.step()
        self.num_steps += 1

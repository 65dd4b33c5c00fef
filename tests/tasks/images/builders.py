"""Small image tasks."""

from collections.abc import Callable
from functools import partial

import torch

from lrpilot.tasks.images.task import ImageTask

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


digits_task: Callable[..., ImageTask] = partial(
    ImageTask, name="digits", optimizer=MOMENTUM, base_lr=0.05, total_steps=40, data="digits"
)
"""The small CNN on digits; any argument can be replaced."""

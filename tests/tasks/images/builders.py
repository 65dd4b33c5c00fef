"""Small image tasks."""

from functools import partial
from typing import Any

import torch

from lrpilot.tasks.images.task import ImageTask

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


def digits_task(**changes: Any) -> ImageTask:
    """The small CNN on digits; any argument can be replaced."""
    arguments: dict[str, Any] = {
        "name": "digits",
        "optimizer": MOMENTUM,
        "base_lr": 0.05,
        "total_steps": 40,
        "data": "digits",
    }
    return ImageTask(**{**arguments, **changes})

"""The environments of the image sets whose files do not come with a package."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import lrpilot.envs  # noqa: F401 (registers the environment)
from lrpilot.tasks.images.task import ImageTask
from tests.running import check_environment

NEIGHBOUR = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDER = os.environ.get("LRPILOT_DATA") or (str(NEIGHBOUR) if NEIGHBOUR.is_dir() else None)


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="needs the image files: set LRPILOT_DATA")
@pytest.mark.parametrize("data", ["cifar10", "fashion_mnist"])
def test_both_environment_checkers_pass_without_a_warning(data: Any) -> None:
    task = ImageTask(
        name=data,
        data=data,
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        base_lr=0.05,
        total_steps=30,
        num_train=1000,
        data_dir=FOLDER,
    )
    check_environment(task)

import subprocess
import sys

import torch
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, LinearLR, SequentialLR

from lrpilot.integrations.observers import find_observers
from tests.lrpilot.integrations.loss_lr import LossLR

LIGHT_MODULES = ("observers", "distributed", "amp", "tracking")
HEAVY_LIBRARIES = ("transformers", "accelerate", "lightning", "wandb", "tensorboard")


def test_observers_are_found_behind_a_warm_up_and_in_a_chain() -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    first, second = LossLR(optimizer), LossLR(optimizer)
    warmed_up = SequentialLR(optimizer, [LinearLR(optimizer), first], milestones=[2])
    chain = ChainedScheduler([ConstantLR(optimizer), warmed_up, second], optimizer)
    assert find_observers(chain) == [first, second]


def test_modules_for_torch_itself_import_no_other_library() -> None:
    code = (
        f"import sys; from lrpilot.integrations import {', '.join(LIGHT_MODULES)}; "
        f"sys.exit(any(name in sys.modules for name in {HEAVY_LIBRARIES}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

import torch
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, LinearLR, SequentialLR

from lrpilot.schedulers.loss_driven import find_loss_driven
from tests.lrpilot.integrations.loss_lr import LossLR


def test_loss_driven_schedulers_are_found_behind_a_warm_up_and_in_a_chain() -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    first, second = LossLR(optimizer), LossLR(optimizer)
    warmed_up = SequentialLR(optimizer, [LinearLR(optimizer), first], milestones=[2])
    chain = ChainedScheduler([ConstantLR(optimizer), warmed_up, second], optimizer)
    assert find_loss_driven(chain) == [first, second]

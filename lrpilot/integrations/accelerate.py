"""Accelerate: one scheduler step per optimizer step, with the loss of all its micro-batches."""

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lrpilot.integrations.distributed import as_tensor, mean_over_ranks
from lrpilot.schedulers.loss_driven import give_loss, require_loss_driven


class LossStepper:
    """Steps a scheduler that observes losses, in the place of `accelerator.prepare(scheduler)`.

    A prepared scheduler's `step(loss)` is repeated once per process, drops the losses of all
    micro-batches but the last, and gives every process its own loss. This one steps once per
    optimizer step that was made, with loss = mean over micro-batches and ranks::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        stepper = LossStepper(accelerator, scheduler)
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(batch)
                accelerator.backward(loss)
                optimizer.step()
                stepper.step(loss)
                optimizer.zero_grad()

    The scheduler is registered for checkpointing: `accelerator.save_state` and `load_state`
    include it.

    Args:
        accelerator: the Accelerator that prepared the scheduler's optimizer.
        scheduler: observes losses, alone or in a `SequentialLR`; not prepared itself.

    Raises:
        TypeError: if the scheduler observes no losses.
    """

    def __init__(self, accelerator: Accelerator, scheduler: LRScheduler) -> None:
        require_loss_driven(scheduler)
        self._accelerator = accelerator
        self.scheduler = scheduler
        self._losses: list[Tensor] = []
        accelerator.register_for_checkpointing(scheduler)

    def step(self, loss: float | Tensor) -> None:
        """Take the loss of a micro-batch; call it after every `optimizer.step()`.

        Args:
            loss: what was given to `accelerator.backward`, or its value: a number or a tensor of
                one element.

        Raises:
            TypeError, ValueError: as `lrpilot.loss.read_loss` does.
        """
        self._losses.append(as_tensor(loss))
        if not self._accelerator.sync_gradients:
            return
        losses, self._losses = self._losses, []
        if self._accelerator.optimizer_step_was_skipped:
            return
        give_loss(self.scheduler, mean_over_ranks(torch.stack(losses).mean()))
        self.scheduler.step()

"""Hugging Face Trainer: the loss reaches the scheduler before the Trainer steps it."""

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState

from lrpilot.integrations.distributed import as_tensor, mean_over_ranks
from lrpilot.integrations.horizon import warn_of_other_horizon
from lrpilot.schedulers.loss_driven import give_loss, require_loss_driven


class LossCallback(TrainerCallback):
    """Gives the training loss of every optimizer step to the Trainer's scheduler.

    The Trainer calls `lr_scheduler.step()` without a loss, and its callbacks do not see one. This
    one takes what `trainer.training_step` returns, summed over the micro-batches of an optimizer
    step: the number that the Trainer itself adds up for its log, whatever computes it (the model,
    label smoothing, `compute_loss_func`, a subclass), but without its filter of NaN::

        trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, scheduler))
        trainer.add_callback(LossCallback(trainer))
        trainer.train()

    Losses are averaged over ranks; evaluation has none. Steps that a gradient scaler skipped give
    no loss, as the Trainer then does not step the scheduler. The scheduler is part of the
    Trainer's checkpoints like any other. A `total_steps` that is not the number of steps that the
    Trainer makes is warned of when training begins.

    Args:
        trainer: the Trainer; its scheduler observes losses, alone or in a `SequentialLR`.

    Raises:
        TypeError: when training begins, if the scheduler observes no losses.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._losses: list[Tensor] = []
        self._training_step = trainer.training_step
        # a hook on the model would miss losses that are computed outside of it
        vars(trainer)["training_step"] = self._observed_training_step

    def _observed_training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = self._training_step(*args, **kwargs)
        self._losses.append(as_tensor(loss))
        return loss

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Forget what an earlier, interrupted training left, and compare the horizons."""
        require_loss_driven(self._trainer.lr_scheduler)
        self._losses.clear()
        if state.is_world_process_zero:
            num_steps = state.max_steps - state.global_step
            warn_of_other_horizon(self._trainer.lr_scheduler, num_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the loss; the Trainer steps the scheduler right after this event."""
        losses, self._losses = self._losses, []
        if self._trainer.accelerator.optimizer_step_was_skipped:
            return
        give_loss(self._trainer.lr_scheduler, mean_over_ranks(torch.stack(losses).sum()))

"""Lightning: the loss reaches the scheduler before Lightning steps it."""

import math
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim import Optimizer

from lrpilot.integrations.distributed import as_tensor, mean_over_ranks
from lrpilot.integrations.horizon import warn_of_other_horizon
from lrpilot.schedulers.loss_driven import find_loss_driven, give_loss


class LossCallback(Callback):
    """Gives the training loss of every optimizer step to the schedulers of that optimizer.

    With `"interval": "step"` Lightning calls `scheduler.step()`, without a loss, after every
    optimizer step; this callback hands over the loss before it. Micro-batches whose gradients are
    accumulated count as one, by their mean; ranks, too::

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            scheduler = GreedyLR(optimizer)
            config = {"scheduler": scheduler, "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": config}

        trainer = Trainer(callbacks=[LossCallback()])

    No loss, no step: where `training_step` returned None, Lightning's optimizer has no gradients,
    and the schedulers that observe losses stay as they are.

    It works with manual optimization, too: there `self.lr_schedulers().step()` needs no loss. Every
    optimizer that steps after a backward pass, until the next one, has its loss; of several
    backward passes before a step, their mean. In `16-mixed` precision Lightning steps schedulers
    even if its gradient scaler skipped the step.

    When training begins, the callback warns of schedulers that Lightning steps once per epoch (its
    default), and of a `total_steps` that is not the number of steps that the Trainer makes. With
    manual optimization only your own code knows.

    Raises:
        TypeError: when training begins, if no scheduler observes losses.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._losses: list[Tensor] = []  # of the backward passes since the last optimizer step
        self._stepped: set[int] = set()  # ids of the optimizers that had these losses
        self._ready: set[int] = set()  # ids of the schedulers with a loss for their next step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an earlier, interrupted training left, and compare the clocks."""
        self._forget()
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        if not any(map(find_loss_driven, schedulers)):
            names = [type(scheduler).__name__ for scheduler in schedulers]
            raise TypeError(
                f"`configure_optimizers` must return a scheduler that observes losses, got {names}"
            )
        if pl_module.automatic_optimization and trainer.is_global_zero:
            _warn_of_other_clocks(trainer)
        self._step_scheduler = pl_module.lr_scheduler_step
        # Lightning has no event around a scheduler's step, and makes it even without a loss
        vars(pl_module)["lr_scheduler_step"] = self._step_if_ready

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give Lightning its own way of stepping back."""
        vars(pl_module).pop("lr_scheduler_step", None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give Lightning its own way of stepping back."""
        vars(pl_module).pop("lr_scheduler_step", None)

    def _step_if_ready(self, scheduler: Any, metric: Any) -> None:
        if metric is None and find_loss_driven(scheduler) and id(scheduler) not in self._ready:
            return
        self._ready.discard(id(scheduler))
        self._step_scheduler(scheduler, metric)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Keep the loss of a micro-batch."""
        if self._stepped:
            self._losses.clear()
            self._stepped.clear()
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        # undo the scaling that Lightning applied for the sake of the gradients
        self._losses.append(as_tensor(loss) * (trainer.accumulate_grad_batches / scale))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Give the mean loss; Lightning steps the scheduler after the optimizer."""
        if not self._losses or id(optimizer) in self._stepped:
            return
        self._stepped.add(id(optimizer))
        loss = mean_over_ranks(torch.stack(self._losses).mean())
        for config in trainer.lr_scheduler_configs:
            if config.scheduler.optimizer is optimizer:
                give_loss(config.scheduler, loss)
                self._ready.add(id(config.scheduler))


def _warn_of_other_clocks(trainer: Trainer) -> None:
    """Warn of schedulers that are not stepped once per optimizer step until their horizon."""
    total_steps = trainer.estimated_stepping_batches
    changes = any(isinstance(one, GradientAccumulationScheduler) for one in trainer.callbacks)
    is_known = 0 < total_steps < math.inf and not changes
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau or not find_loss_driven(config.scheduler):
            continue
        if (config.interval, config.frequency) != ("step", 1):
            warnings.warn(
                f'`"interval"` and `"frequency"` should be "step" and 1, got "{config.interval}" '
                f'and {config.frequency} (Lightning\'s defaults are "epoch" and 1): '
                f"{type(config.scheduler).__name__} is given the loss of every step but may set "
                'the learning rate less often; return `{"scheduler": ..., "interval": "step"}`',
                UserWarning,
                stacklevel=3,
            )
        elif is_known:
            warn_of_other_horizon(config.scheduler, int(total_steps) - trainer.global_step)

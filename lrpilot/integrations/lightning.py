"""Lightning: the loss reaches the scheduler before Lightning steps it."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lrpilot.integrations.distributed import mean_over_ranks
from lrpilot.observers import find_observers


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

    It works with manual optimization, too: there `self.lr_schedulers().step()` needs no loss. In
    `16-mixed` precision Lightning steps schedulers even if its gradient scaler skipped the step.

    Raises:
        TypeError: when training begins, if no scheduler observes losses.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an earlier, interrupted training left."""
        self._losses.clear()
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        if not any(map(find_observers, schedulers)):
            names = [type(scheduler).__name__ for scheduler in schedulers]
            raise TypeError(
                f"`configure_optimizers` must return a scheduler that observes losses, got {names}"
            )

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Keep the loss of a micro-batch."""
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        # undo the scaling that Lightning applied for the sake of the gradients
        self._losses.append(loss.detach() * (trainer.accumulate_grad_batches / scale))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Give the mean loss; Lightning steps the scheduler after the optimizer."""
        loss = mean_over_ranks(torch.stack(self._losses).mean())
        self._losses.clear()
        for config in trainer.lr_scheduler_configs:
            if config.scheduler.optimizer is optimizer:
                for observer in find_observers(config.scheduler):
                    observer.observe(loss)

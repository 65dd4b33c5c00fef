"""AdaptiveLR: what the schedulers that react to the training have in common."""

import copy
import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrpilot.caps import Cap, ask_cap
from lrpilot.decision_log import Decision, DecisionLog


def idle_optimizer(initial_lr: float) -> Optimizer:
    """An optimizer with nothing to train, to run a scheduler dry.

    >>> idle_optimizer(0.1).param_groups[0]["lr"]
    0.1
    """
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial_lr)


class AdaptiveLR(LRScheduler):
    """A torch scheduler with a cap, a log of its decisions and a plain state.

    A subclass implements `get_lr`, so that it works in `SequentialLR`, names in `_state_names`
    the attributes that continue a run, and in `_settings` those that a loaded state must share.
    In a `SequentialLR` it waits with `last_epoch` = -1 until its milestone, where torch calls
    `get_lr` with `last_epoch` = 0: there it starts at the initial learning rates.

    Args:
        optimizer: the wrapped optimizer; its learning rates are the initial ones.
        cap: asked before every step; no group's learning rate exceeds its answer.
        log_size: decisions that `log` keeps.

    Raises:
        TypeError: if `optimizer` is not an Optimizer.
        ValueError: if no group has a positive learning rate, one is not finite, or the log's size
            is negative.
    """

    _state_names: ClassVar[tuple[str, ...]] = ()
    _settings: ClassVar[tuple[str, ...]] = ()
    moves_before_step: ClassVar[bool] = False
    """Whether it changes the learning rate between its `step()` and the optimizer's."""

    def __init__(
        self, optimizer: Optimizer, *, cap: Cap | None = None, log_size: int = 1000
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` is not an Optimizer, got {type(optimizer).__name__}")
        initial_lrs = [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]
        if not max(initial_lrs) > 0.0:
            raise ValueError(f"`optimizer` must have a positive learning rate, got {initial_lrs}")
        if not all(map(math.isfinite, initial_lrs)):
            raise ValueError(f"`optimizer` must have finite learning rates, got {initial_lrs}")
        self.cap = cap
        self.bound_by: str | None = None
        self.log = DecisionLog(log_size)
        super().__init__(optimizer)

    def step(self, loss: float | Tensor | None = None) -> None:
        """Set the learning rates of the next step; call it after `optimizer.step()`.

        Args:
            loss: minibatch loss of the forward pass before this optimizer step. Schedulers that
                look at something else ignore it, so that all of them are called alike.
        """
        super().step()

    @property
    def is_waiting(self) -> bool:
        """Whether a `SequentialLR` has not reached this scheduler yet."""
        return self.last_epoch < 0

    def current_lrs(self) -> list[float]:
        """The learning rates that the optimizer has now, one per group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def set_lrs(self, lrs: list[float]) -> None:
        """Give every group its learning rate; one that is a tensor is filled, never replaced."""
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def limit(self, lrs: list[float]) -> list[float]:
        """Scale the learning rates of all groups down together until the largest is in the cap.

        `bound_by` is the name of the cap's guarantee if it bound, else None.
        """
        self.bound_by = None
        if self.cap is None:
            return lrs
        eta_max, guarantee = ask_cap(self.cap)
        largest = max(lrs)
        if largest <= eta_max:
            return lrs
        self.bound_by = guarantee
        # the products may round above the cap by a last digit
        return [min(lr * (eta_max / largest), eta_max) for lr in lrs]

    def record(self, rule: str, signal: float, threshold: float, new_lr: float) -> None:
        """Log a change of the first group's learning rate to `new_lr`."""
        old_lr = float(self.optimizer.param_groups[0]["lr"])
        entry = (self.last_epoch, old_lr, new_lr, signal, threshold, rule, self.bound_by or "")
        self.log.add(Decision(*entry))

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors (loads with `weights_only=True`)."""
        names = ("last_epoch", "_step_count", "bound_by", *self._state_names)
        save_cap = getattr(self.cap, "state_dict", None)  # one that is measured in intervals
        return {
            **{name: copy.deepcopy(getattr(self, name)) for name in names},
            "settings": {name: copy.deepcopy(getattr(self, name)) for name in self._settings},
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "lrs": self.current_lrs(),
            # not those if another scheduler has changed them since: a chain, or a guard
            "_last_lr": [float(lr) for lr in self.get_last_lr()],
            "log": self.log.state_dict(),
            "cap": None if save_cap is None else copy.deepcopy(save_cap()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`; the continuation is bit-identical.

        The optimizer's learning rates are set, too, so that its own state may have been loaded
        before or after this scheduler was made.

        Raises:
            ValueError: if a setting or the number of groups is not this scheduler's.
        """
        for name, value in state_dict["settings"].items():
            mine = getattr(self, name)
            if value != mine:
                raise ValueError(
                    f"`state_dict` must have `{name}` = {mine!r} like this scheduler, got {value!r}"
                )
        groups = self.optimizer.param_groups
        if len(state_dict["lrs"]) != len(groups):
            raise ValueError(
                f"`state_dict` must have {len(groups)} parameter groups like this scheduler, got "
                f"{len(state_dict['lrs'])}"
            )
        for name in ("last_epoch", "_step_count", "bound_by", *self._state_names):
            setattr(self, name, copy.deepcopy(state_dict[name]))
        self.base_lrs = list(state_dict["base_lrs"])
        self._last_lr = list(state_dict["_last_lr"])
        self.log.load_state_dict(state_dict["log"])
        load_cap = getattr(self.cap, "load_state_dict", None)
        if load_cap is not None and state_dict["cap"] is not None:
            load_cap(state_dict["cap"])
        self.set_lrs(state_dict["lrs"])

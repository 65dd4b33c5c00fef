"""AdaptiveLR: what the schedulers that react to the training have in common."""

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrpilot.caps.cap import Cap, ask_cap
from lrpilot.schedulers.decision_log import Decision, DecisionLog
from lrpilot.schedulers.torch_scheduler import COUNTS, TorchScheduler, all_parts, states_of_parts
from lrpilot.state import read_fields, state_fields, write_fields
from lrpilot.version import __version__

_FIELDS = state_fields("bound_by", "log", uncapped_lrs="_uncapped")
STATE_VERSION = 2
"""Of the fields of a state; one that has another is refused."""


def dry_run(scheduler: "AdaptiveLR", losses: Iterable[float | Tensor]) -> list[float]:
    """The learning rates that losses lead to: the present one, and the one after each loss."""
    lrs = scheduler.current_lrs()
    for loss in losses:
        scheduler.optimizer.step()
        scheduler.step(loss)
        lrs += scheduler.current_lrs()
    return lrs


def idle_optimizer(initial_lr: float) -> Optimizer:
    """An optimizer with nothing to train, to run a scheduler dry.

    >>> idle_optimizer(0.1).param_groups[0]["lr"]
    0.1
    """
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial_lr)


_made: WeakKeyDictionary[Optimizer, "WeakSet[AdaptiveLR]"] = WeakKeyDictionary()


def _warn_of_another(scheduler: "AdaptiveLR", optimizer: Optimizer) -> None:
    """Warn if another scheduler has moved the learning rates at which this one begins."""
    others = _made.setdefault(optimizer, WeakSet())
    inside = all_parts(scheduler)
    present = [float(group["lr"]) for group in optimizer.param_groups]
    for other in others:
        if other not in inside and other.last_epoch > 0 and other.last_lrs == present:
            mine, theirs = type(scheduler).__name__, type(other).__name__
            warnings.warn(
                f"`optimizer` has a {theirs} already, which has set its learning rates to "
                f"{present}: this {mine} begins there. Set `lr` of the parameter groups first, or "
                f"go on with that {theirs}",
                UserWarning,
                stacklevel=4,
            )
            break
    others.add(scheduler)


class AdaptiveLR(TorchScheduler):
    """A torch scheduler with a cap, a log of its decisions and a plain state.

    It starts at the learning rates that the optimizer has (in a `SequentialLR` at the groups'
    `initial_lr`, as torch defines it), which are its `base_lrs`. A parameter group that is added
    later is taken in at the next step: its own learning rate is its base, and it is multiplied by
    the factor that the schedule has reached. `get_lr` and `get_last_lr` only read.

    A subclass implements `_next_lrs`, and where it must `_start` and `_join`; it says in
    `_state_fields` what continues a run, and names in `_settings` the attributes that a loaded
    state must share.

    Args:
        optimizer: the wrapped optimizer; its learning rates are the initial ones.
        cap: asked before every step; no group's learning rate exceeds its answer.
        log_size: decisions that `log` keeps.

    Raises:
        TypeError: if `optimizer` is not an Optimizer.
        ValueError: if no group has a positive learning rate, one is not finite, or the log's size
            is negative.
    """

    _state_fields: ClassVar[Mapping[str, str]] = state_fields()
    _settings: ClassVar[tuple[str, ...]] = ()
    moves_before_step: ClassVar[bool] = False
    """Whether it changes the learning rate between its `step()` and the optimizer's."""

    def __init__(
        self, optimizer: Optimizer, *, cap: Cap | None = None, log_size: int = 1000
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` is not an Optimizer, got {type(optimizer).__name__}")
        groups = optimizer.param_groups
        lrs = [float(group["lr"]) for group in groups]
        if not all(map(math.isfinite, lrs)):
            raise ValueError(f"`optimizer` must have finite learning rates, got {lrs}")
        if not any(
            lr > 0.0 or group.get("initial_lr", lr) > 0.0
            for lr, group in zip(lrs, groups, strict=True)
        ):
            raise ValueError(f"`optimizer` must have a positive learning rate, got {lrs}")
        self.cap = cap
        self._uncapped: list[float] | None = None
        self.bound_by: str | None = None
        self.log = DecisionLog(log_size)
        _warn_of_another(self, optimizer)
        super().__init__(optimizer)

    def _start(self, *, at_milestone: bool) -> list[float]:
        return self.limit([float(lr) for lr in self.base_lrs])

    def _join(self, lrs: list[float]) -> list[float]:
        """Take in parameter groups that were added to the optimizer.

        Args:
            lrs: their own learning rates, which are in `base_lrs` already.

        Returns:
            Their learning rates at the present state of the schedule.
        """
        bases = [float(lr) for lr in self.base_lrs[: -len(lrs)]]
        lead = bases.index(max(bases))
        return [lr * (self.current_lrs()[lead] / bases[lead]) for lr in lrs]

    def step(self, loss: float | Tensor | None = None) -> None:
        """Set the learning rates of the next step; call it after `optimizer.step()`.

        Args:
            loss: minibatch loss of the forward pass before this optimizer step. Schedulers that
                look at something else ignore it, so that all of them are called alike.
        """
        self._take_in_groups()
        super().step()

    def _take_in_groups(self) -> None:
        """Take in the parameter groups that were added, if any."""
        groups, known = self.optimizer.param_groups, len(self.base_lrs)
        if len(groups) == known:
            return
        if len(groups) < known:
            raise RuntimeError(
                f"`optimizer` must keep its {known} parameter groups, got {len(groups)}: make a "
                "new scheduler after a group was removed"
            )
        for group in groups[known:]:
            group.setdefault("initial_lr", copy.copy(group["lr"]))
        own = self.current_lrs()[known:]
        self.base_lrs += own
        if not self.is_waiting:
            last, joined = self.last_lrs, self._join(own)
            self.set_lrs([*self.current_lrs()[:known], *joined])
            self.last_lrs = [*last, *joined]

    def limit(self, lrs: Sequence[float]) -> list[float]:
        """Scale the learning rates of all groups down together until the largest is in the cap.

        `bound_by` is the name of the cap's guarantee if it bound, else None.
        """
        return self._within(lrs, self._ask_cap())

    def _ask_cap(self) -> float:
        if self.cap is None:
            return math.inf
        eta_max, self._guarantee = ask_cap(self.cap)
        return eta_max

    def _within(self, lrs: Sequence[float], eta_max: float) -> list[float]:
        self.bound_by = None
        largest = max(lrs)
        if not largest > eta_max:  # NaN is beyond no cap
            return list(lrs)
        self.bound_by = self._guarantee
        # the products may round above the cap by a last digit
        return [min(lr * (eta_max / largest), eta_max) for lr in lrs]

    def _lrs_before_cap(self) -> list[float]:
        """The present learning rates if the cap had not shortened the last ones."""
        lrs = self.current_lrs()
        if self._uncapped is None:
            return lrs
        # what another scheduler has changed since is a factor
        return [
            free * (lr / last) if lr != last and last else free
            for free, lr, last in zip(self._uncapped, lrs, self.last_lrs, strict=True)
        ]

    def record(
        self,
        rule: str,
        signal: float,
        threshold: float,
        new_lr: float,
        *,
        old_lr: float | None = None,
        bound_by: str = "",
    ) -> None:
        """Log a change of the first group's learning rate, from the present one by default.

        `bound_by` is the limit that shortened it, unless the cap did; the rest as in `Decision`.
        """
        if old_lr is None:
            old_lr = self.current_lrs()[0]
        limit = self.bound_by or bound_by
        self.log.add(Decision(self.last_epoch, old_lr, new_lr, signal, threshold, rule, limit))

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors (loads with `weights_only=True`)."""
        save_cap = getattr(self.cap, "state_dict", None)  # one that is measured in intervals
        return {
            "class": type(self).__name__,
            "version": STATE_VERSION,
            "lrpilot": __version__,
            **read_fields(self, self._all_fields()),
            "settings": {name: copy.deepcopy(getattr(self, name)) for name in self._settings},
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "lrs": self.current_lrs(),
            # not those if another scheduler has changed them since: a chain, or a guard
            "last_lrs": self.last_lrs,
            "cap": None if save_cap is None else copy.deepcopy(save_cap()),
        }

    def _all_fields(self) -> Mapping[str, str]:
        return {**COUNTS, **_FIELDS, **self._state_fields}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`; the continuation is bit-identical.

        The optimizer's learning rates are set, too, so that its own state may have been loaded
        before or after this scheduler was made.

        Raises:
            ValueError: if the state is of another class or another format (the message names the
                lrpilot that wrote it), a setting differs, or the optimizer has another number of
                groups. Then nothing has changed.
        """
        self.check_state(state_dict)
        self._load(state_dict)

    def check_state(self, state: Any) -> None:
        """Raise the error of `load_state_dict` if there is one; changes nothing."""
        mine = type(self).__name__
        if not isinstance(state, Mapping) or "class" not in state:
            raise ValueError(f"`state_dict` must be of {mine}, got none of lrpilot")
        if state["class"] != mine:
            raise ValueError(f"`state_dict` must be of {mine}, got one of {state['class']}")
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"`state_dict` must have `version` = {STATE_VERSION}, got "
                f"{state.get('version')!r} of lrpilot {state.get('lrpilot', '0.1.0')}: continue "
                "that run with the lrpilot that wrote it"
            )
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(f"`state_dict` must have {missing} like every one of {mine}, got none")
        for name in self._settings:
            value, own = state["settings"].get(name), getattr(self, name)
            if value != own:
                raise ValueError(
                    f"`state_dict` must have `{name}` = {own!r} like this scheduler, got {value!r}"
                )
        num_groups = len(self.optimizer.param_groups)
        if len(state["lrs"]) != num_groups:
            raise ValueError(
                f"`state_dict` must have {num_groups} parameter groups like this scheduler, got "
                f"{len(state['lrs'])}"
            )
        for field, attribute in self._state_fields.items():
            for part, part_state in states_of_parts(getattr(self, attribute), state[field]):
                if hasattr(part, "check_state"):
                    part.check_state(part_state)

    def _load(self, state: dict[str, Any]) -> None:
        """Continue from a state that `check_state` has passed."""
        self._take_in_groups()
        write_fields(self, self._all_fields(), state)
        self.base_lrs = list(state["base_lrs"])
        load_cap = getattr(self.cap, "load_state_dict", None)
        if load_cap is not None and state["cap"] is not None:
            load_cap(state["cap"])
        self.set_lrs(state["lrs"])
        self.last_lrs = state["last_lrs"]

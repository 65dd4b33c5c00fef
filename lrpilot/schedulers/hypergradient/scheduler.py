"""HypergradientLR: learning rates that descend the loss, too."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrpilot.arguments import require_choice, require_sgd_or_adam, require_within
from lrpilot.caps.cap import Cap
from lrpilot.loss import check_loss_tensor, read_loss, read_numbers
from lrpilot.schedulers.base import AdaptiveLR, idle_optimizer
from lrpilot.schedulers.hypergradient.directions import LastStep
from lrpilot.schedulers.hypergradient.hooks import StepHooks
from lrpilot.schedulers.hypergradient.signals import (
    factor_signals,
    group_signals,
    next_lr,
    shortened_raises,
)
from lrpilot.schedulers.hypergradient.step_scales import StepScales
from lrpilot.state import state_fields

LEVELS = ("global", "group", "tensor", "entry")
UPDATES = ("additive", "multiplicative")


class HypergradientLR(AdaptiveLR):
    """Moves the learning rate down the derivative of the loss with respect to it.

    Before the optimizer's step t, with g_t the gradient and w_t = w_{t-1} - lr u_{t-1} its last
    step, the derivative of the loss with respect to the last learning rate is -h_t::

        h_t = <g_t, u_{t-1}>
        lr <- lr + hyper_lr h_t                                  (update = "additive")
        lr <- lr (1 + hyper_lr h_t / (||g_t|| ||u_{t-1}||))      (update = "multiplicative")

    and step t uses the new one. The optimizer is torch's own: u is read from its state, and
    hooks change the learning rate within `optimizer.step()`, right before the step that uses it,
    so the training loop is the usual one, with `scheduler.step()` at its end.

    At level "tensor" or "entry" the optimizer's step, at the group's learning rate, is multiplied
    by the factor in `scales`; the rules then hold for factor x initial learning rate.

    A signal that is NaN or infinite changes nothing; the next one counts again. Gradients are those
    that the optimizer gets (clipped, unscaled, averaged over ranks); parameters without one, now or
    in the last step, do not count. In a `SequentialLR` place it last, or `detach` it in time.

    The rule in `log` is the update's name, or "cap" if only that changed the learning rate; the
    signal is h or the cosine. At level "tensor" or "entry" all are means over the first group.

    Args:
        optimizer: torch's SGD, Adam or AdamW; its learning rates are the initial ones.
        hyper_lr: step size of the learning rate. Multiplicative: the largest relative change per
            step, below 1. Additive: in units of lr^2 / loss (1e-3 to 1e-8 in the paper).
        level: what has a learning rate of its own: "global" (all groups, in the ratio of their
            initial ones), "group", "tensor" or "entry".
        update: "multiplicative", free of units, or "additive", the paper's main rule, which may
            diverge between its bounds if `hyper_lr` is too large and there is no cap.
        min_factor: lower bound over the initial learning rate, in [0, 1]; not moved below.
        max_factor: upper bound likewise, at least 1.
        cap: asked before every optimizer step; no effective learning rate exceeds its answer, and
            nothing is raised past it. Once it ceases to bind all is as before.
        log_size: decisions that `log` keeps.

    Raises:
        TypeError: if `optimizer` is none of the three.
        ValueError: if another argument is out of range, or a parameter is complex.

    References:
        Baydin, Cornish, Martinez Rubio, Schmidt, Wood. Online learning rate adaptation with
        hypergradient descent. 2018.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.1)
    >>> scheduler = HypergradientLR(optimizer, hyper_lr=0.1, update="additive")
    >>> for _ in range(3):  # f = w^2 / 2
    ...     w.grad = w.detach().clone()
    ...     optimizer.step()
    ...     print(f"{optimizer.param_groups[0]['lr']:.4f}")
    ...     scheduler.step()
    0.1000
    0.1900
    0.2556
    """

    _state_fields = state_fields(last_step="_last_step", scales="_scales", mean_scale="_mean_scale")
    moves_before_step = True
    _settings = ("hyper_lr", "level", "update", "min_factor", "max_factor")

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        hyper_lr: float,
        level: str = "group",
        update: str = "multiplicative",
        min_factor: float = 0.01,
        max_factor: float = 100.0,
        cap: Cap | None = None,
        log_size: int = 1000,
    ) -> None:
        require_sgd_or_adam(optimizer)
        require_choice("level", level, LEVELS)
        require_choice("update", update, UPDATES)
        require_within("hyper_lr", hyper_lr, "(0, 1)" if update == UPDATES[1] else "(0, inf)")
        require_within("min_factor", min_factor, "[0, 1]")
        require_within("max_factor", max_factor, "[1, inf)")
        self.level, self.update = level, update
        self.hyper_lr = float(hyper_lr)
        self.min_factor, self.max_factor = float(min_factor), float(max_factor)
        self._last_step = LastStep(optimizer)
        if any(p.is_complex() for p in self._last_step.parameters):
            raise ValueError("`optimizer` must hold real parameters, got a complex one")
        super().__init__(optimizer, cap=cap, log_size=log_size)
        self._hooks = StepHooks(optimizer, self._before_step, self._after_step)

    @classmethod
    def simulate(
        cls, hypergradients: Iterable[float], *, initial_lr: float, **arguments: Any
    ) -> list[float]:
        """The initial learning rate, then the one after each signal, without training.

        Args:
            hypergradients: h_1, h_2, ...; if multiplicative, cosines h / (||g|| ||u||).
            initial_lr: the learning rate before them.
            **arguments: the constructor's; the level is "global" or "group".

        >>> HypergradientLR.simulate([1.0, 0.0, -0.5], initial_lr=0.5, hyper_lr=0.5)
        [0.5, 0.75, 0.75, 0.5625]
        """
        scheduler = cls(idle_optimizer(initial_lr), **arguments)
        if scheduler.scales:
            raise ValueError(f"`level` must be 'global' or 'group', got {scheduler.level!r}")
        curve = scheduler.current_lrs()
        for signal in hypergradients:
            scheduler._move([float(signal)])
            curve += scheduler.current_lrs()
        return curve

    @property
    def scales(self) -> list[Tensor]:
        """Factors of the parameters' steps, in the optimizer's order; else empty."""
        return [] if self._scales is None else self._scales.applied

    def detach(self) -> None:
        """Leave the optimizer and its learning rates alone from now on."""
        self._hooks.remove()

    def step(self, loss: float | Tensor | None = None) -> None:
        """Count a step; the learning rate itself changes within `optimizer.step()`.

        A loss is accepted as by the other schedulers, but not needed, and not waited for.
        """
        if isinstance(loss, Tensor):
            check_loss_tensor(loss)
        elif loss is not None:
            read_loss(loss)
        super().step()

    def _next_lrs(self) -> list[float]:
        if self._uncapped is not None:
            self._uncapped = self._lrs_before_cap()
        return self.current_lrs()  # as they were set within `optimizer.step()`

    def _start(self, *, at_milestone: bool) -> list[float]:
        self._set_bases()
        self._last_step.forget()
        self._scales: StepScales | None = None
        self._mean_scale = 1.0
        if self.level in ("tensor", "entry"):
            self._scales = StepScales(self._last_step.parameters, per_entry=self.level == "entry")
            is_bound = self._scales.limit(self._ceilings(self._bases))
            self.bound_by = self._guarantee if is_bound else None
            return self._bases
        limited = self.limit(self._bases)
        self._uncapped = self._bases if self.bound_by is not None else None
        return limited

    def _join(self, lrs: list[float]) -> list[float]:
        joined = super()._join(lrs) if self.level == "global" else lrs
        if self._uncapped is not None:
            lead = self._leader
            share = self._uncapped[lead] / self.current_lrs()[lead]
            self._uncapped = [*self._uncapped, *(lr * share for lr in joined)]
        self._set_bases()
        if self._scales is not None:
            self._scales.add_parameters()
        return joined

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._set_bases()

    def _set_bases(self) -> None:
        self._last_step.add_groups()
        self._bases = [float(lr) for lr in self.base_lrs]
        largest, is_global = max(self._bases), self.level == "global"
        self._leader = self._bases.index(largest) if is_global else 0
        self._ratios = [base / largest if is_global else 1.0 for base in self._bases]
        self._weights = [
            (self._leader if is_global else k, self._ratios[k]) for k in self._last_step.group_of
        ]

    def _before_step(self) -> None:
        # a GradScaler calls fused optimizers for the steps that they skip, too
        found_inf = getattr(self.optimizer, "found_inf", None)
        if self.is_waiting or (found_inf is not None and found_inf.item()):
            return
        self._take_in_groups()
        gradients = self._last_step.gradients()
        last = self._last_step.directions(self.scales)
        directions = {i: u for i, u in last.items() if i in gradients}
        kind = {"as_cosine": self.update == "multiplicative"}
        if self._scales is None:
            num_groups = len(self._bases)
            self._move(group_signals(gradients, directions, self._weights, num_groups, **kind))
        else:
            kind["per_entry"] = self.level == "entry"
            self._rescale(self._scales, factor_signals(gradients, directions, **kind))
            self._scales.hold(gradients)
        self._last_step.remember(gradients, self.current_lrs())

    def _after_step(self) -> None:
        if self._scales is not None:
            self._scales.apply()

    def _move(self, signals: list[float]) -> None:
        """Change the learning rates of the groups."""
        before, lead = self._lrs_before_cap(), self._leader
        is_relative = self.update == "multiplicative"
        bounds = [(self.min_factor * base, self.max_factor * base) for base in self._bases]
        moved = [
            next_lr(lr, self.hyper_lr * signal, *pair, is_relative=is_relative)
            for lr, signal, pair in zip(before, signals, bounds, strict=True)
        ]
        lrs = [lr for lr, _ in moved]
        if self.level == "global" and lrs[lead] != before[lead]:
            lrs = [lrs[lead] * ratio for ratio in self._ratios]
        eta_max = self._ask_cap()
        limited, self._uncapped = self._within(lrs, eta_max), None
        if bound_by := self.bound_by:
            self._uncapped = shortened_raises(before, lrs, eta_max)
            limited = self._within(self._uncapped, eta_max)
        self.bound_by = bound_by or moved[lead][1]
        if limited[0] != self.current_lrs()[0]:
            rule = "cap" if lrs[0] == before[0] else self.update
            self.record(rule, signals[lead], 0.0, limited[0])
        self.set_lrs(limited)

    def _rescale(self, scales: StepScales, signals: dict[int, Tensor]) -> None:
        """Change the factors of the tensors or entries."""
        is_bound = scales.limit(self._ceilings(self.current_lrs()))
        if signals:
            if self.update == "additive":
                bases = [self._bases[self._last_step.group_of[i]] for i in signals]
                rates = [self.hyper_lr / base if base > 0.0 else 0.0 for base in bases]
                changes = torch._foreach_mul(list(signals.values()), rates)
            else:
                factors = [scales.factors[i] for i in signals]
                changes = torch._foreach_mul(list(signals.values()), factors)
                torch._foreach_mul_(changes, self.hyper_lr)
            by_index = dict(zip(signals, changes, strict=True))
            is_bound = scales.add(by_index, low=self.min_factor, high=self.max_factor)
        self.bound_by = self._guarantee if is_bound else None
        self._record_means(scales, signals)

    def _ceilings(self, lrs: list[float]) -> list[float] | None:
        """The largest factor of every parameter that is within the cap, if there is one."""
        if self.cap is None:
            return None
        # the factors' own rounding must not exceed the cap
        eta_max = self._ask_cap() * (1.0 - torch.finfo(torch.float32).eps)
        ceilings = [eta_max / lr if lr > 0.0 else math.inf for lr in lrs]
        return [ceilings[k] for k in self._last_step.group_of]

    def _record_means(self, scales: StepScales, signals: dict[int, Tensor]) -> None:
        """Log the change of the first group's mean learning rate."""
        first = [i for i, k in enumerate(self._last_step.group_of) if k == 0]
        count = max(1, sum(scales.applied[i].numel() for i in first))
        terms = [scales.applied[i].sum() for i in first]
        values = read_numbers(terms + [signals[i].sum() for i in first if i in signals])
        before, mean = self._mean_scale, sum(values[: len(first)]) / count
        self._mean_scale = mean
        if mean != before:
            for name in ("min_factor", "max_factor"):
                if math.isclose(mean, getattr(self, name), rel_tol=1e-6):
                    self.bound_by = self.bound_by or name
            signal, lr = sum(values[len(first) :]) / count, self.current_lrs()[0]
            rule = "cap" if signal == 0.0 else self.update
            self.record(rule, signal, 0.0, lr * mean, old_lr=lr * before)

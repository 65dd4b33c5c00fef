"""LineSearchLR: the learning rate of every step from trial steps on its own minibatch."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrpilot.arguments import require_choice, require_sgd_or_adam, require_within
from lrpilot.caps.cap import Cap
from lrpilot.loss import read_loss
from lrpilot.schedulers.base import AdaptiveLR, idle_optimizer
from lrpilot.schedulers.line_search.conditions import Found, armijo_holds, goldstein_holds
from lrpilot.schedulers.line_search.trial_step import ForwardState, mean_loss, trial_steps
from lrpilot.state import state_fields

CONDITIONS = ("armijo", "goldstein")
RESETS = ("keep", "grow", "restart")


class LineSearchLR(AdaptiveLR):
    """Stochastic line search: the longest tried step that lowers the loss of its own minibatch.

    Of the learning rates eta_0 b^k, k = 0, 1, ..., it takes the first with

        f(w - eta d) <= f(w) - c eta <g, d>                        (Armijo)

    where f is the loss of the minibatch, g its gradient, and d = g for SGD, d = g / (sqrt(v^) +
    eps) for Adam and AdamW. Goldstein's condition also asks for f(w - eta d) >= f(w) - (1 - c)
    eta <g, d>: shorter steps are multiplied by `gamma`, and once a too long and a too short one
    are known their geometric mean is tried. `reset` says where the search of the next step begins:
    at eta ("keep", so an Armijo search can only shorten), at eta gamma^(1/batches per epoch)
    ("grow") or at the initial learning rate ("restart"). The first begins there. `search`, with a
    closure of the minibatch's loss, takes the place of the backward pass; see below.

    Prefer it where there is no budget to tune a learning rate and the model can fit its data
    (interpolation, full batches, convex losses). With much gradient noise it follows the noise,
    and does not decay by itself. Each trial costs one forward pass without a graph, a third to two
    thirds of a training step, and a search makes little more than one; memory grows by a copy of
    the parameters (by two with Adam or weight decay).

    Every trial runs on the same random numbers (torch's CPU and CUDA generators) and begins with
    the same buffers of `model`; all end as one forward pass leaves them. Other state that the
    closure advances is not replayed.

    The condition holds for the step that the optimizer makes if that is along d: SGD without
    momentum, Adam without its first beta. Weight decay that torch adds to the gradient is part of
    f and g; AdamW's decoupled decay is left out. Gradients that are clipped after the search
    change the step; a GradScaler has no place, since `search` calls `backward`.

    With several groups one factor multiplies all initial learning rates, and <g, d> is weighted
    by them. The processes of a `DistributedDataParallel` model average their losses, and choose
    alike. In a `SequentialLR` the search begins at the milestone. Rules in the log (signal: fall
    of the loss; threshold: c eta <g, d>): "accepted" at the first trial, "backtracked",
    "lengthened", "gave up" after `max_trials`, and "kept" without a trial, when loss or slope (the
    signal) is not finite or the slope is not positive.

    Args:
        optimizer: torch's SGD, Adam or AdamW.
        model: the module (or a `ModuleList` of them) whose buffers the closure changes, such as
            the running statistics of BatchNorm; None if there is none.
        condition: "armijo" or "goldstein".
        reset: "keep", "grow" or "restart".
        batches_per_epoch: steps in which "grow" multiplies the learning rate by `gamma`.
        c: in (0, 1), below 1/2 for Goldstein.
        backtrack: b in (0, 1).
        gamma: above 1.
        max_trials: forward passes per search, at most.
        fallback_factor: the step after giving up, relative to the initial learning rate, if no
            trial passed Armijo's condition; else the longest that did. The next search begins
            where this one ended if the loss still rose there, else where it began.
        max_factor: no learning rate exceeds this times the initial one.
        cap: asked once per search; no group's learning rate exceeds its answer. While it binds,
            `reset` does not move where the next search begins.
        log_size: decisions that `log` keeps.

    Raises:
        TypeError: if the optimizer or the model is of another kind.
        ValueError: if an argument is out of range.

    >>> w = torch.tensor([1.0], requires_grad=True)
    >>> optimizer = torch.optim.SGD([w], lr=1.0)
    >>> scheduler = LineSearchLR(optimizer, None, backtrack=0.5, reset="keep")
    >>> for _ in range(3):
    ...     loss = scheduler.search(lambda: 2 * w.square().sum())
    ...     optimizer.step()
    ...     scheduler.step()
    ...     print(loss.item(), scheduler.get_last_lr(), scheduler.num_trials)
    2.0 [0.25] 3
    0.0 [0.25] 0
    0.0 [0.25] 0

    References:
        Vaswani, Mishkin, Laradji, Schmidt, Gidel, Lacoste-Julien. Painless stochastic gradient:
        interpolation, line-search, and convergence rates. 2019.
        Vaswani, Laradji, Kunstner, Meng, Schmidt, Lacoste-Julien. Adaptive gradient methods
        converge faster with over-parameterization (but you should do a line-search). 2020.
    """

    _state_fields = state_fields(
        "num_trials", "total_trials", next_factor="_next_factor", has_searched="_has_searched"
    )
    moves_before_step = True
    _settings = (
        *("condition", "reset", "batches_per_epoch", "c", "backtrack", "gamma"),
        *("max_trials", "fallback_factor", "max_factor"),
    )

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None,
        *,
        condition: str = "armijo",
        reset: str = "grow",
        batches_per_epoch: int = 500,
        c: float = 0.1,
        backtrack: float = 0.9,
        gamma: float = 2.0,
        max_trials: int = 100,
        fallback_factor: float = 1e-6,
        max_factor: float = 1000.0,
        cap: Cap | None = None,
        log_size: int = 1000,
    ) -> None:
        require_sgd_or_adam(optimizer)
        if any(group["maximize"] for group in optimizer.param_groups):
            raise ValueError("`optimizer` must have maximize=False, got True")
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a Module or None, got {type(model).__name__}")
        require_choice("condition", condition, CONDITIONS)
        require_choice("reset", reset, RESETS)
        for name, value, interval in (
            ("c", c, "(0, 0.5)" if condition == "goldstein" else "(0, 1)"),
            ("backtrack", backtrack, "(0, 1)"),
            ("gamma", gamma, "(1, inf)"),
            ("fallback_factor", fallback_factor, "(0, 1)"),
            ("batches_per_epoch", batches_per_epoch, "[1, inf]"),
            ("max_trials", max_trials, "[1, inf)"),
            ("max_factor", max_factor, "[1, inf)"),
        ):
            require_within(name, value, interval)
        self.model = model
        self.condition, self.reset, self.max_trials = condition, reset, max_trials
        self.batches_per_epoch = batches_per_epoch
        self.c, self.backtrack, self.gamma = float(c), float(backtrack), float(gamma)
        self.fallback_factor, self.max_factor = float(fallback_factor), float(max_factor)
        self.num_trials = self.total_trials = 0
        self._next_factor = 1.0
        self._has_searched = False
        super().__init__(optimizer, cap=cap, log_size=log_size)

    def search(self, closure: Callable[[], Tensor]) -> Tensor:
        """Compute the gradients, and set the learning rates of the step that follows.

        The optimizer's gradients are cleared first: they must be those of this minibatch.

        Args:
            closure: computes the loss of the minibatch, without `backward`; called once for the
                gradients and, without a graph, once per trial.

        Returns:
            The loss before the step, detached.

        Raises:
            TypeError: if the closure does not return a tensor.
            ValueError: if the loss has several elements, or a gradient is sparse.
        """
        self._take_in_groups()
        start = ForwardState(self.model)
        self.optimizer.zero_grad()
        with torch.enable_grad():
            loss = closure()
            value = mean_loss(loss, self.model)
            loss.backward()
        if not self.is_waiting:
            with trial_steps(self.optimizer, self.model, closure, start) as (slopes, loss_at):
                self._choose(value, slopes, loss_at)
        return loss.detach()

    def _next_lrs(self) -> list[float]:
        if not self._has_searched:
            raise RuntimeError("`step` needs a search: call `search(closure)` before every step")
        self._has_searched = False
        return self.current_lrs()  # as the search has set them

    @classmethod
    def simulate(
        cls,
        curves: Iterable[tuple[Callable[[float], float], float]],
        *,
        initial_lr: float,
        **arguments: Any,
    ) -> list[float]:
        """The initial learning rate, then the one that each search finds, without training.

        Args:
            curves: of each step the loss as a function of its learning rate, and <g, d>, which
                is the squared norm of the gradient for SGD.
            initial_lr: the initial learning rate.
            **arguments: the constructor's.

        >>> curve = lambda lr: (1 - lr) ** 2
        >>> LineSearchLR.simulate([(curve, 2.0)] * 2, initial_lr=8.0, backtrack=0.5, reset="keep")
        [8.0, 1.0, 1.0]
        """
        optimizer = idle_optimizer(initial_lr)
        scheduler = cls(optimizer, None, **arguments)
        lrs = scheduler.current_lrs()
        for curve, slope in curves:
            loss = read_loss(curve(0.0))
            scheduler._choose(loss, [slope], partial(_first_loss, curve))
            lrs += scheduler.current_lrs()
            optimizer.step()
            scheduler.step()
        return lrs

    def _choose(
        self, loss: float, slopes: list[float], loss_at: Callable[[list[float]], float]
    ) -> None:
        """Search, log the decision and set the learning rates."""
        initial_lrs = [float(lr) for lr in self.base_lrs]
        slope = sum(lr * slope for lr, slope in zip(initial_lrs, slopes, strict=True))
        self._has_searched = True
        self.num_trials = 0
        if not (math.isfinite(loss) and 0.0 < slope < math.inf):
            lrs = self.limit(self.current_lrs())
            self.record("kept", slope if math.isfinite(loss) else loss, math.nan, lrs[0])
        else:
            limits = self.limit([self.max_factor * lr for lr in initial_lrs])
            largest = max(limits) / max(initial_lrs)

            def lrs_at(factor: float) -> list[float]:
                pairs = zip(initial_lrs, limits, strict=True)
                return [min(factor * lr, limit) for lr, limit in pairs]

            found = self._search_line(loss, slope, largest, lambda x: loss_at(lrs_at(x)))
            lrs = lrs_at(found.factor)
            at_limit = found.factor == largest
            self.bound_by = (self.bound_by or "max_factor") if at_limit else None
            if found.rule != "accepted" or lrs != self.current_lrs():
                self.record(found.rule, found.fall, found.required, lrs[0])
        self.set_lrs(lrs)

    def _search_line(
        self, loss: float, slope: float, largest: float, loss_at: Callable[[float], float]
    ) -> Found:
        """Find the factor of the initial learning rates, and set where the next search begins."""
        low, high = 0.0, math.inf
        best = Found(min(self.fallback_factor, largest), "gave up", math.nan, math.nan)
        factor = first = min(self._next_factor, largest)
        for _ in range(self.max_trials):
            last = factor
            new_loss = loss_at(factor)
            self.num_trials += 1
            self.total_trials += 1
            fall, required = loss - new_loss, self.c * factor * slope
            is_goldstein = self.condition == "goldstein" and factor < largest
            trial = {"lr": factor, "slope": slope, "c": self.c}
            if fits := armijo_holds(loss, new_loss, **trial):
                best = Found(factor, "gave up", fall, required)
            elif low == 0.0:
                best = best._replace(fall=fall, required=required)
            if fits and (not is_goldstein or goldstein_holds(loss, new_loss, **trial)):
                # where a cap shortened the first trial, the next search begins where this one would
                if not factor == largest < min(self._next_factor, self.max_factor):
                    self._next_factor = self._after(factor)
                rule = "backtracked" if factor < first else "lengthened"
                return best._replace(rule="accepted" if factor == first else rule)
            if fits:
                low, proposal = factor, min(factor * self.gamma, largest)
            else:
                high, proposal = factor, factor * self.backtrack
            factor = proposal if low < proposal < high else math.sqrt(low * high)
        # a loss that did not rise at the shortest step is flat or rounded, not steep
        is_flat = -math.inf < new_loss <= loss
        self._next_factor = self._after(
            low or (first if is_flat else max(last, self.fallback_factor))
        )
        return best

    def _after(self, factor: float) -> float:
        """Where the search after one that ended at `factor` begins."""
        if self.reset == "restart":
            return 1.0
        growth = self.gamma ** (1 / self.batches_per_epoch) if self.reset == "grow" else 1.0
        return factor * growth


def _first_loss(curve: Callable[[float], float], lrs: list[float]) -> float:
    return read_loss(curve(lrs[0]))

"""LineSearchLR: the learning rate of every step from trial steps on its own minibatch."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW, Optimizer

from lrpilot.caps.cap import Cap
from lrpilot.loss import read_loss
from lrpilot.schedulers.base import AdaptiveLR, idle_optimizer
from lrpilot.schedulers.line_search.trial_step import DescentLine, ForwardState
from lrpilot.state import state_fields

CONDITIONS = ("armijo", "goldstein")
RESETS = ("keep", "grow", "restart")


def armijo_holds(loss: float, new_loss: float, *, lr: float, slope: float, c: float = 0.1) -> bool:
    """Whether f(w - lr d) <= f(w) - c lr <g, d>: the step is not too long.

    Args:
        loss: f(w).
        new_loss: f(w - lr d); NaN and infinities fail.
        lr: the learning rate of the step.
        slope: <g, d>, the fall of the loss per unit of learning rate at w.
        c: the part of the fall promised by the slope that must be kept, in (0, 1).

    >>> [armijo_holds(1.0, (1 - lr) ** 2, lr=lr, slope=4 / 2, c=0.5) for lr in (0.5, 1.0, 1.5)]
    [True, True, False]
    """
    return math.isfinite(new_loss) and new_loss <= loss - c * lr * slope


def goldstein_holds(
    loss: float, new_loss: float, *, lr: float, slope: float, c: float = 0.1
) -> bool:
    """Whether, besides `armijo_holds`, f(w - lr d) >= f(w) - (1 - c) lr <g, d>: not too short.

    Arguments as of `armijo_holds`; c is in (0, 1/2).

    >>> [goldstein_holds(1.0, (1 - lr) ** 2, lr=lr, slope=2.0) for lr in (0.01, 0.5, 1.9)]
    [False, True, False]
    """
    long_enough = new_loss >= loss - (1 - c) * lr * slope
    return long_enough and armijo_holds(loss, new_loss, lr=lr, slope=slope, c=c)


class LineSearchLR(AdaptiveLR):
    """Stochastic line search: the longest tried step that lowers the loss of its own minibatch.

    Of the learning rates eta_0 b^k, k = 0, 1, ..., it takes the first with

        f(w - eta d) <= f(w) - c eta <g, d>                        (Armijo)

    where f is the loss of the minibatch, g its gradient, and d = g for SGD, d = g / (sqrt(v^) +
    eps) for Adam and AdamW. Goldstein's condition also asks for f(w - eta d) >= f(w) - (1 - c)
    eta <g, d>: shorter steps are multiplied by `gamma`, and once both a too long and a too short
    one are known by the geometric mean of the two. `reset` says where the search of the next
    step begins: at eta ("keep", so an Armijo search can only shorten), at eta gamma^(1/batches
    per epoch) ("grow") or at the initial learning rate ("restart"). The first begins there::

        scheduler = LineSearchLR(optimizer, model, batches_per_epoch=len(batches))
        for x, y in batches:
            loss = scheduler.search(lambda: loss_function(model(x), y))
            optimizer.step()
            scheduler.step()

    Prefer it where there is no budget to tune a learning rate and the model can fit its data
    (interpolation, full batches, convex losses): there it converges from nearly any initial
    rate. With much gradient noise it follows the noise, and does not decay by itself. Each trial
    costs one forward pass without a graph, a third to two thirds of a training step, and a search
    makes little more than one; memory grows by a copy of the parameters (by two with Adam or
    weight decay).

    Every trial runs on the same random numbers (torch's CPU and CUDA generators) and begins with
    the same buffers of `model`; parameters, buffers and generators end as one forward pass leaves
    them. Other generators and state that the closure advances are not replayed.

    The condition holds for the step that the optimizer makes if that is along d: SGD without
    momentum, Adam without its first beta. With momentum the search ignores it, and nothing is
    guaranteed for the step. Weight decay that torch adds to the gradient is part of both f, as
    weight_decay ||w||^2 / 2, and g; AdamW's decoupled decay is left out of the search. Gradients
    that are changed after it (clipping) change the step, and it is no longer the one tried; a
    GradScaler has no place, since `search` calls `backward`.

    With several groups one factor multiplies all initial learning rates, and <g, d> is weighted
    by them. The losses of a `DistributedDataParallel` model are averaged over its processes, so
    that all make the same choice. In a `SequentialLR` the search begins at the milestone; until
    then `search` only computes the gradients. Rules in the log (signal: measured fall of the
    loss; threshold: c eta <g, d>): "accepted" at the first trial, "backtracked", "lengthened",
    "gave up" after `max_trials`, and "kept" without a trial, when loss or slope is not finite or
    the slope is not positive (signal: that value). A cap and `max_factor` bound every trial.

    Args:
        optimizer: torch's SGD, Adam or AdamW.
        model: the module (or a `ModuleList` of them) whose buffers the closure changes, such as
            the running statistics of BatchNorm; None if there is none.
        condition: "armijo" or "goldstein".
        reset: "keep", "grow" or "restart".
        batches_per_epoch: steps in which "grow" multiplies the learning rate by `gamma`.
        c: in (0, 1), below 1/2 for Goldstein.
        backtrack: b in (0, 1), the factor of a step that was too long.
        gamma: above 1.
        max_trials: forward passes per search, at most.
        fallback_factor: the step after giving up, relative to the initial learning rate. The
            next search begins where this one ended if the loss still rose there, else where it
            began. (With Goldstein the longest step that passed Armijo is made instead.)
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
        "condition",
        "reset",
        "batches_per_epoch",
        "c",
        "backtrack",
        "gamma",
        "max_trials",
        "fallback_factor",
        "max_factor",
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
        _check_kinds(optimizer, model)
        _check_choice("condition", condition, CONDITIONS)
        _check_choice("reset", reset, RESETS)
        largest_c = 0.5 if condition == "goldstein" else 1.0
        for name, value, low, high in (
            ("c", c, 0.0, largest_c),
            ("backtrack", backtrack, 0.0, 1.0),
            ("gamma", gamma, 1.0, math.inf),
            ("fallback_factor", fallback_factor, 0.0, 1.0),
        ):
            if not low < value < high:
                raise ValueError(f"`{name}` must be in ({low:g}, {high:g}), got {value}")
        for name, value in (("batches_per_epoch", batches_per_epoch), ("max_trials", max_trials)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if not 1.0 <= max_factor < math.inf:
            raise ValueError(f"`max_factor` must be at least 1 and finite, got {max_factor}")
        self.model = model
        self.condition = condition
        self.reset = reset
        self.batches_per_epoch = batches_per_epoch
        self.c = float(c)
        self.backtrack = float(backtrack)
        self.gamma = float(gamma)
        self.max_trials = max_trials
        self.fallback_factor = float(fallback_factor)
        self.max_factor = float(max_factor)
        self.num_trials = 0
        self.total_trials = 0
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
            ValueError: if the loss has several elements or a gradient is sparse.
        """
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            self._take_in_groups()
        start = ForwardState(self.model)
        self.optimizer.zero_grad()
        with torch.enable_grad():
            loss = closure()
            value = self._read(loss)
            loss.backward()
        if not self.is_waiting:
            end = ForwardState(self.model)
            lines = [DescentLine(self.optimizer, group) for group in self.optimizer.param_groups]

            def loss_at(lrs: list[float]) -> float:
                start.restore()
                for line, lr in zip(lines, lrs, strict=True):
                    line.move(lr)
                change = sum(line.penalty_change(lr) for line, lr in zip(lines, lrs, strict=True))
                return self._read(closure()) + change

            try:
                with torch.no_grad():
                    self._choose(value, [line.slope for line in lines], loss_at)
            finally:
                for line in lines:
                    line.restore()
                end.restore()
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
        """The learning rates of a run whose losses along its steps are given, without training.

        Args:
            curves: of each step the loss as a function of its learning rate, and <g, d>, which
                is the squared norm of the gradient for SGD.
            initial_lr: the initial learning rate.
            arguments: as of the constructor.

        Returns:
            The initial learning rate, then the one that each search finds.

        >>> curve = lambda lr: (1 - lr) ** 2
        >>> LineSearchLR.simulate([(curve, 2.0)] * 2, initial_lr=8.0, backtrack=0.5, reset="keep")
        [8.0, 1.0, 1.0]
        """
        optimizer = idle_optimizer(initial_lr)
        scheduler = cls(optimizer, None, **arguments)
        lrs = scheduler.current_lrs()
        for curve, slope in curves:
            scheduler._choose(read_loss(curve(0.0)), [slope], partial(_first_loss, curve))
            lrs += scheduler.current_lrs()
            optimizer.step()
            scheduler.step()
        return lrs

    def _read(self, loss: Any) -> float:
        if not isinstance(loss, Tensor):
            raise TypeError(f"`closure` must return a tensor of one element, got {loss!r}")
        if isinstance(self.model, DistributedDataParallel):
            group = self.model.process_group
            loss = loss.detach().clone()
            torch.distributed.all_reduce(loss, group=group)
            loss /= torch.distributed.get_world_size(group)
        return read_loss(loss)

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
                return [
                    min(factor * lr, limit) for lr, limit in zip(initial_lrs, limits, strict=True)
                ]

            found = self._search_line(loss, slope, largest, lambda x: loss_at(lrs_at(x)))
            lrs = lrs_at(found.factor)
            at_limit = found.factor == largest
            self.bound_by = (self.bound_by or "max_factor") if at_limit else None
            if found.rule != "accepted" or lrs != self.current_lrs():
                self.record(found.rule, found.fall, found.required, lrs[0])
        self.set_lrs(lrs)

    def _search_line(
        self, loss: float, slope: float, largest: float, loss_at: Callable[[float], float]
    ) -> "_Found":
        """Find the factor of the initial learning rates, and set where the next search begins."""
        is_goldstein = self.condition == "goldstein"
        low, high = 0.0, math.inf
        best = _Found(min(self.fallback_factor, largest), "gave up", math.nan, math.nan)
        factor = first = min(self._next_factor, largest)
        for _ in range(self.max_trials):
            last = factor
            new_loss = loss_at(factor)
            self.num_trials += 1
            self.total_trials += 1
            fall, required = loss - new_loss, self.c * factor * slope
            arguments = {"lr": factor, "slope": slope, "c": self.c}
            holds = goldstein_holds if is_goldstein and factor < largest else armijo_holds
            if holds(loss, new_loss, **arguments):
                # where a cap shortened the first trial, the next search begins where this one would
                if not factor == largest < min(self._next_factor, self.max_factor):
                    self._next_factor = self._after(factor)
                rule = "backtracked" if factor < first else "lengthened"
                return _Found(factor, "accepted" if factor == first else rule, fall, required)
            if armijo_holds(loss, new_loss, **arguments):
                low, proposal = factor, min(factor * self.gamma, largest)
                best = _Found(factor, "gave up", fall, required)
            else:
                high, proposal = factor, factor * self.backtrack
                if low == 0.0:
                    best = best._replace(fall=fall, required=required)
            factor = proposal if low < proposal < high else math.sqrt(low * high)
        # a loss that did not rise at the shortest step is flat or rounded, not steep
        is_flat = -math.inf < new_loss <= loss
        end = low or (first if is_flat else max(last, self.fallback_factor))
        self._next_factor = self._after(end)
        return best

    def _after(self, factor: float) -> float:
        """Where the search after one that ended at `factor` begins."""
        if self.reset == "restart":
            return 1.0
        growth = self.gamma ** (1 / self.batches_per_epoch) if self.reset == "grow" else 1.0
        return factor * growth


class _Found(NamedTuple):
    """What a search decided, and the fall of the loss that it measured and required."""

    factor: float
    rule: str
    fall: float
    required: float


def _first_loss(curve: Callable[[float], float], lrs: list[float]) -> float:
    return read_loss(curve(lrs[0]))


def _check_kinds(optimizer: Optimizer, model: nn.Module | None) -> None:
    if not isinstance(optimizer, SGD | Adam | AdamW):
        raise TypeError(
            f"`optimizer` must be torch's SGD, Adam or AdamW, got {type(optimizer).__name__}"
        )
    if any(group["maximize"] for group in optimizer.param_groups):
        raise ValueError("`optimizer` must have maximize=False, got True")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a Module or None, got {type(model).__name__}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}")

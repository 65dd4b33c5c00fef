"""HypergradientLR: learning rates that descend the loss, too."""

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lrpilot.caps.cap import Cap
from lrpilot.loss import check_loss_tensor, read_loss, read_numbers
from lrpilot.schedulers.base import AdaptiveLR, idle_optimizer
from lrpilot.schedulers.decision_log import Decision
from lrpilot.schedulers.hypergradient.directions import LastStep
from lrpilot.schedulers.hypergradient.step_scales import StepScales
from lrpilot.state import state_fields

LEVELS = ("global", "group", "tensor", "entry")
UPDATES = ("additive", "multiplicative")


def cosine(dot: float, left: float, right: float) -> float:
    """A dot product over the norms, whose squares are `left` and `right`; 0 where one is 0.

    >>> cosine(3.0, 4.0, 9.0)
    0.5
    """
    squares = left * right
    return 0.0 if squares == 0.0 else dot / math.sqrt(squares)


def shortened_raises(before: list[float], after: list[float], eta_max: float) -> list[float]:
    """Changed learning rates whose raises, all in the same proportion, end where one is at a cap.

    What is above the cap already, since that has fallen, is not raised, and does not change.

    >>> shortened_raises([0.25, 0.125], [0.75, 0.25], 0.5)
    [0.5, 0.1875]
    """
    share = 1.0
    for old, new in zip(before, after, strict=True):
        if new > max(old, eta_max):
            share = min(share, max(0.0, (eta_max - old) / (new - old)))
    return [
        min(old + share * (new - old), max(old, eta_max)) if new > old else new
        for old, new in zip(before, after, strict=True)
    ]


def _with_closure_called(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Arguments of `optimizer.step` whose closure has run, as it makes the gradients."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return None
    with torch.enable_grad():
        loss = closure()
    return (args[0], lambda: loss), {}


class HypergradientLR(AdaptiveLR):
    """Moves the learning rate down the derivative of the loss with respect to it.

    Before the optimizer's step t, with g_t the gradient and w_t = w_{t-1} - lr u_{t-1} its last
    step, the derivative of the loss with respect to the last learning rate is -h_t::

        h_t = <g_t, u_{t-1}>
        lr <- lr + hyper_lr h_t                                  (update = "additive")
        lr <- lr (1 + hyper_lr h_t / (||g_t|| ||u_{t-1}||))      (update = "multiplicative")

    and step t uses the new one. The optimizer is torch's own, and u is read from its state after
    its step. It works by hooks of the optimizer, so the training loop is the usual one::

        scheduler = HypergradientLR(optimizer, hyper_lr=0.02)
        for batch in batches:
            optimizer.zero_grad()
            loss = model(batch)
            loss.backward()
            optimizer.step()  # changes the learning rate, then steps with it
            scheduler.step()

    At level "tensor" or "entry" the optimizer steps at its group's learning rate, which another
    scheduler may set, and the step of every tensor or entry is multiplied by its factor in
    `scales`; the rules above then hold for factor x initial learning rate.

    A signal that is NaN or infinite (or overflows) changes nothing; the next one counts again.
    Gradients are those that the optimizer gets: clipped, unscaled, averaged over ranks. Parameters
    without a gradient, now or in the last step, do not count; steps that a GradScaler skips change
    nothing; a closure runs in the hook. In a `SequentialLR` place it last, or `detach` it in time.

    The rule in `log` is the update's name, or "cap" if only that changed the learning rate; the
    signal is h or the cosine, compared with 0. At level "tensor" or "entry" the log shows means
    over the first group.

    Args:
        optimizer: torch's SGD, Adam or AdamW; its learning rates are the initial ones.
        hyper_lr: step size of the learning rate. Additive: in units of lr / h, that is of
            lr^2 / loss, so it depends on the problem (1e-3 to 1e-8 in the paper).
            Multiplicative: the largest relative change per step, below 1.
        level: what has a learning rate of its own: "global" (all groups together, in the ratio
            of their initial ones), "group", "tensor" or "entry".
        update: "multiplicative", free of units, or "additive", the paper's main rule, which may
            diverge between its bounds if `hyper_lr` is too large and there is no cap.
        min_factor: lower bound over the initial learning rate, in [0, 1]; not moved below.
        max_factor: upper bound likewise, at least 1.
        cap: asked before every optimizer step; no effective learning rate exceeds its answer. It
            shortens what is applied, not what the rules move, so that all is as before once it
            ceases to bind; but nothing is raised past it.
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
    _settings: ClassVar[tuple[str, ...]] = (
        "hyper_lr",
        "level",
        "update",
        "min_factor",
        "max_factor",
    )

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
        if not isinstance(optimizer, (SGD, Adam, AdamW)):
            kind = type(optimizer).__name__
            raise TypeError(f"`optimizer` must be torch's SGD, Adam or AdamW, got {kind}")
        for name, value, known in (("level", level, LEVELS), ("update", update, UPDATES)):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {known}, got {value!r}")
        end = 1.0 if update == "multiplicative" else math.inf
        if not 0.0 < hyper_lr < end:
            raise ValueError(f"`hyper_lr` must be in (0, {end}) if {update}, got {hyper_lr}")
        if not 0.0 <= min_factor <= 1.0:
            raise ValueError(f"`min_factor` must be in [0, 1], got {min_factor}")
        if not 1.0 <= max_factor < math.inf:
            raise ValueError(f"`max_factor` must be in [1, inf), got {max_factor}")
        self.hyper_lr = float(hyper_lr)
        self.level = level
        self.update = update
        self.min_factor = float(min_factor)
        self.max_factor = float(max_factor)
        self._last_step = LastStep(optimizer)
        if any(p.is_complex() for p in self._last_step.parameters):
            raise ValueError("`optimizer` must hold real parameters, got a complex one")
        super().__init__(optimizer, cap=cap, log_size=log_size)
        self._attach()

    def _attach(self) -> None:
        # a compiled optimizer must not trace the hooks, whose numbers change in every step
        before, after = map(torch.compiler.disable, (self._before_step, self._after_step))
        self._hooks = [
            self.optimizer.register_step_pre_hook(before),
            self.optimizer.register_step_post_hook(after),
        ]

    def __getstate__(self) -> dict[str, Any]:
        # a copied or pickled optimizer loses its hooks
        return {**self.__dict__, "_hooks": bool(self._hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        is_attached, self._hooks = self._hooks, []
        if is_attached:
            self._attach()

    @classmethod
    def simulate(
        cls, hypergradients: Iterable[float], *, initial_lr: float, **arguments: Any
    ) -> list[float]:
        """The learning rates that a sequence of signals leads to, without training.

        Args:
            hypergradients: h_1, h_2, ...; if multiplicative, cosines h / (||g|| ||u||).
            initial_lr: the learning rate before them.
            **arguments: of this class; the level is "global" or "group".

        Returns:
            One more learning rate than signals: the initial one first.

        Raises:
            ValueError: if an argument is out of range.

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
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def step(self, loss: float | Tensor | None = None) -> None:
        """Count a step; the learning rate itself changes within `optimizer.step()`.

        Args:
            loss: not needed, and not waited for; accepted as by the other schedulers.
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
        self._last_step.add_groups()
        self._last_step.forget()
        self._scales: StepScales | None = None
        if self.level in ("tensor", "entry"):
            per_entry = self.level == "entry"
            self._scales = StepScales(self._last_step.parameters, per_entry=per_entry)
        self._mean_scale = 1.0
        if self._scales is not None:
            is_bound = self._scales.limit(self._ceilings(self._bases))
            self.bound_by = self._guarantee if is_bound else None
            return list(self._bases)
        limited = self.limit(self._bases)
        self._uncapped = list(self._bases) if self.bound_by is not None else None
        return limited

    def _join(self, lrs: list[float]) -> list[float]:
        joined = super()._join(lrs) if self.level == "global" else lrs
        if self._uncapped is not None:
            lead = self._leader
            share = self._uncapped[lead] / self.current_lrs()[lead]
            self._uncapped = [*self._uncapped, *(lr * share for lr in joined)]
        self._set_bases()
        self._last_step.add_groups()
        if self._scales is not None:
            self._scales.add_parameters()
        return joined

    def check_state(self, state: Any) -> None:
        """Refuse also a state of other parameters."""
        super().check_state(state)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if any(i >= len(parameters) for i in state["last_step"]["moved"]):
            raise ValueError(
                f"`state_dict` must be of {len(parameters)} parameters like this scheduler, got "
                f"one that has moved number {max(state['last_step']['moved'])}"
            )
        if self._scales is not None:
            shapes = [tuple(p.shape) if self.level == "entry" else () for p in parameters]
            theirs = [tuple(factor.shape) for factor in state["scales"]["factors"]]
            if theirs != shapes:
                raise ValueError(f"`state_dict` must have scales of shapes {shapes}, got {theirs}")

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._set_bases()

    def _set_bases(self) -> None:
        self._bases = [float(lr) for lr in self.base_lrs]
        largest = max(self._bases)
        self._leader = self._bases.index(largest) if self.level == "global" else 0
        self._ratios = [base / largest if self.level == "global" else 1.0 for base in self._bases]

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.is_waiting:
            return None
        replaced = _with_closure_called(args, kwargs)
        # a GradScaler calls fused optimizers for the steps that they skip, too
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not found_inf.item():
            with torch.no_grad():
                self._adapt()
        return replaced

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        if self._scales is not None:
            self._scales.apply()

    def _adapt(self) -> None:
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            self._take_in_groups()
        gradients = self._last_step.gradients()
        last = self._last_step.directions(self.scales)
        directions = {i: u for i, u in last.items() if i in gradients}
        if self._scales is None:
            self._move(self._lr_signals(gradients, directions))
        else:
            self._rescale(self._scales, self._scale_signals(gradients, directions))
            self._scales.hold(gradients)
        self._last_step.remember(gradients, self.current_lrs())

    def _lr_signals(
        self, gradients: dict[int, Tensor], directions: dict[int, Tensor]
    ) -> list[float]:
        """The h or cosine of every group (global: of the leader); 0 where nothing is known."""
        left, right = [gradients[i] for i in directions], list(directions.values())
        terms = [torch.dot(g.reshape(-1), u.reshape(-1)) for g, u in zip(left, right, strict=True)]
        if self.update == "multiplicative" and terms:
            terms += [*torch._foreach_norm(left), *torch._foreach_norm(right)]
        values = read_numbers(terms)
        sums = [[0.0, 0.0, 0.0] for _ in self._bases]
        for j, i in enumerate(directions):
            group = self._last_step.group_of[i]
            row = sums[self._leader if self.level == "global" else group]
            ratio = self._ratios[group]
            row[0] += ratio * values[j]
            if self.update == "multiplicative":
                norm, other = values[j + len(left)], ratio * values[j + 2 * len(left)]
                row[1] += norm * norm
                row[2] += other * other
        return [row[0] if self.update == "additive" else cosine(*row) for row in sums]

    def _next_lr(self, lr: float, base: float, signal: float) -> tuple[float, str | None]:
        """The next learning rate, and the bound that shortened the change, if any."""
        if signal == 0.0 or not math.isfinite(signal):
            return lr, None
        change = self.hyper_lr * signal
        target = lr + change if self.update == "additive" else lr * (1.0 + change)
        # what another scheduler has set beyond a bound is not pulled back
        low, high = min(self.min_factor * base, lr), max(self.max_factor * base, lr)
        if low <= target <= high:
            return target, None
        return (low, "min_factor") if target < low else (high, "max_factor")

    def _move(self, signals: list[float]) -> None:
        """Change the learning rates of the groups."""
        before, lead = self._lrs_before_cap(), self._leader
        moved = [self._next_lr(*x) for x in zip(before, self._bases, signals, strict=True)]
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

    def _scale_signals(
        self, gradients: dict[int, Tensor], directions: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        """The h or cosine of every tensor or entry; 0 where it is not finite."""
        if not directions:
            return {}
        left, right = [gradients[i] for i in directions], list(directions.values())
        signals = list(torch._foreach_mul(left, right))
        if self.level == "tensor":
            signals = [signal.sum() for signal in signals]
        if self.update == "multiplicative" and self.level == "tensor":
            norms = torch._foreach_mul(torch._foreach_norm(left), torch._foreach_norm(right))
            torch._foreach_div_(signals, norms)
        elif self.update == "multiplicative":
            torch._foreach_div_(signals, torch._foreach_abs(signals))
        for signal in signals:
            signal.nan_to_num_(0.0, 0.0, 0.0)
        return dict(zip(directions, signals, strict=True))

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
        before, self._mean_scale = self._mean_scale, sum(values[: len(first)]) / count
        if self._mean_scale != before:
            for name in ("min_factor", "max_factor"):
                if math.isclose(self._mean_scale, getattr(self, name), rel_tol=1e-6):
                    self.bound_by = self.bound_by or name
            signal, lr = sum(values[len(first) :]) / count, self.current_lrs()[0]
            rule = "cap" if signal == 0.0 else self.update
            lrs = (lr * before, lr * self._mean_scale)
            bound = self.bound_by or ""
            self.log.add(Decision(self.last_epoch, *lrs, signal, 0.0, rule, bound))

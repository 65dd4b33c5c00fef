"""GreedyLR: raise the learning rate while the loss falls, lower it when it does not."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from lrpilot.arguments import require_count
from lrpilot.caps.cap import Cap
from lrpilot.schedulers.base import dry_run, idle_optimizer
from lrpilot.schedulers.greedy.arguments import ARGUMENTS, resolve_arguments
from lrpilot.schedulers.greedy.bounds import AbsoluteBounds, Bounds, RelativeBounds
from lrpilot.schedulers.greedy.rules import PaperRule, Rule, TransformersRule
from lrpilot.schedulers.greedy.trend import TrendRule
from lrpilot.schedulers.loss_driven import LossDrivenLR
from lrpilot.state import state_fields

PARTS: dict[str, tuple[type[Rule], type[Bounds]]] = {
    "robust": (TrendRule, RelativeBounds),
    "transformers": (TransformersRule, AbsoluteBounds),
    "paper": (PaperRule, AbsoluteBounds),
}


class ReachableLRs(NamedTuple):
    """The learning rates that no sequence of finite losses can leave, over all groups."""

    lowest: float
    highest: float


class GreedyLR(LossDrivenLR):
    """Divides the learning rate by `factor` while the loss improves, else multiplies it by it.

    `step(loss)` is called once per minibatch or once per evaluation; every count below is in
    calls::

        scheduler = GreedyLR(optimizer)
        for batch in batches:
            optimizer.zero_grad()
            loss = model(batch)
            loss.backward()
            optimizer.step()
            scheduler.step(loss)

    What improving means is the semantics'. Arguments left out take its defaults:

    - "robust": progress is a trend that stands out from the noise. The slope of the losses since
      the last move is weighed against its standard error (see `TrendRule`): a significant fall
      raises, a significant rise lowers at once, `patience` calls without either are a plateau and
      lower. All groups share one factor in [`min_factor`, `max_factor`], relative to the initial
      learning rates. A NaN or infinite loss lowers at once and is forgotten. In cooldown and
      warmup the learning rate keeps moving in its direction, whatever the losses.
    - "transformers": the class of that name in Hugging Face's transformers, call for call, with
      its arguments and defaults: more than `patience` calls in a row that beat the best so far by
      `threshold` raise, more than `patience` that do not lower, down to `min_lr` and up to
      `max_lr`, which are absolute. Cooldown and warmup suspend everything. Its known traps are
      kept, to reproduce runs: look at `check_reachable` before using it.
    - "paper": the same, with the holds of the authors' first code (the best still updates; a
      cooldown ignores bad calls only, a warmup good calls only), a relative threshold that is
      correct for negative metrics, and a smoothing that NaN does not poison.

    In `SequentialLR` or `ChainedScheduler`, which call `step()` without a loss, call
    `scheduler.observe(loss)` first.

    Args:
        optimizer: the wrapped optimizer; its learning rates are the initial ones.
        semantics: "robust", "transformers" or "paper"; see above.
        mode: "min" or "max": whether the metric should fall or rise.
        factor: of a lowering; a raise divides by it. Below 1. Default 0.9 (else 0.95).
        patience: calls; see above. Default 20 (else 10).
        threshold: least change that counts. Default 1e-6.
        threshold_mode: "rel", in units of the metric, or "abs". Default "rel" (else "abs").
        cooldown: calls after a lowering; see above. Default 0.
        warmup: calls after a raise; see above. Default 0.
        window_size: calls, default 40: those that a trend takes at least ("robust"), or those that
            are averaged if `smooth` (default 50).
        reset_start: lowerings that end at the lower bound before the initial learning rates are
            restored. Default: never (else 500).
        significance: standard errors that a slope must exceed. "robust" only, default 4.
        min_factor: lowest learning rate over the initial one. "robust" only, default 0.01.
        max_factor: highest learning rate over the initial one. "robust" only, default 10.
        min_lr: lowest learning rate, or one per group. Not "robust", default 1e-3.
        max_lr: highest learning rate, or one per group. Not "robust", default 1.
        eps: changes up to it are not made. Not "robust", default 1e-8.
        smooth: whether the metric is averaged over `window_size`. Not "robust", default False.
        cap: asked before every step; no group's learning rate exceeds its answer. While it binds
            nothing is raised, and a lowering begins at the bound learning rate.
        log_size: decisions that `log` keeps.
        verbose: print every decision.

    Raises:
        ValueError: if an argument is out of range, or belongs to another semantics.
        RuntimeError: by `step()`, if no loss was given since the last call.

    >>> lrs = GreedyLR.simulate([5.0, 4.0, 3.0, 2.0, 2.0, 2.0], semantics="paper", patience=1)
    >>> [round(lr, 4) for lr in lrs]
    [0.1, 0.1, 0.1053, 0.1053, 0.1108, 0.1108, 0.1053]

    References:
        Subramanian, Krishnamoorthy, Murthy. Dynamic learning rate scheduling based on loss
        changes leads to faster convergence. 2025.
    """

    _state_fields = state_fields(observed_loss="_observed", rule="_rule", bounds="_bounds")
    _settings = ("semantics", "arguments")

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        semantics: str = "robust",
        mode: str | None = None,
        factor: float | None = None,
        patience: int | None = None,
        threshold: float | None = None,
        threshold_mode: str | None = None,
        cooldown: int | None = None,
        warmup: int | None = None,
        window_size: int | None = None,
        reset_start: int | None = None,
        significance: float | None = None,
        min_factor: float | None = None,
        max_factor: float | None = None,
        min_lr: float | Sequence[float] | None = None,
        max_lr: float | Sequence[float] | None = None,
        eps: float | None = None,
        smooth: bool | None = None,
        cap: Cap | None = None,
        log_size: int = 1000,
        verbose: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in ARGUMENTS}
        self.semantics = semantics
        self.arguments = resolve_arguments(semantics, given)
        rule, bounds = PARTS[semantics]
        self._rule, self._bounds = rule(self.arguments), bounds(self.arguments)
        self._move = 0
        super().__init__(optimizer, cap=cap, log_size=log_size)
        if verbose:
            self.log.subscribe(print)

    def step(  # type: ignore[override]
        self, loss: Any = None, epoch: int | None = None, *, metrics: Any = None
    ) -> None:
        """Set the learning rates of the next step; call it after `optimizer.step()`.

        Args:
            loss: a number or a tensor of one element. May be None after `observe(loss)`.
            epoch: replaces the count of the calls in `last_epoch`; nothing depends on it.
            metrics: another name of `loss`.
        """
        if self.last_epoch < 0:
            super().step()
            return
        if type(loss) is not float:
            loss = self._take(metrics if loss is None else loss)
        self._observed = None
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            self._take_in_groups()
        self._move = self._rule.decide(loss)
        if self.last_epoch == 0 and self.semantics != "transformers":
            super().step()  # with torch's warnings about the order of calls
        elif self._move or self.cap is not None:
            self._advance()
        else:
            self._count_step()
        if epoch is not None:
            self.last_epoch = max(epoch, 0)  # -1 would mean that it waits in a SequentialLR

    def _start(self, *, at_milestone: bool) -> list[float]:
        lrs = [float(lr) for lr in self.base_lrs]
        self._rule.restart()
        self._bounds.start(lrs)
        self._bounds.bound_by = ""
        self._observed = None
        return self._limited(lrs, ("start", math.nan, math.nan))

    def _next_lrs(self) -> list[float]:
        reason = ("cap", math.nan, math.nan)
        self._bounds.bound_by = ""
        # a tensor is compared in its own precision
        lrs: list[Any] = [group["lr"] for group in self.optimizer.param_groups]
        if self._uncapped is not None:
            lrs = self._lrs_before_cap()
        if self._move < 0 or (self._move > 0 and self.bound_by is None):
            reason = self._rule.reason
            share = 1.0
            free = max(float(lr) for lr in lrs)
            if self._uncapped is not None and free > 0.0:
                # of `lrs`, which have the changes of other schedulers already
                share = max(self.current_lrs()) / free
            lrs = list(self._bounds.move(lrs, self._move, capped_share=share))
            if self._bounds.was_reset:
                reason = ("reset", math.nan, math.nan)
                self._rule.restart_after_reset()
        return self._limited([float(lr) for lr in lrs], reason)

    def _limited(self, lrs: list[float], reason: tuple[str, float, float]) -> list[float]:
        limited = self.limit(lrs)
        self._uncapped = lrs if self.bound_by is not None else None
        groups = self.optimizer.param_groups
        # a tensor is compared in its own precision
        if any(bool(group["lr"] != lr) for group, lr in zip(groups, limited, strict=True)):
            self.record(*reason, limited[0], bound_by=self._bounds.bound_by)
        return limited

    def _join(self, lrs: list[float]) -> list[float]:
        present = self.current_lrs()[: -len(lrs)]
        if self._uncapped is None:
            return self._bounds.join(lrs, present)
        joined = self._bounds.join(lrs, self._uncapped)
        share = max(present) / max(self._uncapped)
        self._uncapped = self._uncapped + joined
        return [lr * share for lr in joined]

    @classmethod
    def simulate(
        cls, losses: Iterable[float | Tensor], *, initial_lr: float = 0.1, **arguments: Any
    ) -> list[float]:
        """The initial learning rate, then the one after each loss, without training.

        Args:
            losses: one per call of `step`.
            initial_lr: of the optimizer.
            **arguments: the constructor's.

        >>> GreedyLR.simulate([1.0, math.nan, 1.0], factor=0.5)
        [0.1, 0.1, 0.05, 0.05]
        """
        return dry_run(cls(idle_optimizer(initial_lr), **arguments), losses)

    def check_reachable(self, total_steps: int, *, eval_interval: int = 1) -> ReachableLRs:
        """The lowest and highest learning rate that a run from the start can reach.

        Over all groups, to within `eps`, for any losses that are finite, and without the cap.

        Args:
            total_steps: optimizer steps of the run.
            eval_interval: optimizer steps per call of `step`.

        Raises:
            ValueError: if no losses can change the learning rate, with the cure.

        >>> GreedyLR(idle_optimizer(0.1), factor=0.5).check_reachable(total_steps=120)
        ReachableLRs(lowest=0.0125, highest=0.8)
        """
        require_count("total_steps", total_steps)
        require_count("eval_interval", eval_interval)
        num_calls = total_steps // eval_interval
        start = self.initial_lrs() if self.is_waiting else list(self._bounds.start_lrs)
        reached = [start]
        for direction in (-1, 1):
            num_moves = self._rule.count_moves(num_calls, direction)
            reached.append(self._bounds.end_of_moves(start, direction, num_moves))
        if reached[1] == reached[2] == start:
            raise ValueError(self._unreachable(num_calls, eval_interval))
        return ReachableLRs(min(map(min, reached)), max(map(max, reached)))

    def _unreachable(self, num_calls: int, eval_interval: int) -> str:
        calls = self._rule.calls_per_move
        if num_calls < calls:
            return (
                f"`total_steps` must be at least {calls * eval_interval} for the learning rate to "
                f"change, got {num_calls} calls of `step`, where a first change takes {calls}: "
                f"lower `{self._rule.limiting_argument}`, or call `step` more often"
            )
        limits = {
            name: value
            for name, value in self.arguments.items()
            if name in ("factor", "min_lr", "max_lr", "eps", "min_factor", "max_factor")
        }
        return f"the bounds must leave room around {self._bounds.start_lrs}, got {limits}"

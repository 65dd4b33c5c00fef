"""Decisions of a scheduler in Weights & Biases or TensorBoard."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lrpilot.schedulers.decision_log import Decision

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from wandb import Run

Listener = Callable[[Decision], None]


def to_wandb(run: "Run", *, name: str = "lr_decisions") -> Listener:
    """A listener that logs every decision to a run: `scheduler.log.subscribe(to_wandb(run))`.

    Logged are `name/step`, the x axis, `name/new_lr`, `name/signal`, `name/threshold`, `name/rule`
    and `name/bound_by`. They join the row of the run that is open, so that the run's own steps
    stay as they are; of several decisions in one row the last is shown.

    Args:
        run: what `wandb.init` returned.
        name: prefix of the metrics; give each scheduler of a run its own.
    """
    run.define_metric(f"{name}/*", step_metric=f"{name}/step")

    def listen(decision: Decision) -> None:
        values = decision._asdict()
        del values["old_lr"]
        run.log({f"{name}/{key}": value for key, value in values.items()}, commit=False)

    return listen


def to_tensorboard(writer: "SummaryWriter", *, name: str = "lr_decisions") -> Listener:
    """A listener that writes every decision: `scheduler.log.subscribe(to_tensorboard(writer))`.

    Written are the scalars `name/new_lr`, `name/signal` and `name/threshold`, and the text
    `name/rule`, with the limit that bound, at the scheduler's step.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`.
        name: prefix of the tags; give each scheduler of a run its own.
    """

    def listen(decision: Decision) -> None:
        for key in ("new_lr", "signal", "threshold"):
            writer.add_scalar(f"{name}/{key}", getattr(decision, key), decision.step)
        bound = f", bound by {decision.bound_by}" if decision.bound_by else ""
        writer.add_text(f"{name}/rule", decision.rule + bound, decision.step)

    return listen

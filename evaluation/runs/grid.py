"""Train one run under a scheduler, through the real scheduler on a real optimizer."""

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrpilot import Policy, PolicyLR
from lrpilot.evaluation.runs.disturbance import UNDISTURBED, Disturbance
from lrpilot.loss import is_diverged
from lrpilot.schedulers.base import AdaptiveLR
from lrpilot.schedulers.line_search.scheduler import LineSearchLR
from lrpilot.tasks.runs import ClosureRun, OptimizerFactory, Run, as_closure_run
from lrpilot.tasks.task import Task

Scheduler = Callable[..., LRScheduler]


@dataclass(frozen=True)
class Method:
    """A scheduler in a comparison, or an optimizer that needs none.

    Args:
        name: as in tables.
        make: called as `make(optimizer, total_steps=...)`, with `run=` if it has that argument.
        optimizer: replaces the task's, for a rival that is an optimizer of its own.
        base_lr: replaces the task's, for a rival whose learning rate means something else.
    """

    name: str
    make: Scheduler
    optimizer: OptimizerFactory | None = None
    base_lr: float | None = None


def deployed(optimizer: Optimizer, *, policy: Policy, total_steps: int, run: Run) -> PolicyLR:
    """The policy on a run, whose last minibatch it may measure the curvature on."""
    observes = "curvature" in policy.observation.groups
    return PolicyLR(
        optimizer,
        policy,
        total_steps=total_steps,
        curvature=as_closure_run(run).repeat_loss if observes else None,
        model=getattr(run, "model", None),
    )


@dataclass(frozen=True)
class Result:
    """One training.

    Args:
        row: its columns in tables; `num_trials`, forward passes besides those of the steps, is
            among them if a line search made some.
        lrs: learning rate of every optimizer step, as the optimizer made it.
        losses: minibatch loss of every optimizer step.
        actions: of a policy, at every decision; else empty.
        origin: versions, commit, machine and command of a run that was read from a file.
    """

    row: dict[str, Any]
    lrs: Sequence[float]
    losses: Sequence[float]
    actions: Sequence[float] = ()
    origin: Mapping[str, str] = field(default_factory=dict)


def train(
    task: Task,
    method: Method,
    *,
    initial_lr_factor: float,
    seed: int,
    total_steps: int | None = None,
    disturbance: Disturbance = UNDISTURBED,
    goes_on: Callable[[int, Run], bool] | None = None,
) -> Result:
    """Train one run to its end, or to divergence, and measure its final state.

    A run has diverged when a loss is not finite, or the mean loss of its last thirtieth exceeds
    ten times the first loss (`is_diverged`). Its metrics are then infinite losses and zero
    accuracies.

    Args:
        task: what is trained.
        method: the scheduler.
        initial_lr_factor: initial learning rate over the task's `base_lr`.
        seed: of the run.
        total_steps: horizon T; default the task's.
        disturbance: what changes midway, of which the scheduler is not told.
        goes_on: asked after every step, with the number of steps; False ends the run there. By
            default nobody is asked.

    Raises:
        ValueError: if `total_steps` is below 1, or the run cannot be disturbed so.
    """
    task = task.member_of_seed(seed)
    total_steps = task.total_steps if total_steps is None else total_steps
    if total_steps < 1:
        raise ValueError(f"`total_steps` must be at least 1, got {total_steps}")
    initial_lr = (method.base_lr or task.base_lr) * initial_lr_factor
    run = task.at_lr(initial_lr, method.optimizer).start(seed)
    optimizer: Any = run.optimizer
    if hasattr(optimizer, "train"):  # schedule-free optimizers train at another point
        optimizer.train()
    whole_run = {"run": run} if "run" in inspect.signature(method.make).parameters else {}
    scheduler: Any = method.make(optimizer, total_steps=total_steps, **whole_run)
    if isinstance(scheduler, LineSearchLR):
        _search_in(run, scheduler)
    is_adaptive = isinstance(scheduler, AdaptiveLR)
    lrs: list[float] = []
    losses: list[float] = []
    start = time.perf_counter()
    first_disturbed = disturbance.first_step(total_steps)

    def step() -> Tensor:
        loss = run.step()
        # a search, or a hypergradient, sets it within the step
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        return loss

    for t in range(total_steps):
        if t < first_disturbed:
            loss = step()
        else:
            if t == first_disturbed:
                disturbance.begin(run)
            with disturbance.around_step(optimizer):
                loss = step()
        value = float(loss)
        losses.append(value)
        if not math.isfinite(value):
            break
        if is_adaptive:
            scheduler.step(loss)
        else:
            scheduler.step()
        if goes_on is not None and not goes_on(t + 1, run):
            break
    seconds = time.perf_counter() - start
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    last = losses[-max(1, total_steps // 30) :]
    train_loss = sum(last) / len(last)
    metrics = run.evaluate()
    diverged = is_diverged(train_loss, losses[0]) or not math.isfinite(metrics["held_out_loss"])
    if diverged:
        train_loss = math.inf
        metrics = {name: 0.0 if "accuracy" in name else math.inf for name in metrics}
    log = scheduler.log if isinstance(scheduler, PolicyLR) else ()
    row = {
        "task": task.name,
        "scheduler": method.name,
        "initial_lr_factor": initial_lr_factor,
        "initial_lr": initial_lr,
        "seed": seed,
        "total_steps": total_steps,
        "disturbance": disturbance.name,
        "first_loss": losses[0],
        "train_loss": train_loss,
        **metrics,
        "diverged": int(diverged),
        "brake_alarms": sum(entry.rule == "brake" for entry in log),
        "seconds": seconds,
    }
    if isinstance(scheduler, LineSearchLR):
        row["num_trials"] = scheduler.total_trials
    return Result(row, lrs, losses, [entry.signal for entry in log if entry.rule == "decision"])


def _search_in(run: Run, scheduler: LineSearchLR) -> None:
    if not isinstance(run, ClosureRun):
        raise ValueError(
            f"`make` must not be a line search for {type(run).__name__}, whose loss no closure "
            "repeats"
        )
    run.differentiate_with(scheduler.search)
    # so that the trials of a search leave the statistics of batch normalization alone
    scheduler.model = getattr(run, "model", None)

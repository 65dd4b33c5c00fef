"""Schedulers that react to the training, as functions of (optimizer, total_steps)."""

from typing import Any

from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrpilot.caps.curvature import CurvatureCap
from lrpilot.evaluation.methods.schedules import constant, cosine
from lrpilot.schedulers.greedy.scheduler import GreedyLR
from lrpilot.schedulers.guard.scheduler import Guard
from lrpilot.schedulers.hypergradient.scheduler import HypergradientLR
from lrpilot.schedulers.line_search.scheduler import LineSearchLR
from lrpilot.tasks.images.task import ImageRun


def greedy(optimizer: Optimizer, *, total_steps: int, **arguments: Any) -> GreedyLR:
    """GreedyLR, called once per minibatch; it knows no horizon."""
    return GreedyLR(optimizer, **arguments)


def greedy_transformers(
    optimizer: Optimizer, *, total_steps: int, min_factor: float, max_factor: float
) -> GreedyLR:
    """The class of transformers with its defaults, but bounds relative to the initial lr.

    Its absolute default bounds, 1e-3 and 1, mean something else at every initial lr.
    """
    lrs = [float(group["lr"]) for group in optimizer.param_groups]
    return GreedyLR(
        optimizer,
        semantics="transformers",
        min_lr=[lr * min_factor for lr in lrs],
        max_lr=[lr * max_factor for lr in lrs],
    )


def hypergradient(optimizer: Optimizer, *, total_steps: int, **arguments: Any) -> HypergradientLR:
    """Hypergradient descent on the learning rate."""
    return HypergradientLR(optimizer, **arguments)


def line_search(optimizer: Optimizer, *, total_steps: int, **arguments: Any) -> LineSearchLR:
    """Armijo line search on each minibatch, from the initial lr down."""
    return LineSearchLR(optimizer, None, **arguments)


def schedule_free(
    optimizer: Optimizer, *, total_steps: int, warmup_share: float = 0.05
) -> LRScheduler:
    """No schedule, and the optimizer's own warm-up over a share of T, as its authors recommend.

    Args:
        optimizer: one of the package schedulefree, which reads `warmup_steps` of its groups.
        total_steps: T.
        warmup_share: warm-up steps over T.

    Raises:
        ValueError: if the optimizer has no warm-up of its own.
    """
    for group in optimizer.param_groups:
        if "warmup_steps" not in group:
            kind = type(optimizer).__name__
            raise ValueError(f"`optimizer` must be one of schedulefree, got {kind}")
        group["warmup_steps"] = round(warmup_share * total_steps)
    return constant(optimizer, total_steps=total_steps)


def curvature_cap(run: ImageRun, *, interval_steps: int, batch_size: int = 64) -> CurvatureCap:
    """The measured cap of a network, on the first training images of its data."""
    images, labels = run.data.train_x[:batch_size], run.data.train_y[:batch_size]
    return CurvatureCap(
        run.optimizer,
        lambda: functional.cross_entropy(run.model(images), labels),
        model=run.model,
        interval_steps=interval_steps,
    )


def guarded_cosine(
    optimizer: Optimizer, *, total_steps: int, run: ImageRun, interval_steps: int = 20
) -> Guard:
    """Cosine under a measured cap, rolled back when the loss spikes."""
    return Guard(
        cosine(optimizer, total_steps=total_steps),
        model=run.model,
        snapshot_steps=interval_steps,
        cap=curvature_cap(run, interval_steps=interval_steps),
    )

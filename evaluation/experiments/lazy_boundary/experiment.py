"""The largest stable learning rate of wide networks: predicted by the tangent kernel, and measured.

Every learning rate is a multiple of the limit 2 n / lambda_max that the kernel at the start
predicts (see `lrpilot.tasks.theory.lazy`). Between an initial rise of the loss and the end of
learning lies the catapult: the loss rises first, and the network then converges where lambda_max
is smaller.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lrpilot.evaluation.experiments.lazy_boundary.report import boundary_table, draw, sweep_table
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds
from lrpilot.evaluation.statistics import select
from lrpilot.tasks.theory.lazy import LazyRun, LazyTask

# labels are 1 and -1: predicting 0 has the loss 0.5
LEARNED_LOSS = 0.25
DIVERGED_LOSS = 1e12
STABILITY_BRACKET = (0.5, 2.0)
LEARNING_BRACKET = (1.0, 64.0)


def compare_boundaries(
    *,
    task: LazyTask,
    activations: Sequence[str],
    widths: Sequence[int],
    multiples: Sequence[float],
    shown_width: int,
    shown_multiples: Sequence[float],
    num_growth: int,
    num_seeds: int,
    tolerance: float,
    output: Output,
) -> None:
    """Measure boundaries over activations and widths, and write tables, figure and runs.

    Args:
        task: the network; activation, width and `linearized` are replaced.
        activations: of the networks.
        widths: of the networks.
        multiples: learning rates of the sweep over the predicted limit.
        shown_width: one of `widths`, in the table of the sweep and in the figure.
        shown_multiples: of the loss curves in the figure.
        num_growth: the first so many steps in which a rise of the loss counts.
        num_seeds: networks per activation and width.
        tolerance: relative, of the measured boundaries.
        output: gets boundaries.csv, sweep.csv, curves.csv, table_lazy_boundary.md and
            lazy_boundary.png.
    """
    seeds = evaluation_seeds(num_seeds)
    cases = [
        (replace(task, activation=activation, width=width), seed)
        for activation in activations
        for width in widths
        for seed in seeds
    ]
    boundaries, sweep, curves = [], [], []
    for case, seed in output.progress(cases, total=len(cases), desc="networks"):
        row = boundary_row(case, seed=seed, num_growth=num_growth, tolerance=tolerance)
        known: dict[str, Any] = {"seed": seed, "limit": row["limit"]}
        boundaries.append(row)
        sweep += [sweep_row(case, multiple=m, num_growth=num_growth, **known) for m in multiples]
        if (case.width, seed) == (shown_width, seeds[0]):
            curves += curve_rows(case, multiples=shown_multiples, **known)
    shown = select(sweep, width=shown_width)
    output.write_rows(boundaries, "boundaries.csv")
    output.write_rows(sweep, "sweep.csv")
    output.write_rows(curves, "curves.csv")
    draw(boundaries, shown, curves, output.folder / "lazy_boundary.png")
    output.write_table(
        f"learning rates over 2 n / lambda_max of the tangent kernel at the start: {num_seeds} "
        f"networks each, median [least, largest], measured to {tolerance:.2%}",
        boundary_table(boundaries, sweep),
        f"width {shown_width}, medians",
        sweep_table(shown),
        name="table_lazy_boundary.md",
        details=[
            f"n {task.num_train}, {task.total_steps} steps, a rise of the loss within the first "
            f"{num_growth}"
        ],
    )


def train(
    task: LazyTask, *, seed: int, lr: float, num_steps: int | None = None
) -> tuple[list[float], LazyRun]:
    """The losses before each step and after the last, until `DIVERGED_LOSS`, and the run."""
    run = task.start(seed)
    losses: list[float] = []
    for _ in range(task.total_steps if num_steps is None else num_steps):
        losses.append(float(run.step(lr)))
        if not losses[-1] <= DIVERGED_LOSS:
            return losses, run
    return [*losses, run.privileged_loss()], run


def first_rise(losses: Sequence[float]) -> int | None:
    """The first step that raised the loss, from 1."""
    rises = (i for i in range(1, len(losses)) if not losses[i] <= losses[i - 1])
    return next(rises, None)


def find_boundary(
    is_beyond: Callable[[float], bool], bracket: tuple[float, float], *, tolerance: float
) -> float:
    """The multiple above which something holds, by bisection of its logarithm.

    Returns:
        The boundary to the relative tolerance; 0 if it holds at the lower end of the bracket
        already, infinity if it does not at the upper one.

    >>> round(find_boundary(lambda multiple: multiple > 1.3, (0.5, 2.0), tolerance=1e-6), 4)
    1.3
    """
    low, high = bracket
    if is_beyond(low):
        return 0.0
    if not is_beyond(high):
        return math.inf
    while high > low * (1.0 + tolerance):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_beyond(middle) else (middle, high)
    return math.sqrt(low * high)


def boundary_row(task: LazyTask, *, seed: int, num_growth: int, tolerance: float) -> dict[str, Any]:
    """The predicted limit of one network, and the measured boundaries as multiples of it.

    Each is the multiple above which this holds:

    - `linearized`: the linearized model diverges: its last loss exceeds that half-way;
    - `projection`: the first step raises the network's residual along the kernel's top
      eigenvector, |u . (f(w_1) - y)| > |u . (f(w_0) - y)|;
    - `rise`: one of the first `num_growth` steps raises the network's loss;
    - `learning`: the network's last loss is not below half of what predicting 0 has: it has
      diverged, or its units are dead.
    """
    start = task.start(seed)
    limit, _ = start.cap()
    top = torch.linalg.eigh(start.tangent_kernel()).eigenvectors[:, -1]

    def losses_at(multiple: float, num_steps: int | None = None) -> list[float]:
        return train(task, seed=seed, lr=multiple * limit, num_steps=num_steps)[0]

    def diverges(multiple: float) -> bool:
        losses, _ = train(replace(task, linearized=True), seed=seed, lr=multiple * limit)
        return not losses[-1] <= losses[len(losses) // 2]

    def top_grows(multiple: float) -> bool:
        _, run = train(task, seed=seed, lr=multiple * limit, num_steps=1)
        return abs(float(top @ run.residuals())) > abs(float(top @ start.residuals()))

    def rises(multiple: float) -> bool:
        return first_rise(losses_at(multiple, num_growth)) is not None

    def learns_nothing(multiple: float) -> bool:
        return not losses_at(multiple)[-1] < LEARNED_LOSS

    searches = {
        "linearized": (diverges, STABILITY_BRACKET),
        "projection": (top_grows, STABILITY_BRACKET),
        "rise": (rises, STABILITY_BRACKET),
        "learning": (learns_nothing, LEARNING_BRACKET),
    }
    boundaries = {
        name: find_boundary(is_beyond, bracket, tolerance=tolerance)
        for name, (is_beyond, bracket) in searches.items()
    }
    key = {"activation": task.activation, "width": task.width, "seed": seed}
    return {**key, "limit": limit, **boundaries}


def sweep_row(
    task: LazyTask, *, seed: int, multiple: float, limit: float, num_growth: int
) -> dict[str, Any]:
    """How one network fares at a multiple of its limit.

    The outcome is "diverged" (the loss passed `DIVERGED_LOSS`), "stuck" (the last loss is not
    below `LEARNED_LOSS`), "catapult" (the loss rose within the first `num_growth` steps, and the
    kernel's largest eigenvalue ended smaller) or "lazy" (all others).
    """
    losses, run = train(task, seed=seed, lr=multiple * limit)
    is_diverged = not losses[-1] <= DIVERGED_LOSS
    shrinkage = math.nan
    if not is_diverged:
        largest = float(torch.linalg.eigvalsh(run.tangent_kernel())[-1])
        shrinkage = largest * limit / (2.0 * task.num_train)
    outcome = "lazy"
    if is_diverged:
        outcome = "diverged"
    elif not losses[-1] < LEARNED_LOSS:
        outcome = "stuck"
    elif first_rise(losses[: num_growth + 1]) is not None and shrinkage < 1.0:
        outcome = "catapult"
    return {
        "activation": task.activation,
        "width": task.width,
        "seed": seed,
        "multiple": multiple,
        "outcome": outcome,
        "peak_over_initial_loss": max(losses) / losses[0],
        "final_loss": losses[-1],
        "eigenvalue_over_initial": shrinkage,
    }


def curve_rows(
    task: LazyTask, *, seed: int, multiples: Sequence[float], limit: float
) -> list[dict[str, Any]]:
    """The losses of one network and of its linearized model, step by step."""
    rows: list[dict[str, Any]] = []
    for linearized in (False, True):
        for multiple in multiples:
            model = replace(task, linearized=linearized)
            losses, _ = train(model, seed=seed, lr=multiple * limit)
            key = {"activation": task.activation, "linearized": linearized, "multiple": multiple}
            rows += [{**key, "step": step, "loss": loss} for step, loss in enumerate(losses)]
    return rows

"""The sweep over GreedyLR's factor F, below the limit of stability and without one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from lrpilot.evaluation.experiments.claims import (
    NO_FIGURE,
    Claim,
    compared,
    write_claims,
)
from lrpilot.evaluation.experiments.greedy.protocols import (
    Contest,
    Runs,
    describe_protocols,
    train_protocols,
)
from lrpilot.evaluation.report import format_interval, line_style, write_figure
from lrpilot.evaluation.runs.grid import Method
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.statistics import select
from lrpilot.tasks.task import Task

PAPER_LOSSES = {0.25: "7.78, diverged", 0.5: "1.89", 0.75: "1.92", 0.99: "1.91"}
CAPS = {False: "no cap", True: "cap below 2/L"}


def sweep_factor(
    *,
    trainings: Mapping[str, Mapping[str, Any]],
    claimed: str,
    factors: Sequence[float],
    initial_lr_factors: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    output: Output,
) -> None:
    """Train every task with every F, with and without a cap, and write table, figure and runs.

    Args:
        trainings: by name; `task`, and `greedy`, called as
            `greedy(optimizer, total_steps=..., run=..., factor=F, is_capped=...)`.
        claimed: the training that the paper's losses stand beside, which are of a language model.
        factors: F.
        initial_lr_factors: as for `train_protocols`.
        num_tuning: as for `train_protocols`.
        num_seeds: as for `train_protocols`.
        output: gets runs.parquet, factor.png and table.md.

    Raises:
        ValueError: if `claimed` is no training.
    """
    if claimed not in trainings:
        raise ValueError(f"`claimed` must be one of {list(trainings)}, got {claimed!r}")
    contests = [
        Contest(training["task"], methods_of(training["greedy"], factors))
        for training in trainings.values()
    ]
    runs = train_protocols(
        contests,
        initial_lr_factors=initial_lr_factors,
        num_tuning=num_tuning,
        num_seeds=num_seeds,
        output=output,
    )
    claims = []
    for name, contest in zip(trainings, contests, strict=True):
        papers = PAPER_LOSSES if name == claimed else {}
        claims += factor_claims(runs, name, contest.task, factors, papers)
    draw(runs, {n: c.task for n, c in zip(trainings, contests, strict=True)}, factors, output)
    write_claims(
        output,
        f"GreedyLR's factor F, {len(factors)} values, with and without a cap on the learning rate",
        claims,
        details=[
            *describe_protocols(initial_lr_factors, num_tuning, num_seeds),
            "diverged: of all runs of the search; best: within a training, of all F and both caps",
        ],
    )


def name_of(factor: float, is_capped: bool) -> str:
    """How the method of this factor is called.

    >>> name_of(0.5, True)
    'F = 0.5, cap below 2/L'
    """
    return f"F = {factor:g}, {CAPS[is_capped]}"


def methods_of(greedy: Callable[..., Any], factors: Sequence[float]) -> list[Method]:
    """One method per factor and cap."""
    return [
        Method(name_of(factor, is_capped), partial(greedy, factor=factor, is_capped=is_capped))
        for is_capped in CAPS
        for factor in factors
    ]


def factor_claims(
    runs: Runs, training: str, task: Task, factors: Sequence[float], papers: Mapping[float, str]
) -> list[Claim]:
    """A line per cap and factor of one training."""
    losses = {
        (is_capped, factor): runs.fair_losses(task.name, name_of(factor, is_capped))
        for is_capped in CAPS
        for factor in factors
    }
    best = min(losses, key=lambda key: float(np.mean(losses[key])))
    claims = []
    for is_capped, factor in losses:
        name = name_of(factor, is_capped)
        first = runs.result_as_in_paper(task.name, name)
        mine = losses[is_capped, factor]
        num_diverged, num_searched = diverged(runs, task, name)
        _, verdict = compared(mine, losses[best], "the best")
        if (is_capped, factor) == best:
            verdict = "best"
        if num_diverged == num_searched:
            verdict = "diverges at every initial learning rate"
        claims.append(
            Claim(
                f"{training}: {name}",
                NO_FIGURE if is_capped else papers.get(factor, NO_FIGURE),
                f"{first.row['train_loss']:.4g}",
                f"{format_interval(mine)}; diverged {num_diverged}/{num_searched}",
                verdict,
            )
        )
    return claims


def diverged(runs: Runs, task: Task, name: str) -> tuple[int, int]:
    """How many runs of a method's search diverged, and how many there were."""
    rows = select([result.row for result in runs.tuning], task=task.name, scheduler=name)
    return sum(row["diverged"] for row in rows), len(rows)


def draw(runs: Runs, tasks: Mapping[str, Task], factors: Sequence[float], output: Output) -> None:
    """Share of the searched runs that diverged, over F."""
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4 * len(tasks), 3.6), sharey=True, squeeze=False
    )
    for axis, (training, task) in zip(axes[0], tasks.items(), strict=True):
        for i, (is_capped, cap) in enumerate(CAPS.items()):
            counts = [diverged(runs, task, name_of(factor, is_capped)) for factor in factors]
            shares = [count / total for count, total in counts]
            axis.plot(factors, shares, marker="o", **line_style(cap, i, is_policy=False))
        axis.set(title=training, xlabel="F", ylim=(-0.05, 1.05))
    axes[0, 0].set_ylabel("share of runs that diverged")
    write_figure(figure, output.folder / "factor.png", num_legend_columns=2)

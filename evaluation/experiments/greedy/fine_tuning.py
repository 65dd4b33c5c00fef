"""GreedyLR against a cosine where a pretrained network is adapted, as the paper fine-tunes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

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
    mean_losses_at_stages,
    train_protocols,
)
from lrpilot.evaluation.report import format_interval, line_style, write_figure
from lrpilot.evaluation.runs.grid import Method
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.statistics.stages import STAGES, stage_outcomes
from lrpilot.tasks.task import Task

PAPER_SHARES = {"as good or better": 0.8333, "better": 0.7916, "clearly better": 0.625}
PAPER_LEADS = "best +47 %, worst -28 %"
MARGIN = 0.01
"""Relative losses of the paper's large models that differ by less differ insignificantly."""
GREEDY, RIVAL = "greedy", "cosine"


def compare_fine_tuning(
    *,
    task: Task,
    greedy: Callable[..., Any],
    cosine: Callable[..., Any],
    initial_lr_factors: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    output: Output,
) -> None:
    """Train one pair under both protocols, and write table, figure and runs.

    The paper has shares of 24 instances, 8 pairs of large models at three stages. This is one pair
    of a small one, so its shares are of three stages that depend on each other.

    Args:
        task: what is adapted.
        greedy: one side.
        cosine: the other one.
        initial_lr_factors: as for `train_protocols`.
        num_tuning: as for `train_protocols`.
        num_seeds: as for `train_protocols`.
        output: gets runs.parquet, fine_tuning.png and table.md.
    """
    runs = train_protocols(
        [Contest(task, [Method(GREEDY, greedy), Method(RIVAL, cosine)])],
        initial_lr_factors=initial_lr_factors,
        num_tuning=num_tuning,
        num_seeds=num_seeds,
        output=output,
    )
    claims = fine_tuning_claims(runs, task)
    draw(runs, task, output)
    write_claims(
        output,
        f"GreedyLR and a cosine: one pair on {task.name}",
        claims,
        details=[
            f"{task.total_steps} steps per run",
            *describe_protocols(initial_lr_factors, num_tuning, num_seeds),
            "leads: (cosine's loss - GreedyLR's) / cosine's loss",
        ],
    )


def stage_losses(runs: Runs, task: Task, name: str) -> NDArray[np.float64]:
    """Training losses of the one run of the paper's protocol, of shape (1, stages)."""
    result = runs.result_as_in_paper(task.name, name)
    return mean_losses_at_stages(result, result.row["total_steps"])[None]


def fine_tuning_claims(runs: Runs, task: Task) -> list[Claim]:
    """The paper's shares, and the lead at each stage."""
    greedy, rival = (stage_losses(runs, task, name) for name in (GREEDY, RIVAL))
    stages = stage_outcomes(greedy / rival, rival / rival, margin=MARGIN)
    tuned, tuned_rival = (runs.fair_losses(task.name, name) for name in (GREEDY, RIVAL))
    claims = [
        Claim(
            name,
            f"{100 * share:.2f} %",
            f"{stages.counts[name]} of {sum(stages)} stages",
            "one pair has no share",
            "too few for a verdict",
        )
        for name, share in PAPER_SHARES.items()
    ]
    leads = (1.0 - greedy / rival)[0]
    claims += [
        Claim(
            f"lead at {percent} % of the steps",
            PAPER_LEADS,
            f"{100 * lead:+.1f} %",
            "at the end alone",
            "one run",
        )
        for percent, lead in zip(STAGES, leads, strict=True)
    ]
    difference, verdict = compared(tuned, tuned_rival, RIVAL)
    ends = [
        f"{runs.result_as_in_paper(task.name, n).row['held_out_loss']:.4f}" for n in (GREEDY, RIVAL)
    ]
    return [
        *claims,
        Claim(
            "held-out loss at the end, GreedyLR and cosine",
            NO_FIGURE,
            " and ".join(ends),
            f"{format_interval(tuned)} and {format_interval(tuned_rival)}; difference {difference}",
            verdict,
        ),
    ]


def draw(runs: Runs, task: Task, output: Output) -> None:
    """Learning rate and smoothed training loss of the two runs of the paper's protocol."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for i, name in enumerate((GREEDY, RIVAL)):
        result, style = (
            runs.result_as_in_paper(task.name, name),
            line_style(name, i, is_policy=False),
        )
        width = max(1, len(result.losses) // 30)
        axes[0].plot(result.lrs, **style)
        axes[1].plot(np.convolve(result.losses, np.ones(width) / width, mode="valid"), **style)
    axes[0].set(xlabel="optimizer step", ylabel="learning rate")
    axes[1].set(xlabel="optimizer step", ylabel="training loss")
    write_figure(figure, output.folder / "fine_tuning.png", num_legend_columns=2)

"""GreedyLR against other methods that set the learning rate while they train, and what they cost.

The costs are counted in forward passes without a graph: a backward pass counts as two, so a step
costs three, and every trial of a line search one more. A method of which an `equal_cost` run is
asked for also trains on as many steps as GreedyLR's passes pay for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from lrpilot.evaluation.runs.cell import Cell
from lrpilot.evaluation.runs.grid import Method, Result
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import replay_seeds
from lrpilot.tasks.task import Task

PASSES_PER_STEP = 3.0
"""A forward pass, and a backward pass for two."""
GREEDY = "greedy"


def compare_rivals(
    *,
    tasks: Mapping[str, Task],
    methods: Mapping[str, Mapping[str, Any]],
    initial_lr_factors: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    output: Output,
    equal_cost: Sequence[str] = (),
) -> None:
    """Train every method on every task under both protocols, and write table, figure and runs.

    Args:
        tasks: by name.
        methods: arguments of a `Method` by name; "greedy" is what the others are compared with.
        initial_lr_factors: as for `train_protocols`.
        num_tuning: as for `train_protocols`.
        num_seeds: as for `train_protocols`.
        output: gets runs.parquet, rivals.png and table.md.
        equal_cost: methods that also train on fewer steps, at GreedyLR's cost; the cost of their
            steps is measured on one run of each task, with a seed that is used for nothing else.

    Raises:
        ValueError: if no method is "greedy", or `equal_cost` names no method.
    """
    if GREEDY not in methods:
        raise ValueError(f"`methods` must have {GREEDY!r}, got {list(methods)}")
    for name in equal_cost:
        if name not in methods:
            raise ValueError(f"`equal_cost` must be among {list(methods)}, got {name!r}")
    made = {name: Method(name=name, **arguments) for name, arguments in methods.items()}
    contests = [Contest(task, list(made.values())) for task in tasks.values()]
    (seed,) = replay_seeds(1)
    pilots = [Cell(task, made[name], 1.0, seed) for task in tasks.values() for name in equal_cost]
    for cell, pilot in zip(pilots, output.train(pilots, "cost of a step"), strict=True):
        name = f"{cell.task.name}, {cell.method.name} at equal cost"
        shortened = replace(cell.task, name=name, total_steps=affordable_steps(pilot))
        contests.append(Contest(shortened, [cell.method]))
    runs = train_protocols(
        contests,
        initial_lr_factors=initial_lr_factors,
        num_tuning=num_tuning,
        num_seeds=num_seeds,
        output=output,
    )
    claims = [claim for task in tasks.values() for claim in rival_claims(runs, task, contests)]
    draw(runs, list(tasks.values()), contests, output)
    write_claims(
        output,
        f"GreedyLR and {len(made) - 1} rivals on {len(tasks)} trainings",
        claims,
        details=[
            *describe_protocols(initial_lr_factors, num_tuning, num_seeds),
            f"passes: forward passes per step, of which a step without a search is "
            f"{PASSES_PER_STEP:g}",
        ],
    )


def passes_per_step(result: Result) -> float:
    """Mean cost of a step of a run in forward passes."""
    return PASSES_PER_STEP + int(result.row.get("num_trials", 0)) / len(result.losses)


def affordable_steps(result: Result) -> int:
    """Steps of this cost that are paid for by as many steps without a search as the run had."""
    return max(1, round(int(result.row["total_steps"]) * PASSES_PER_STEP / passes_per_step(result)))


def entries_of(task: Task, contests: Sequence[Contest]) -> dict[str, tuple[str, str]]:
    """What has trained a task or a shortened version of it: (task, method) by the name of a line.

    The names of shortened versions begin with the task's.
    """
    entries: dict[str, tuple[str, str]] = {}
    for contest in contests:
        name = contest.task.name
        if name == task.name:
            entries |= {method.name: (name, method.name) for method in contest.methods}
        elif name.startswith(f"{task.name}, "):
            (method,) = contest.methods
            entries[name.removeprefix(f"{task.name}, ")] = (name, method.name)
    return entries


def rival_claims(runs: Runs, task: Task, contests: Sequence[Contest]) -> list[Claim]:
    """A line per method on one task; the paper compared GreedyLR with none of these."""
    reference = runs.fair_losses(task.name, GREEDY)
    claims = []
    for name, entry in entries_of(task, contests).items():
        first, losses = runs.result_as_in_paper(*entry), runs.fair_losses(*entry)
        difference, verdict = compared(losses, reference, GREEDY)
        costs = f"{passes_per_step(first):.2f} passes, {first.row['total_steps']} steps"
        claims.append(
            Claim(
                f"{task.name}: {name}",
                NO_FIGURE,
                f"{first.row['train_loss']:.4f}; {costs}",
                format_interval(losses) + ("" if name == GREEDY else f"; minus it {difference}"),
                "" if name == GREEDY else verdict,
            )
        )
    return claims


def draw(runs: Runs, tasks: Sequence[Task], contests: Sequence[Contest], output: Output) -> None:
    """Smoothed training loss over forward passes, of the runs of the paper's protocol."""
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for i, (name, entry) in enumerate(entries_of(task, contests).items()):
            result = runs.result_as_in_paper(*entry)
            width = max(1, len(result.losses) // 30)
            smooth = np.convolve(result.losses, np.ones(width) / width, mode="valid")
            passes = passes_per_step(result) * np.arange(width, len(result.losses) + 1)
            axis.plot(passes, smooth, **line_style(name, i, is_policy=False))
        axis.set(title=task.name, xlabel="forward passes", yscale="log")
    axes[0, 0].set_ylabel("training loss, untuned")
    write_figure(figure, output.folder / "rivals.png", num_legend_columns=4)

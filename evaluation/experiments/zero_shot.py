"""One untuned run on trainings that the policy never saw, against a search over a rival's LR.

Every method trains every task from every initial learning rate; no choice is made for anybody, and
the rivals' best rates are known with hindsight where they are reported.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lrpilot import Policy
from lrpilot.evaluation import report
from lrpilot.evaluation.experiments.searches import Searched, draw_searches
from lrpilot.evaluation.runs.cell import grid_of
from lrpilot.evaluation.runs.grid import Method, Result, deployed
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds
from lrpilot.evaluation.statistics import Rows, select, unique
from lrpilot.evaluation.tuning_cost import (
    MOST_RUNS,
    losses_by_scheduler,
    lr_sensitivity,
    tuning_table,
    worth_in_runs,
)
from lrpilot.tasks.task import Task

COLUMNS = (
    *("scheduler", "initial_lr_factor", "initial_lr", "seed", "total_steps"),
    *("first_loss", "train_loss", "diverged", "seconds", "held_out_loss"),
)


def compare_unseen(
    *,
    tasks: Mapping[str, Task],
    schedulers: Mapping[str, Callable[..., Any]],
    rivals: Mapping[str, Mapping[str, Any]],
    search_rivals: Sequence[str],
    initial_lr_factors: Sequence[float],
    num_seeds: int,
    policy: Policy,
    output: Output,
    only: Sequence[str] | None = None,
) -> None:
    """Train every method on every task, and write rows, a table and a figure.

    Runs are written after every task.

    Args:
        tasks: trainings that the policy never saw, by name.
        schedulers: by name; called as `make(optimizer, total_steps=...)`.
        rivals: arguments of a `Method` by name; `scheduler` is its `make`.
        search_rivals: names of the schedulers and rivals whose search the policy is compared with.
        initial_lr_factors: initial learning rates over each task's `base_lr`.
        num_seeds: unseen seeds.
        policy: the learned policy.
        output: gets runs.parquet, runs.csv, zero_shot.png and table.md.
        only: names of the tasks that are trained; default all.

    Raises:
        ValueError: if a search rival is not among the schedulers and rivals, or `only` names no
            task.
    """
    for name in only or ():
        if name not in tasks:
            raise ValueError(f"`only` must be among the tasks {list(tasks)}, got {name!r}")
    tasks = {name: tasks[name] for name in only or tasks}
    names = [*schedulers, *rivals]
    for name in search_rivals:
        if name not in names:
            raise ValueError(
                f"`search_rivals` must be among the schedulers and rivals {names}, got {name!r}"
            )
    methods = [Method("policy", partial(deployed, policy=policy))]
    methods += [Method(name, make) for name, make in schedulers.items()]
    for name, arguments in rivals.items():
        given = dict(arguments)
        methods.append(Method(name, given.pop("scheduler"), **given))
    seeds = evaluation_seeds(num_seeds)
    results: list[Result] = []
    for name, task in tasks.items():
        cells = grid_of(
            replace(task, name=name), methods, initial_lr_factors=initial_lr_factors, seeds=seeds
        )
        results += output.train(cells, name)
        output.write_runs(results)
    rows = [result.row for result in results]
    columns = ("task", *COLUMNS)
    output.write_rows([{name: row[name] for name in columns} for row in rows], "runs.csv")
    panels = searches_of(rows, search_rivals)
    draw_searches(panels, output.folder / "zero_shot.png", most_runs=16)
    tables = [summary_table(rows, search_rivals)]
    for name in tasks:
        header, *lines = tuning_table(select(rows, task=name))
        tables.append(report.format_table([name, *header[1:]], lines))
    output.write_table(
        f"{len(tasks)} unseen trainings, {len(initial_lr_factors)} initial learning rates, "
        f"{num_seeds} unseen seeds",
        *tables,
        name="table.md",
        details=[f"policy {policy.fingerprint[:12]}"],
    )


def summary_table(rows: Rows, search_rivals: Sequence[str]) -> str:
    """One line per training: one run of the policy, and what a search needs to equal it."""
    lines = []
    for task in unique(rows, "task"):
        mine = select(rows, task=task)
        losses = losses_by_scheduler(mine)
        policy = losses.pop("policy")
        best = min(min(policy), *(min(values) for values in losses.values()))
        worths = [worth_in_runs(policy, losses[name]) for name in search_rivals]
        diverged = [row["diverged"] for row in select(mine, scheduler="policy")]
        lines.append(
            [
                task,
                str(mine[0]["total_steps"]),
                f"{np.mean(policy):.4g}",
                *(f"over {MOST_RUNS}" if math.isinf(n) else f"{n:.0f}" for n in worths),
                f"{min(policy):.4g}",
                f"{min(min(values) for values in losses.values()):.4g}",
                f"{sum(diverged)}/{len(diverged)}",
                f"{lr_sensitivity(policy, best):.3f}",
                f"{min(lr_sensitivity(values, best) for values in losses.values()):.3f}",
            ]
        )
    header = ["training", "steps", "one run", *(f"worth in runs of {n}" for n in search_rivals)]
    header += ["policy at best", "rival at best", "policy diverged", "sensitivity"]
    return report.format_table([*header, "least of a rival"], lines)


def searches_of(rows: Rows, search_rivals: Sequence[str]) -> dict[str, Searched]:
    """What the policy and the search rivals found on each task."""
    found = {}
    for task in unique(rows, "task"):
        losses = losses_by_scheduler(select(rows, task=task))
        rivals = {name: losses[name] for name in search_rivals}
        found[task] = Searched(losses["policy"], rivals)
    return found

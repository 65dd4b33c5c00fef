"""A learned policy against pairs of optimizer and scheduler, and a full grid search of them.

On every task, each pair trains from every initial learning rate on tuning seeds: together they are
the grid. What is best there trains again on unseen seeds, and so do every pair at its own best
initial learning rate and the policy at its best and at all of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lrpilot import Policy
from lrpilot.evaluation import report
from lrpilot.evaluation.experiments.claims import claims_table
from lrpilot.evaluation.experiments.pair_claims import (
    POLICY,
    TaskOutcome,
    claims_of,
    task_outcome,
    worth_text,
)
from lrpilot.evaluation.experiments.searches import Searched, draw_searches
from lrpilot.evaluation.runs.cell import REPORT, TUNING, Cell, grid_of
from lrpilot.evaluation.runs.grid import Method, Result, deployed
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds, tuning_seeds
from lrpilot.evaluation.statistics import Rows, best_factor, mean_at_factors, select
from lrpilot.evaluation.statistics.profiles import steps_to_target
from lrpilot.evaluation.tuning_cost import losses_by_scheduler
from lrpilot.tasks.task import Task

SMOOTHED_SHARE = 0.05


def compare_pairs(
    *,
    tasks: Mapping[str, Task],
    optimizers: Mapping[str, Mapping[str, Any]],
    schedulers: Mapping[str, Callable[..., Any]],
    target_scheduler: str,
    initial_lr_factors: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    policy: Policy,
    output: Output,
    only: Sequence[str] | None,
) -> None:
    """Train the grid and what it chose, and write runs, tables and a figure.

    Args:
        tasks: by name.
        optimizers: by name, `optimizer` (called as `make(parameters, lr=...)`) and the `base_lr`
            that the factors multiply.
        schedulers: by name; called as `make(optimizer, total_steps=...)`.
        target_scheduler: the one whose best tuned training loss at the end is the target.
        initial_lr_factors: initial learning rates over each `base_lr`.
        num_tuning: seeds that choices are made on.
        num_seeds: seeds that are reported.
        policy: runs with each task's own optimizer.
        output: gets runs.parquet, table.md and grid_search.png.
        only: names of the tasks that are trained; None for all.

    Raises:
        ValueError: if the target's scheduler is not among them, or `only` names no task.
    """
    if target_scheduler not in schedulers:
        raise ValueError(
            f"`target_scheduler` must be among the schedulers {list(schedulers)}, got "
            f"{target_scheduler!r}"
        )
    for name in only or ():
        if name not in tasks:
            raise ValueError(f"`only` must be among the tasks {list(tasks)}, got {name!r}")
    pairs = {
        f"{optimizer} + {scheduler}": Method(f"{optimizer} + {scheduler}", make, **arguments)
        for optimizer, arguments in optimizers.items()
        for scheduler, make in schedulers.items()
    }
    learned = Method(POLICY, partial(deployed, policy=policy))
    methods = {POLICY: learned, **pairs}
    results: list[Result] = []
    summary, tables, panels, outcomes = [], [], {}, []
    chosen_names = list(only or tasks)
    for name in chosen_names:
        task = tasks[name]
        grid = grid_of(
            task,
            list(methods.values()),
            initial_lr_factors=initial_lr_factors,
            seeds=tuning_seeds(num_tuning),
            part=TUNING,
        )
        tuning = output.train(grid, f"{name}: grid")
        tuning_rows = [result.row for result in tuning]
        tuned = {m: best_factor(select(tuning_rows, scheduler=m)) for m in methods}
        cells = [
            Cell(task, methods[m], factor, seed, part=REPORT)
            for m in methods
            for factor in (initial_lr_factors if m == POLICY else [tuned[m]])
            for seed in evaluation_seeds(num_seeds)
        ]
        unseen = output.train(cells, f"{name}: unseen seeds")
        results += [*unseen, *tuning]
        lines = summarize(unseen, tuned, target_scheduler)
        tables.append(report.format_table([name, *COLUMNS], lines))
        panels[name] = searched_in(tuning_rows)
        outcomes.append(task_outcome(unseen, tuned, panels[name]))
        summary.append(grid_search_line(name, unseen, tuning_rows, tuned, outcomes[-1]))
        output.write_runs(results)
    num_trainings = len(pairs) * len(initial_lr_factors)
    draw_searches(panels, output.folder / "grid_search.png", most_runs=num_trainings)
    steps = policy.card.get("num_inner_steps", 0)
    output.write_table(
        f"{len(chosen_names)} tasks: policy against {len(pairs)} pairs of optimizer and scheduler "
        f"and a grid search over {num_trainings} trainings; {num_seeds} "
        f"unseen seeds, {report.describe_spread(num_seeds)}, choices on {num_tuning} others",
        claims_table(claims_of(outcomes), with_verdicts=not output.is_quick),
        report.format_table(SEARCH_COLUMNS, summary),
        *tables,
        name="table.md",
        details=[
            f"policy {policy.fingerprint[:12]}, whose own training took {steps} optimizer steps, "
            "once for all tasks"
        ],
    )


COLUMNS = ("initial lr", "held-out loss", "test minus training", "steps to target", "diverged")
SEARCH_COLUMNS = (
    *("task", "grid's choice", "its held-out loss", "policy, tuned"),
    *("policy, any initial lr", "grid runs that equal one of it"),
)


def summarize(
    unseen: Sequence[Result], tuned: Mapping[str, float], target_scheduler: str
) -> list[list[str]]:
    """One line per method at its tuned initial LR.

    "Test minus training" is the test loss minus the mean training loss of the last thirtieth. The
    target is the lowest such training loss of the pairs with the target's scheduler; it is reached
    when a moving mean of the training losses over a twentieth of the steps is at or below it.
    """
    best = {m: [r for r in unseen if _is(r, m, factor)] for m, factor in tuned.items()}
    targets = [
        float(np.mean([r.row["train_loss"] for r in runs]))
        for m, runs in best.items()
        if m.endswith(f"+ {target_scheduler}")
    ]
    lines = []
    for m, runs in best.items():
        rows = [result.row for result in runs]
        smoothed = [moving_mean(r.losses, r.row["total_steps"]) for r in runs]
        steps = np.mean(steps_to_target(smoothed, min(targets)))
        gaps = [row["test_loss"] - row["train_loss"] for row in rows if not row["diverged"]]
        everywhere = [r.row for r in unseen if r.row["scheduler"] == m]
        lines.append(
            [
                m,
                f"{rows[0]['initial_lr']:.3g}",
                report.format_interval([row["held_out_loss"] for row in rows]),
                f"{np.mean(gaps):.3f}" if gaps else "-",
                f"{steps:.0f}" if math.isfinite(steps) else "not reached",
                f"{sum(row['diverged'] for row in everywhere)}/{len(everywhere)}",
            ]
        )
    return lines


def _is(result: Result, method: str, factor: float) -> bool:
    return (result.row["scheduler"], result.row["initial_lr_factor"]) == (method, factor)


def moving_mean(losses: Sequence[float], total_steps: int) -> list[float]:
    """Mean over the last twentieth of the steps at every step, infinite before and after the run.

    >>> moving_mean([2.0, 1.0], total_steps=3)
    [2.0, 1.0, inf]
    """
    window = max(1, round(SMOOTHED_SHARE * total_steps))
    sums = np.cumsum([0.0, *losses])
    means = (sums[window:] - sums[:-window]) / window if len(losses) >= window else np.array([])
    means = np.where(np.isfinite(means), means, np.inf)
    before = [math.inf] * min(window - 1, total_steps)
    return [*before, *means.tolist(), *[math.inf] * (total_steps - len(before) - len(means))]


def searched_in(tuning_rows: Rows) -> Searched:
    """What the policy and the grid found on the tuning seeds of one task."""
    losses = losses_by_scheduler(tuning_rows)
    policy = losses.pop(POLICY)
    return Searched(policy, {"grid search": [x for values in losses.values() for x in values]})


def grid_search_line(
    name: str,
    unseen: Sequence[Result],
    tuning_rows: Rows,
    tuned: Mapping[str, float],
    outcome: TaskOutcome,
) -> list[str]:
    """What the grid search found, beside one untuned run of the policy."""
    means = {
        m: mean_at_factors(select(tuning_rows, scheduler=m))[factor]
        for m, factor in tuned.items()
        if m != POLICY
    }
    choice = min(means, key=lambda m: means[m])
    found = [r.row["held_out_loss"] for r in unseen if _is(r, choice, tuned[choice])]
    mine = [r.row["held_out_loss"] for r in unseen if _is(r, POLICY, tuned[POLICY])]
    return [
        name,
        choice,
        report.format_interval(found),
        report.format_interval(mine),
        f"{outcome.untuned_policy:.4g}",
        worth_text(outcome.worth),
    ]

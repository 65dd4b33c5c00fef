"""The protocol for networks: schedules, a learned policy and its placebos at every initial LR.

Every method gets the same initial learning rates. The best of them is chosen on tuning seeds and
reported on evaluation seeds, which no training and no choice has seen; placebos replay what the
policy did on a third range of seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lrpilot import Policy
from lrpilot.evaluation import report
from lrpilot.evaluation.methods.recorded import with_placebos
from lrpilot.evaluation.runs.cell import REPORT, TUNING, grid_of
from lrpilot.evaluation.runs.grid import Method, Result
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds, tuning_seeds
from lrpilot.evaluation.statistics import Rows, select, tuned_rows, unique
from lrpilot.tasks.task import Task


def compare_schedulers(
    *,
    task: Task,
    schedulers: Mapping[str, Callable[..., Any]],
    initial_lr_factors: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    num_replay: int,
    policy: Policy,
    output: Output,
) -> None:
    """Train every method at every initial learning rate, and write table, figure and runs.

    Args:
        task: what is trained.
        schedulers: by name; called as `make(optimizer, total_steps=...)`.
        initial_lr_factors: initial learning rates over the task's `base_lr`.
        num_tuning: seeds that the initial learning rate of each method is chosen on.
        num_seeds: seeds that are reported.
        num_replay: seeds that the policy's placebos are made on.
        policy: the learned policy.
        output: gets runs.parquet, runs.csv, tuning.csv, curves.csv, curves.png and table.md.
    """

    def grid(methods: Sequence[Method], seeds: range, part: str) -> list[Result]:
        cells = grid_of(
            task, methods, initial_lr_factors=initial_lr_factors, seeds=seeds, part=part
        )
        return output.train(cells, f"{task.name}: {part}")

    learned, *placebos = with_placebos(
        policy, task, initial_lr_factors=initial_lr_factors, num_replay=num_replay, output=output
    ).methods
    schedules = [Method(name, make) for name, make in schedulers.items()]
    methods = [learned, *schedules, *placebos]

    tuning = grid(methods, tuning_seeds(num_tuning), TUNING)
    tuning_rows = [result.row for result in tuning]
    results = grid(methods, evaluation_seeds(num_seeds), REPORT)
    report.write_comparison(
        results,
        output,
        f"{task.name}: {num_seeds} unseen seeds, {report.describe_spread(num_seeds)}; initial "
        f"learning rates chosen on {num_tuning} other seeds",
        details=[
            f"{task.total_steps} steps per run",
            describe_search(task, policy, len(initial_lr_factors) * num_tuning),
        ],
        tuning=tuning,
        verdict=verdict([result.row for result in results], tuning_rows),
    )


def describe_search(task: Task, policy: Policy, num_runs: int) -> str:
    """What the choice of a schedule's initial LR cost, and what the policy's training cost."""
    inner_steps = policy.card.get("num_inner_steps", 0)
    return (
        f"search: {num_runs} runs per schedule, {inner_steps / task.total_steps:.0f} runs' worth "
        f"of steps for policy {policy.fingerprint[:12]}, seed {policy.card.get('seed')}"
    )


def median_losses(rows: Rows, scheduler: str) -> list[float]:
    """Median over initial learning rates of the held-out loss, one per seed."""
    return [
        float(np.median([r["held_out_loss"] for r in select(rows, scheduler=scheduler, seed=seed)]))
        for seed in unique(rows, "seed")
    ]


def tuned_losses(rows: Rows, tuning_rows: Rows, scheduler: str) -> list[float]:
    """Held-out loss at the tuned initial learning rate, one per seed."""
    return [row["held_out_loss"] for row in tuned_rows(rows, scheduler, tuning_rows)]


def verdict(rows: Rows, tuning_rows: Rows) -> str:
    """Whether the policy wins: each at its tuned initial LR, and by the median over all of them.

    Differences are paired by seed; the rival is the best schedule by its mean on the reported
    seeds, a choice that favours it.
    """
    names = unique(rows, "scheduler")
    placebos = [name for name in names if name.startswith("placebo")]
    schedules = [name for name in names if name != "policy" and name not in placebos]
    lines = []
    for title, losses in (
        ("tuned", partial(tuned_losses, rows, tuning_rows)),
        ("median over initial lrs", partial(median_losses, rows)),
    ):
        best = min(schedules, key=lambda name: float(np.mean(losses(name))))
        for rival in (best, *placebos):
            difference = [a - b for a, b in zip(losses("policy"), losses(rival), strict=True)]
            judged = report.judge(difference, lower="lower", higher="higher")
            lines.append(f"{title}: policy minus {rival}: {judged}")
    return "\n".join(lines)

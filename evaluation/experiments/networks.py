"""The protocol for networks: schedules, a learned policy and its placebos at every initial LR.

Every method gets the same initial learning rates. The best of them is chosen on tuning seeds and
reported on evaluation seeds, which no training and no choice has seen; placebos replay what the
policy did on a third range of seeds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lrpilot import Policy
from lrpilot.evaluation import report
from lrpilot.evaluation.grid import Method, deployed, train_grid
from lrpilot.evaluation.methods.placebos import placebos_of, record_policy
from lrpilot.evaluation.seeds import FIRST_EVALUATION_SEED, FIRST_REPLAY_SEED, FIRST_TUNING_SEED
from lrpilot.evaluation.statistics import Rows, best_factor, judge, select, unique
from lrpilot.tasks.task import Task

Progress = Callable[..., Iterable[Any]]


def compare_schedulers(
    *,
    task: Task,
    schedulers: Mapping[str, Callable[..., Any]],
    initial_lr_factors: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    num_replay: int,
    policy: Policy,
    out_dir: Path,
    origin: str,
    progress: Progress,
    is_quick: bool = False,
) -> None:
    """Train every method at every initial learning rate, and write table, figure and runs.

    Args:
        task: what is trained.
        schedulers: by name; called as `make(optimizer, total_steps=...)`.
        initial_lr_factors: initial learning rates over the task's `base_lr`.
        num_tuning: seeds that the initial learning rate of each method is chosen on.
        num_seeds: seeds that are reported.
        num_replay: seeds that the policy is recorded on, for its placebos.
        policy: the learned policy.
        out_dir: gets runs.csv, tuning.csv, curves.csv, curves.png and table.md.
        origin: machine, versions and commit.
        progress: called as `progress(iterable, total=..., desc=...)`.
        is_quick: whether this is the experiment's quick version, which judges nothing.
    """
    seeds = range(FIRST_REPLAY_SEED, FIRST_REPLAY_SEED + num_replay)
    recording = record_policy(task, policy, initial_lr_factors=initial_lr_factors, seeds=seeds)
    methods = [
        Method("policy", partial(deployed, policy=policy)),
        *(Method(name, make) for name, make in schedulers.items()),
        *(Method(name, make) for name, make in placebos_of(policy, recording).items()),
    ]

    def grid(first_seed: int, count: int, desc: str) -> list[Any]:
        seeds = range(first_seed, first_seed + count)
        runs = train_grid(task, methods, initial_lr_factors=initial_lr_factors, seeds=seeds)
        total = len(methods) * len(initial_lr_factors) * count
        return list(progress(runs, total=total, desc=desc))

    tuning_rows = [
        result.row for result in grid(FIRST_TUNING_SEED, num_tuning, f"{task.name}: tuning")
    ]
    report.write_rows(tuning_rows, out_dir / "tuning.csv")
    results = grid(FIRST_EVALUATION_SEED, num_seeds, f"{task.name}: unseen seeds")
    rows = [result.row for result in results]
    curves = report.curve_rows(results)
    report.write_rows(rows, out_dir / "runs.csv")
    report.write_rows(curves, out_dir / "curves.csv")
    # placebos are in the tables; a figure with all of them is no longer legible
    shown = [row for row in rows if not row["scheduler"].startswith("placebo")]
    report.draw_curves(shown, curves, out_dir / "curves.png", tuning_rows)
    text = (
        f"{task.name}: {num_seeds} unseen seeds, {report.describe_spread(num_seeds)}; initial "
        f"learning rates chosen on {num_tuning} other seeds\n"
        f"({task.total_steps} steps per run; {describe_search(task, policy, rows, num_tuning)}; "
        f"{origin})\n\n"
        f"{report.tuned_table(rows, tuning_rows)}\n\n{report.robustness_table(rows)}\n"
    )
    if not is_quick:
        text += f"\n{verdict(rows, tuning_rows)}\n"
    report.write_table(text, out_dir / "table.md", is_quick=is_quick)


def describe_search(task: Task, policy: Policy, rows: Rows, num_tuning: int) -> str:
    """What the choice of a schedule's initial LR cost, and what the policy's training cost."""
    num_runs = len(unique(rows, "initial_lr_factor")) * num_tuning
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
    factor = best_factor(select(tuning_rows, scheduler=scheduler))
    return [
        row["held_out_loss"] for row in select(rows, scheduler=scheduler, initial_lr_factor=factor)
    ]


def verdict(rows: Rows, tuning_rows: Rows) -> str:
    """Whether the policy wins: each at its tuned initial LR, and by the median over all of them.

    Differences are paired by seed; the rival is the best schedule by its mean on the reported
    seeds, a choice that favours it.
    """
    names = unique(rows, "scheduler")
    schedules = [n for n in names if n != "policy" and not n.startswith("placebo")]
    placebos = [n for n in names if n.startswith("placebo")]

    def tuned(name: str) -> list[float]:
        return tuned_losses(rows, tuning_rows, name)

    def median(name: str) -> list[float]:
        return median_losses(rows, name)

    lines = []
    for title, losses in (("tuned", tuned), ("median over initial lrs", median)):
        best = min(schedules, key=lambda name: float(np.mean(losses(name))))
        for rival in (best, *placebos):
            difference = [a - b for a, b in zip(losses("policy"), losses(rival), strict=True)]
            judged = judge(difference, lower="lower", higher="higher")
            lines.append(f"{title}: policy minus {rival}: {judged}")
    return "\n".join(lines)

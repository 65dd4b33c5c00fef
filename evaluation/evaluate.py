"""Compare a policy with schedules and rivals on one task: runs, curves, tables and a figure."""

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lrpilot import Policy
from lrpilot.evaluation import report
from lrpilot.evaluation.grid import Method, Scheduler, deployed, train_grid
from lrpilot.evaluation.provenance import describe_provenance
from lrpilot.evaluation.seeds import evaluation_seeds
from lrpilot.evaluation.statistics import Rows, unique
from lrpilot.tasks.shipped import load_task
from lrpilot.tasks.task import Task

RUNS_FILE, CURVES_FILE, FIGURE_FILE = "runs.csv", "curves.csv", "curves.png"
TABLE_FILE = "table.md"


def evaluate(
    task: Task | str,
    *,
    policy: Policy | None = None,
    schedulers: Mapping[str, Scheduler] | None = None,
    rivals: Sequence[Method] = (),
    initial_lr_factors: Sequence[float],
    num_seeds: int,
    num_skipped_seeds: int = 0,
    total_steps: int | None = None,
    out_dir: Path,
    show_progress: bool = True,
) -> Rows:
    """Train every method from every initial learning rate, on seeds that no agent sees.

    The output folder gets runs.csv, curves.csv, curves.png and table.md, which is printed, too.

    Args:
        task: what is trained, or the name of a shipped task.
        policy: a learned policy.
        schedulers: by name; called as `make(optimizer, total_steps=...)`.
        rivals: methods that are more than a scheduler.
        initial_lr_factors: initial learning rates over the task's `base_lr`.
        num_seeds: runs of each method from each initial learning rate.
        num_skipped_seeds: unseen seeds to pass over, such as those on which a choice was made.
        total_steps: optimizer steps per run; default the task's.
        out_dir: the output folder; it is made if need be.
        show_progress: whether to draw a progress bar.

    Returns:
        The rows of runs.csv.

    Raises:
        ValueError: if there is nothing to evaluate.
    """
    methods = [Method(name, make) for name, make in (schedulers or {}).items()] + [*rivals]
    source = "no policy"
    if policy is not None:
        trained: Any = policy.card.get("task") or {}
        source = (
            f"policy {policy.fingerprint[:12]}, trained on {trained.get('name')} for "
            f"{policy.card.get('num_env_steps')} env steps with seed {policy.card.get('seed')}"
        )
        methods.insert(0, Method("policy", partial(deployed, policy=policy)))
    if not methods:
        raise ValueError("`scheduler` must name one at least where no policy and no rival is given")
    task = load_task(task)
    origin = ", ".join(f"{name} {value}" for name, value in describe_provenance().items())
    factors = [float(factor) for factor in initial_lr_factors]
    seeds = evaluation_seeds(num_skipped_seeds + num_seeds)[num_skipped_seeds:]
    grid = train_grid(
        task, methods, initial_lr_factors=factors, seeds=seeds, total_steps=total_steps
    )
    num_runs = len(methods) * len(factors) * num_seeds
    results = list(tqdm(grid, total=num_runs, unit=" runs", disable=not show_progress))
    rows = [result.row for result in results]
    curves = report.curve_rows(results)
    out_dir.mkdir(parents=True, exist_ok=True)
    report.write_rows(rows, out_dir / RUNS_FILE)
    report.write_rows(curves, out_dir / CURVES_FILE)
    report.draw_curves(rows, curves, out_dir / FIGURE_FILE)
    details = f"({total_steps or task.total_steps} steps per run; {source}; {origin})"
    report.write_table(describe(rows, task.name, details), out_dir / TABLE_FILE)
    return rows


def describe(rows: Rows, name: str, details: str) -> str:
    """The tables of a comparison, below a head that says what was compared."""
    seeds, factors = unique(rows, "seed"), unique(rows, "initial_lr_factor")
    head = (
        f"{name}: seeds {seeds[0]} to {seeds[-1]}, {report.describe_spread(len(seeds))}; each "
        f"scheduler at its best of {len(factors)} initial learning rates by held-out loss\n"
        f"{details}"
    )
    tables = [report.tuned_table(rows)]
    if len(factors) > 1:
        tables.append(report.robustness_table(rows))
    return "\n\n".join([head, *tables]) + "\n"


def report_again(run_dir: Path) -> str:
    """Draw the figure of an evaluation's folder anew; returns its tables.

    Args:
        run_dir: a folder with runs.csv and curves.csv.
    """
    rows, curves = read_rows(run_dir / RUNS_FILE), read_rows(run_dir / CURVES_FILE)
    report.draw_curves(rows, curves, run_dir / FIGURE_FILE)
    return describe(rows, " and ".join(unique(rows, "task")), f"({run_dir})")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, with what looks like a number as one."""
    with path.open(newline="") as file:
        return [{key: _number(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text

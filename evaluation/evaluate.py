"""Compare a policy with schedules and rivals on one task: runs, curves, tables and a figure."""

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lrpilot import Policy
from lrpilot.evaluation import report
from lrpilot.evaluation.methods.recorded import with_placebos
from lrpilot.evaluation.runs.cell import grid_of
from lrpilot.evaluation.runs.cluster import Cluster
from lrpilot.evaluation.runs.grid import Method, Scheduler, deployed
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.provenance import provenance_line
from lrpilot.evaluation.runs.seeds import evaluation_seeds
from lrpilot.evaluation.statistics import Rows, unique
from lrpilot.tasks.shipped import load_task
from lrpilot.tasks.task import Task


def evaluate(
    task: Task | str,
    *,
    policy: Policy | None = None,
    schedulers: Mapping[str, Scheduler] | None = None,
    rivals: Sequence[Method] = (),
    initial_lr_factors: Sequence[float],
    num_seeds: int,
    num_skipped_seeds: int = 0,
    num_replay: int = 0,
    total_steps: int | None = None,
    out_dir: Path,
    store: Path | None = None,
    num_workers: int = 0,
    cluster: Cluster | None = None,
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
        num_replay: seeds that a policy's placebos are made on (see `with_placebos`), which stand
            below everything else in the tables; with 0 there are none.
        total_steps: optimizer steps per run; default the task's.
        out_dir: the output folder; it is made if need be.
        store: folder of finished runs, which are not trained again; default `cells` in `out_dir`,
            where those of another version are trained again.
        num_workers: processes that train side by side; with 0, this one trains.
        cluster: of Ray, whose workers train instead, so many at a time.
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
            f"{policy.card.get('num_env_steps')} decisions ({policy.card.get('num_inner_steps')} "
            f"optimizer steps) with seed {policy.card.get('seed')}"
        )
        methods.insert(0, Method("policy", partial(deployed, policy=policy)))
    if not methods:
        raise ValueError("`scheduler` must name one at least where no policy and no rival is given")
    task = load_task(task)
    factors = [float(factor) for factor in initial_lr_factors]
    progress = partial(tqdm, unit=" runs", disable=not show_progress)
    output = Output(
        out_dir,
        provenance_line(),
        progress,
        store=store,
        num_workers=num_workers,
        cluster=cluster,
    )
    if policy is not None and num_replay:
        learned = with_placebos(
            policy,
            task,
            initial_lr_factors=factors,
            num_replay=num_replay,
            output=output,
            total_steps=total_steps,
        )
        methods += learned.methods[1:]
    seeds = evaluation_seeds(num_skipped_seeds + num_seeds)[num_skipped_seeds:]
    cells = grid_of(task, methods, initial_lr_factors=factors, seeds=seeds, total_steps=total_steps)
    results = output.train(cells, task.name)
    rows = [result.row for result in results]
    report.write_comparison(
        results,
        output,
        title_of(rows, task.name),
        details=[f"{total_steps or task.total_steps} steps per run", source],
    )
    return rows


def title_of(rows: Rows, name: str) -> str:
    """What was compared, above the tables."""
    seeds, factors = unique(rows, "seed"), unique(rows, "initial_lr_factor")
    return (
        f"{name}: seeds {seeds[0]} to {seeds[-1]}, {report.describe_spread(len(seeds))}; each "
        f"scheduler at its best of {len(factors)} initial learning rates by held-out loss"
    )


def report_again(run_dir: Path) -> str:
    """Draw the figure of an evaluation's folder anew; returns its tables.

    Args:
        run_dir: a folder with runs.csv and curves.csv.
    """
    rows, curves = read_rows(run_dir / "runs.csv"), read_rows(run_dir / "curves.csv")
    report.draw_curves(rows, curves, run_dir / "curves.png")
    title = title_of(rows, " and ".join(unique(rows, "task")))
    return "\n\n".join([f"{title}\n({run_dir})", *report.comparison_tables(rows)]) + "\n"


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

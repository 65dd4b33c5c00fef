"""The runs that a page shows, read from Parquet files and checked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from lrpilot.evaluation.runs.cell import REPORT, TUNING
from lrpilot.evaluation.runs.disturbance import UNDISTURBED
from lrpilot.evaluation.runs.output import RUNS_FILE
from lrpilot.evaluation.runs.store import ORIGIN, require_one_version
from lrpilot.evaluation.statistics import Rows, select, unique

TEXTS = ("task", "scheduler", "part", *ORIGIN)
NUMBERS = (
    "initial_lr_factor",
    "initial_lr",
    "seed",
    "total_steps",
    "first_loss",
    "train_loss",
    "held_out_loss",
    "diverged",
    "seconds",
)
LISTS = ("lrs", "losses")
NUM_POINTS = 200
NUM_WINDOWS = 50


@dataclass(frozen=True)
class Curve:
    """One training at some of its optimizer steps, as `downsample` chooses them.

    Args:
        steps: counted from 1; shape (points,).
        lrs: learning rate at each; same shape.
        losses: minibatch loss, a mean up to each; same shape.
    """

    steps: NDArray[np.int64]
    lrs: NDArray[np.float64]
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class Runs:
    """The trainings of a comparison.

    Args:
        rows: one per training that is a result, as in `runs.csv`, and its `Curve` as "curve"; a
            disturbance is a part of the task's name; sorted by task, scheduler (the policy first),
            initial learning rate and seed.
        tuning_rows: the same of the trainings that only chose learning rates.
        files: what was read.
    """

    rows: Rows
    tuning_rows: Rows
    files: Sequence[Path]

    @property
    def tasks(self) -> list[str]:
        """The tasks, in order of first appearance."""
        return unique(self.rows, "task")

    @property
    def schedulers(self) -> list[str]:
        """The schedulers, the policy first."""
        return unique(self.rows, "scheduler")

    def of_task(self, task: str) -> "Runs":
        """The trainings of one task."""
        return Runs(select(self.rows, task=task), select(self.tuning_rows, task=task), self.files)


def read_runs(folders: Sequence[Path]) -> Runs:
    """Read and check the `runs.parquet` of every folder.

    Args:
        folders: output folders of evaluations or experiments.

    Raises:
        ValueError: if a folder has no such file, a file is damaged, lacks columns or holds no
            results, or the rows do not belong together: versions or commits differ, a training
            stands there twice, or the schedulers of a task have other seeds or numbers of steps
            than each other.
        OSError: if a file cannot be opened.
    """
    files = [Path(folder) / RUNS_FILE for folder in folders]
    for file in files:
        if not file.is_file():
            raise ValueError(f"`runs` must name folders with a {RUNS_FILE}, got {file.parent}")
    if not files:
        raise ValueError("`runs` must name one folder at least, got none")
    rows = _sorted([row for file in files for row in _read_file(file)])
    results = select(rows, part=REPORT)
    if not results:
        raise ValueError(
            f"`runs` must hold rows of the part {REPORT!r}, got {len(rows)} rows and none of it"
        )
    require_one_version(rows, "`runs`")
    _check_grid(results)
    return Runs(results, select(rows, part=TUNING), files)


def _sorted(rows: Rows) -> Rows:
    tasks, schedulers = unique(rows, "task"), unique(rows, "scheduler")

    def place(row: dict[str, Any]) -> tuple[int, bool, int, float, int]:
        name = row["scheduler"]
        order = (name != "policy", schedulers.index(name))
        return tasks.index(row["task"]), *order, row["initial_lr_factor"], row["seed"]

    return sorted(rows, key=place)


def _read_file(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as opened:
        try:
            file = parquet.ParquetFile(opened)
            _check_columns(file.schema_arrow, path)
            lists = [field.name for field in file.schema_arrow if pa.types.is_nested(field.type)]
            for batch in file.iter_batches(batch_size=64):
                for name in (*TEXTS, *NUMBERS, *LISTS):
                    if batch.column(name).null_count:
                        raise ValueError(f"`runs` must have no gap, got one in {name} of {path}")
                rows = batch.drop_columns(lists).to_pylist()
                curves = zip(batch.column("lrs"), batch.column("losses"), strict=True)
                for row, (lrs, losses) in zip(rows, curves, strict=True):
                    values = (np.asarray(x.values, dtype=np.float64) for x in (lrs, losses))
                    curve = downsample(*values, total_steps=row["total_steps"])
                    # a column of one task alone is empty for the others
                    kept = {name: value for name, value in row.items() if value is not None}
                    disturbance = kept.get("disturbance", UNDISTURBED.name)
                    if disturbance != UNDISTURBED.name:
                        kept["task"] = f"{kept['task']}, {disturbance}"
                    yield {**kept, "curve": curve}
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"`runs` must name whole files, got {path}: {error}") from error


def _check_columns(schema: pa.Schema, path: Path) -> None:
    missing = [name for name in (*TEXTS, *NUMBERS, *LISTS) if name not in schema.names]
    if missing:
        raise ValueError(
            f"`runs` must have the columns of this version, got {path} without "
            f"{', '.join(missing)}; evaluate anew"
        )
    kinds = {
        **dict.fromkeys(TEXTS, ("texts", _is_text)),
        **dict.fromkeys(NUMBERS, ("numbers", _is_number)),
        **dict.fromkeys(LISTS, ("lists of numbers", _is_list)),
    }
    for name, (kind, is_right) in kinds.items():
        if not is_right(found := schema.field(name).type):
            raise ValueError(f"`runs` must have {kind} in {name}, got {found} in {path}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_list(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _check_grid(rows: Rows) -> None:
    for task in unique(rows, "task"):
        mine = select(rows, task=task)
        if len(steps := unique(mine, "total_steps")) > 1:
            raise ValueError(f"`runs` must train {task!r} for one number of steps, got {steps}")
        seeds = set(unique(mine, "seed"))
        for name in unique(mine, "scheduler"):
            runs = select(mine, scheduler=name)
            for factor in unique(runs, "initial_lr_factor"):
                found = [row["seed"] for row in select(runs, initial_lr_factor=factor)]
                if len(set(found)) < len(found):
                    raise ValueError(
                        f"`runs` must hold a training once, got {name!r} on {task!r} again"
                    )
                if set(found) != seeds:
                    raise ValueError(
                        f"`runs` must hold the same seeds of every scheduler at every initial "
                        f"learning rate, got {len(found)} of {len(seeds)} of {name!r} at "
                        f"{factor:g} on {task!r}"
                    )


def downsample(lrs: NDArray[np.float64], losses: NDArray[np.float64], *, total_steps: int) -> Curve:
    """The curve of one training at `NUM_POINTS` steps of its horizon T, or at all if T is less.

    A loss is the mean over the last T / `NUM_WINDOWS` steps (at least one), since that of a single
    minibatch is noise. The steps are those of the whole horizon also for a run that ended early, so
    that runs are compared step by step.

    Args:
        lrs: one per optimizer step.
        losses: one per optimizer step.
        total_steps: horizon T.

    >>> curve = downsample(np.array([0.3, 0.2, 0.1]), np.array([3.0, 2.0, 1.0]), total_steps=3)
    >>> curve.steps.tolist(), curve.losses.tolist()
    ([1, 2, 3], [3.0, 2.0, 1.0])
    """
    num_points = min(NUM_POINTS, total_steps)
    steps = np.arange(1, num_points + 1) * total_steps // num_points
    steps = steps[steps <= min(len(lrs), len(losses))]
    starts = np.maximum(steps - max(1, total_steps // NUM_WINDOWS), 0)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    return Curve(steps, lrs[steps - 1], (sums[steps] - sums[starts]) / (steps - starts))

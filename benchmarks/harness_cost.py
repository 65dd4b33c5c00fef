"""What the harness of comparisons adds to a training: `python benchmarks/harness_cost.py`.

A bare loop steps run and schedule, evaluates at the end and keeps nothing. The harness does the
same through `Runner`, which records every loss and learning rate, and writes the run's file.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import compare_with, medians, print_origin, read_options
from lrpilot.evaluation.methods.schedules import cosine
from lrpilot.evaluation.report import format_table
from lrpilot.evaluation.runs.cell import Cell
from lrpilot.evaluation.runs.grid import Method
from lrpilot.evaluation.runs.runner import Runner
from lrpilot.evaluation.runs.store import Store
from lrpilot.tasks.shipped import load_task
from lrpilot.tasks.task import Task


def no_bar(iterable: Iterable[Any], **_: Any) -> Iterable[Any]:
    """Without a progress bar."""
    return iterable


def bare_loop(task: Task) -> Callable[[], object]:
    """A whole training by hand."""

    def train() -> None:
        run = task.start(0)
        scheduler: Any = cosine(run.optimizer, total_steps=task.total_steps)
        for _ in range(task.total_steps):
            float(run.step())
            scheduler.step()
        run.evaluate()

    return train


def through_harness(task: Task, folder: Path) -> Callable[[], object]:
    """The same training as a cell, which is another one for its store each time."""
    numbers = count()

    def train() -> None:
        runner = Runner(Store(folder / str(next(numbers))), no_bar)
        runner.run([Cell(task, Method("cosine", cosine), 1.0, 0)], "")

    return train


def main() -> None:
    """Measure and print."""
    options = read_options(__doc__, tasks=["digits", "digits_mlp"], num_rounds=31)
    print_origin(f"whole trainings, medians of {options.num_rounds} rounds")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.tasks:
            task = load_task(name)
            bare, harness = bare_loop(task), through_harness(task, Path(folder) / name)
            bare()
            harness()
            seconds, ratios = compare_with(
                bare, {"harness": harness}, num_calls=1, num_rounds=options.num_rounds
            )
            lines.append([name, str(task.total_steps), f"{seconds:.2f}", *medians(ratios)])
    print(format_table(["training", "steps", "seconds, bare", "harness / bare"], lines))


if __name__ == "__main__":
    main()

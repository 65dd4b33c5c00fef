"""Double descent: test error over width, under several ways to set the learning rate.

Every method trains at the same initial learning rates on tuning seeds. Per width, its best one is
chosen by two criteria: the training loss on the noisy labels ("fit": the protocol in which double
descent is seen) and the held-out loss on right ones ("held-out": what a user would do). Both are
reported on evaluation seeds, which no choice has seen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lrpilot import Policy
from lrpilot.evaluation.experiments.double_descent import report
from lrpilot.evaluation.report import describe_spread
from lrpilot.evaluation.runs.cell import REPORT, TUNING, Cell
from lrpilot.evaluation.runs.grid import Method, Result, deployed
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds, tuning_seeds
from lrpilot.evaluation.statistics import Rows, best_factor, select, unique
from lrpilot.tasks.theory.width import WidthTask

CRITERIA = {"fit": "train_loss", "held-out": "held_out_loss"}

# width, scheduler, initial-LR factor
Case = tuple[int, str, float]


def compare_widths(
    *,
    task: WidthTask,
    schedulers: Mapping[str, Callable[..., Any]],
    widths: Sequence[int],
    initial_lr_factors: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    policy: Policy,
    output: Output,
) -> None:
    """Train every method at every width, and write table, figure and runs.

    Args:
        task: what is trained, whatever its width.
        schedulers: by name; called as `make(optimizer, total_steps=...)`.
        widths: hidden units, at least one.
        initial_lr_factors: initial learning rates over the task's `base_lr`.
        num_tuning: seeds that the initial learning rates are chosen on.
        num_seeds: seeds that are reported.
        policy: the learned policy.
        output: gets runs.parquet, tuning.csv, runs.csv, table_double_descent.md and
            double_descent.png.
    """
    methods = {name: Method(name, make) for name, make in schedulers.items()}
    methods["policy"] = Method("policy", partial(deployed, policy=policy))

    def train_all(cases: Sequence[Case], seeds: range, part: str) -> list[Result]:
        cells = [
            Cell(
                replace(task, width=width, name=f"{task.name} {width}"),
                methods[name],
                factor,
                seed,
                part=part,
                labels={"width": width},
            )
            for width, name, factor in cases
            for seed in seeds
        ]
        return output.train(cells, part)

    grid = [(w, name, f) for w in widths for name in methods for f in initial_lr_factors]
    tuning = train_all(grid, tuning_seeds(num_tuning), TUNING)
    tuning_rows = [result.row for result in tuning]
    chosen = {criterion: choose(tuning_rows, column) for criterion, column in CRITERIA.items()}
    # where both criteria chose the same, the runs are the same
    cases = list(dict.fromkeys(case for cases in chosen.values() for case in cases))
    unseen = train_all(cases, evaluation_seeds(num_seeds), REPORT)
    output.write_runs([*unseen, *tuning])
    unseen_rows = [result.row for result in unseen]
    rows = [
        {"chosen_by": criterion, **row}
        for criterion, cases in chosen.items()
        for width, name, factor in cases
        for row in select(unseen_rows, width=width, scheduler=name, initial_lr_factor=factor)
    ]
    output.write_rows(tuning_rows, "tuning.csv")
    output.write_rows(rows, "runs.csv")
    fitting_width = task.interpolation_width
    report.draw(rows, tuning_rows, fitting_width, output.folder / "double_descent.png")
    output.write_table(
        f"double descent: {num_seeds} unseen seeds, {describe_spread(num_seeds)}; initial "
        f"learning rates, of {len(initial_lr_factors)}, chosen per width on {num_tuning} other "
        f"seeds; as many parameters as numbers to fit at width {fitting_width:.1f}",
        report.peak_table(rows, fitting_width),
        report.width_table(rows),
        name="table_double_descent.md",
        details=[f"{task.total_steps} steps per run", f"policy {policy.fingerprint[:12]}"],
    )


def choose(tuning_rows: Rows, column: str) -> list[Case]:
    """The initial LR of every width and scheduler with the smallest mean of a column.

    >>> row = {"width": 8, "scheduler": "constant"}
    >>> low, high = {"initial_lr_factor": 0.1}, {"initial_lr_factor": 1.0}
    >>> rows = [{**row, **low, "train_loss": 0.3}, {**row, **high, "train_loss": 0.2}]
    >>> choose(rows, "train_loss")
    [(8, 'constant', 1.0)]
    """
    return [
        (width, name, best_factor(select(tuning_rows, width=width, scheduler=name), column))
        for width in unique(tuning_rows, "width")
        for name in unique(tuning_rows, "scheduler")
    ]

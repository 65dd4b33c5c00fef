"""Two ways to compare methods: as the paper does, and with every initial learning rate tuned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrpilot.evaluation.report import describe_spread
from lrpilot.evaluation.runs.cell import TUNING, Cell, grid_of
from lrpilot.evaluation.runs.grid import Method, Result
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds, tuning_seeds
from lrpilot.evaluation.statistics import best_factor, bounded_loss
from lrpilot.evaluation.statistics.stages import STAGES
from lrpilot.tasks.task import Task

AS_IN_PAPER = "as in paper"
"""The part of runs of the paper's protocol; those of the fair one are tuning and report."""


@dataclass(frozen=True)
class Contest:
    """Methods that train one task.

    Args:
        task: with a name that no other contest's has.
        methods: with different names.
    """

    task: Task
    methods: Sequence[Method]


@dataclass(frozen=True)
class Runs:
    """What both protocols have trained.

    Args:
        as_in_paper: each method once, at the task's own initial learning rate.
        tuning: each method at every initial learning rate, on tuning seeds.
        fair: each method at the best of them, on evaluation seeds.
    """

    as_in_paper: Sequence[Result]
    tuning: Sequence[Result]
    fair: Sequence[Result]

    def all(self) -> list[Result]:
        """All of them, for `Output.write_runs`; one of both protocols is there twice."""
        return [*self.as_in_paper, *self.tuning, *self.fair]

    def result_as_in_paper(self, task: str, method: str) -> Result:
        """The one run of a method on a task under the paper's protocol."""
        (result,) = _of(self.as_in_paper, task, method)
        return result

    def fair_losses(self, task: str, method: str) -> list[float]:
        """Held-out losses of a method on a task under the fair protocol, one per seed."""
        return [bounded_loss(result.row) for result in _of(self.fair, task, method)]

    def tuned_factor(self, task: str, method: str) -> float:
        """The initial learning rate over the task's that was chosen on the tuning seeds."""
        return float(_of(self.fair, task, method)[0].row["initial_lr_factor"])


def train_protocols(
    contests: Sequence[Contest],
    *,
    initial_lr_factors: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    output: Output,
) -> Runs:
    """Train every method of every contest under both protocols, and write all runs.

    The paper's protocol: one seed, and the task's own initial learning rate. The fair one: the
    initial learning rate with the lowest mean held-out loss on `num_tuning` seeds, for each method
    of each contest, reported on `num_seeds` others.

    Args:
        contests: who trains what.
        initial_lr_factors: initial learning rates over a task's `base_lr`, for the fair protocol.
        num_tuning: seeds that they are chosen on.
        num_seeds: seeds that the fair protocol reports.
        output: trains the cells, and gets runs.parquet.

    Raises:
        ValueError: if two contests have a task of one name.
    """
    names = [contest.task.name for contest in contests]
    if len(set(names)) < len(names):
        raise ValueError(f"`contests` must have tasks of different names, got {names}")
    entries = [(contest.task, method) for contest in contests for method in contest.methods]

    def cells(factors: Sequence[Sequence[float]], seeds: range, **arguments: Any) -> list[Cell]:
        """Of every entry, at its own factors."""
        return [
            cell
            for (task, method), own in zip(entries, factors, strict=True)
            for cell in grid_of(
                task,
                [method],
                initial_lr_factors=own,
                seeds=seeds,
                **arguments,
            )
        ]

    untuned, everywhere = [[1.0]] * len(entries), [initial_lr_factors] * len(entries)
    as_in_paper = output.train(
        cells(untuned, evaluation_seeds(1), part=AS_IN_PAPER), "the paper's protocol"
    )
    searches = cells(everywhere, tuning_seeds(num_tuning), part=TUNING)
    tuning = output.train(searches, "tuning")
    best = [
        [best_factor([result.row for result in _of(tuning, task.name, method.name)])]
        for task, method in entries
    ]
    fair = output.train(cells(best, evaluation_seeds(num_seeds)), "fair protocol")
    runs = Runs(as_in_paper, tuning, fair)
    output.write_runs(runs.all())
    return runs


def describe_protocols(
    initial_lr_factors: Sequence[float], num_tuning: int, num_seeds: int
) -> list[str]:
    """Both protocols in words, for the head of a table."""
    return [
        "paper's protocol: training loss, untuned initial learning rate, one seed",
        f"fair: held-out loss, initial learning rate chosen from {len(initial_lr_factors)} on "
        f"{num_tuning} tuning seeds, {num_seeds} other seeds, {describe_spread(num_seeds)}",
    ]


def mean_losses_at_stages(result: Result, num_steps: int) -> NDArray[np.float64]:
    """Mean minibatch loss of the thirtieth of the run that ends at 10, 50 and 100 % of its steps.

    A single minibatch's loss is too noisy to compare two runs by.

    Args:
        result: a run, which may have broken off: its stages after that are infinite.
        num_steps: that the run was to have.

    Returns:
        Of shape (3,).

    >>> mean_losses_at_stages(Result({}, [], [float(step) for step in range(60)]), 60).tolist()
    [4.5, 28.5, 58.5]
    """
    width = max(1, num_steps // 30)
    losses = np.full(num_steps, np.inf)
    losses[: len(result.losses)] = result.losses
    # in integers, as `losses_at_stages` finds them
    ends = [max(width, (percent * num_steps + 99) // 100) for percent in STAGES]
    means = np.array([losses[end - width : end].mean() for end in ends], dtype=np.float64)
    means[~np.isfinite(means)] = np.inf
    return means


def _of(results: Sequence[Result], task: str, method: str) -> list[Result]:
    return [
        result
        for result in results
        if (result.row["task"], result.row["scheduler"]) == (task, method)
    ]

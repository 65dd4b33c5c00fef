"""What a search over the initial learning rate tries, what it may cost, and what it returns."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lrpilot.arguments import require_count
from lrpilot.evaluation.runs.grid import Method, Scheduler, train
from lrpilot.tasks.runs import Run
from lrpilot.tasks.task import Task

REDUCTION_FACTOR = 3
"""Every rung is so many times the one before it."""
NUM_RUNGS = 3
METRICS = ("held_out_", "test_")


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Args:
        lr: initial learning rate.
        num_steps: optimizer steps that it ran.
        held_out_loss: on the whole held-out split at the end; of a trial that was pruned, the
            privileged loss at its last rung; infinite if it diverged.
        is_pruned: whether the search stopped it before its end.
        metrics: of the final state, as `Run.evaluate` gives them; empty unless it was completed.
    """

    lr: float
    num_steps: int
    held_out_loss: float
    is_pruned: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether it was neither pruned nor diverged."""
        return not self.is_pruned and math.isfinite(self.held_out_loss)


@dataclass(frozen=True)
class SearchResult:
    """All trials of a search, in the order in which they were made."""

    trials: Sequence[Trial]

    @property
    def best(self) -> Trial:
        """The complete trial with the lowest held-out loss; if none is complete, any trial."""
        return min(self.trials, key=lambda trial: (not trial.is_complete, trial.held_out_loss))

    @property
    def num_steps(self) -> int:
        """The optimizer steps of all trials: what the search has cost."""
        return sum(trial.num_steps for trial in self.trials)


@dataclass(frozen=True, kw_only=True)
class LRSearch:
    """A search over the initial learning rate of one run under one schedule.

    All trials train the run of the same seed, each from its own initial learning rate. A trial
    begins only while the budget has T steps left, so that each can be completed. Evaluations on the
    held-out split are not counted.

    Args:
        task: what is trained.
        make: the schedule, called as `make(optimizer, total_steps=...)`, with `run=` if it has
            that argument.
        lr_range: lowest and highest initial learning rate; they are drawn log-uniformly.
        budget_steps: most optimizer steps of all trials together, at least T.
        seed: of the run, and of what the search draws.
        total_steps: T, optimizer steps of a complete trial; default the task's.

    Raises:
        ValueError: if an argument is out of range.
    """

    task: Task
    make: Scheduler
    lr_range: tuple[float, float]
    budget_steps: int
    seed: int
    total_steps: int | None = None

    def __post_init__(self) -> None:
        low, high = self.lr_range
        if not 0.0 < low < high < math.inf:
            raise ValueError(f"`lr_range` must be 0 < low < high, got {self.lr_range}")
        if self.total_steps is not None:
            require_count("total_steps", self.total_steps)
        require_count("budget_steps", self.budget_steps, least=self.horizon)

    @property
    def horizon(self) -> int:
        """T, optimizer steps of a complete trial."""
        return self.task.total_steps if self.total_steps is None else self.total_steps

    @property
    def rungs(self) -> list[int]:
        """The steps after which a trial may be pruned: about T / 27, T / 9 and T / 3.

        They are r, 3r and 9r with r = max(1, floor(T / 27)), as far as they are below T.
        """
        first = max(1, self.horizon // REDUCTION_FACTOR**NUM_RUNGS)
        rungs = [first * REDUCTION_FACTOR**i for i in range(NUM_RUNGS)]
        return [rung for rung in rungs if rung < self.horizon]

    def run_trial(self, lr: float, *, goes_on: Callable[[int, float], bool]) -> Trial:
        """Train from one initial learning rate to the end, to divergence, or until it is pruned.

        It has diverged where `runs.grid.train` says so, which trains it.

        Args:
            lr: initial learning rate.
            goes_on: asked at each rung, with the steps so far and the privileged loss, which is of
                held-out examples and never of the test split; False prunes.
        """
        rungs = self.rungs
        pruned_loss: float | None = None

        def is_kept(num_steps: int, run: Run) -> bool:
            nonlocal pruned_loss
            if num_steps not in rungs:
                return True
            held_out_loss = run.privileged_loss()
            if not math.isfinite(held_out_loss):
                return False
            if not goes_on(num_steps, held_out_loss):
                pruned_loss = held_out_loss
            return pruned_loss is None

        result = train(
            self.task,
            Method("trial", self.make, base_lr=lr),
            initial_lr_factor=1.0,
            seed=self.seed,
            total_steps=self.horizon,
            goes_on=is_kept,
        )
        num_steps = len(result.losses)
        if pruned_loss is not None:
            return Trial(lr, num_steps, pruned_loss, is_pruned=True)
        if result.row["diverged"] or num_steps < self.horizon:
            return Trial(lr, num_steps, math.inf)
        metrics = {name: x for name, x in result.row.items() if name.startswith(METRICS)}
        return Trial(lr, num_steps, metrics["held_out_loss"], metrics=metrics)


def random_search(search: LRSearch) -> SearchResult:
    """Complete trials at learning rates that are drawn log-uniformly, as many as it can afford."""
    rng = np.random.default_rng(search.seed)
    low, high = (math.log(lr) for lr in search.lr_range)
    num_trials = search.budget_steps // search.horizon
    lrs = [math.exp(rng.uniform(low, high)) for _ in range(num_trials)]
    return SearchResult([search.run_trial(lr, goes_on=lambda step, loss: True) for lr in lrs])

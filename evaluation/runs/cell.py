"""One training of a comparison, before it is run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lrpilot.evaluation.runs.disturbance import UNDISTURBED, Disturbance
from lrpilot.evaluation.runs.grid import Method, Result, train
from lrpilot.evaluation.runs.identity import fingerprint
from lrpilot.tasks.task import Task

REPORT = "report"
TUNING = "tuning"
REPLAY = "replay"


@dataclass(frozen=True)
class Cell:
    """A method on a task, from one initial learning rate, with one seed.

    Args:
        task: what is trained.
        method: the scheduler.
        initial_lr_factor: initial learning rate over the task's `base_lr`.
        seed: of the run.
        total_steps: horizon T; default the task's.
        part: what the run is for: "report" (a result), "tuning" (a choice is made on it) or
            "replay" (a policy is recorded for its placebos).
        labels: columns of its row besides, such as {"width": 8}.
        disturbance: what changes midway.
    """

    task: Task
    method: Method
    initial_lr_factor: float
    seed: int
    total_steps: int | None = None
    part: str = REPORT
    labels: Mapping[str, Any] = field(default_factory=dict)
    disturbance: Disturbance = UNDISTURBED

    @cached_property
    def name(self) -> str:
        """Readable, and another for every identity: what the run is kept under."""
        parts = (self.task.name, self.method.name, f"{self.initial_lr_factor:g}", self.seed)
        readable = "-".join(re.sub(r"[^\w.]+", "_", str(part)) for part in parts)
        identity = replace(self, part=REPORT, labels={})
        return f"{readable}-{fingerprint(identity)}"

    def train(self) -> Result:
        """Run it."""
        return train(
            self.task,
            self.method,
            initial_lr_factor=self.initial_lr_factor,
            seed=self.seed,
            total_steps=self.total_steps,
            disturbance=self.disturbance,
        )


def grid_of(
    task: Task,
    methods: Sequence[Method],
    *,
    initial_lr_factors: Sequence[float],
    seeds: Sequence[int],
    total_steps: int | None = None,
    part: str = REPORT,
    labels: Mapping[str, Any] | None = None,
    disturbance: Disturbance = UNDISTURBED,
) -> list[Cell]:
    """Every method at every initial learning rate, on the same seeds; see `Cell`."""
    return [
        Cell(task, method, float(factor), seed, total_steps, part, labels or {}, disturbance)
        for seed in seeds
        for factor in initial_lr_factors
        for method in methods
    ]

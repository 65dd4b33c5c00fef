"""A policy and its placebos in runs that are left alone, and in runs that are disturbed midway.

A placebo is fixed before the run: it cannot answer a disturbance. What the policy does better than
the replay of its own mean schedule comes from what it sees in the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lrpilot import Policy
from lrpilot.evaluation.experiments.steering.report import write_report
from lrpilot.evaluation.methods.recorded import with_placebos
from lrpilot.evaluation.runs.cell import grid_of
from lrpilot.evaluation.runs.disturbance import UNDISTURBED, Disturbance
from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds
from lrpilot.tasks.task import Task


def compare_steering(
    *,
    tasks: Mapping[str, Task],
    disturbances: Sequence[Disturbance],
    initial_lr_factors: Sequence[float],
    num_seeds: int,
    num_replay: int,
    policy: Policy,
    output: Output,
) -> None:
    """Train a policy and its placebos under every disturbance and none; write table and figure.

    The placebos are made from undisturbed runs of other seeds at the same initial learning rates.
    Runs are written after every task.

    Args:
        tasks: what is trained, by name.
        disturbances: each has runs of its own, besides those without any.
        initial_lr_factors: initial learning rates over each task's `base_lr`.
        num_seeds: seeds that are reported.
        num_replay: seeds that the policy's placebos are made on.
        policy: the learned policy.
        output: gets runs.parquet, runs.csv, steering.png and table.md.

    Raises:
        ValueError: if a task cannot be disturbed so; before anything is trained.
    """
    for task in tasks.values():
        for disturbance in disturbances:
            disturbance.begin(task.start(evaluation_seeds(1)[0]))
    results: list[Result] = []
    recorded: list[Result] = []
    for name, unnamed in tasks.items():
        task = replace(unnamed, name=name)
        learned = with_placebos(
            policy,
            task,
            initial_lr_factors=initial_lr_factors,
            num_replay=num_replay,
            output=output,
        )
        recorded += learned.recorded
        for disturbance in (UNDISTURBED, *disturbances):
            cells = grid_of(
                task,
                learned.methods,
                initial_lr_factors=initial_lr_factors,
                seeds=evaluation_seeds(num_seeds),
                disturbance=disturbance,
            )
            results += output.train(cells, f"{name}, disturbance: {disturbance.name}")
        output.write_runs([*results, *recorded])
    write_report(results, policy, num_replay, output)

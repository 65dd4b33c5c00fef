"""Runs that placebos are made from: of the policy, and of multipliers that nothing changes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lrpilot import Policy
from lrpilot.evaluation.methods.placebos import (
    STATIC_MULTIPLIERS,
    Recording,
    placebos_of,
    recording_of,
    static,
)
from lrpilot.evaluation.runs.cell import REPLAY, Cell, grid_of
from lrpilot.evaluation.runs.grid import Method, Result, deployed
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import replay_seeds
from lrpilot.evaluation.statistics import select, unique
from lrpilot.tasks.task import Task


@dataclass(frozen=True)
class Learned:
    """A policy and its placebos.

    Args:
        methods: the policy, then its placebos.
        recorded: the runs that the placebos are made from.
    """

    methods: Sequence[Method]
    recorded: Sequence[Result]


def with_placebos(
    policy: Policy,
    task: Task,
    *,
    initial_lr_factors: Sequence[float],
    num_replay: int,
    output: Output,
    total_steps: int | None = None,
) -> Learned:
    """Record a policy on replay seeds, choose the best static multipliers there, make placebos.

    Where every seed is another training, with a learning rate of its own, there is no schedule to
    replay and no multiplier to choose; then the untrained policy and the random walk are left.

    Args:
        policy: the learned policy.
        task: what is trained.
        initial_lr_factors: initial learning rates over the task's `base_lr`.
        num_replay: replay seeds, at least 1.
        output: trains the runs.
        total_steps: horizon T; default the task's.
    """
    seeds = replay_seeds(num_replay)
    learned = Method("policy", partial(deployed, policy=policy))

    def cells_of(method: Method, **labels: float) -> list[Cell]:
        return grid_of(
            task,
            [method],
            initial_lr_factors=initial_lr_factors,
            seeds=seeds,
            total_steps=total_steps,
            part=REPLAY,
            labels=labels,
        )

    results = output.train(cells_of(learned), f"{task.name}: {REPLAY}")
    if not have_one_lr(results, policy):
        recording = Recording({}, [action for result in results for action in result.actions])
        return Learned([learned, *_methods(policy, recording)], results)
    tried = [
        cell
        for multiplier in STATIC_MULTIPLIERS
        for cell in cells_of(
            Method(
                f"static x {multiplier:g}",
                partial(static, multiplier=multiplier, anchor=policy.action.anchor),
            ),
            multiplier=multiplier,
        )
    ]
    static_results = output.train(tried, f"{task.name}: static multipliers")
    recording = replace(
        recording_of(results, results[0].row["total_steps"]),
        multipliers=best_multipliers(static_results),
    )
    return Learned([learned, *_methods(policy, recording)], [*results, *static_results])


def _methods(policy: Policy, recording: Recording) -> list[Method]:
    return [Method(name, make) for name, make in placebos_of(policy, recording).items()]


def have_one_lr(results: Sequence[Result], policy: Policy) -> bool:
    """Whether a policy's runs are of one training, so that its learning rates can be averaged.

    The first learning rate of each is then the policy's start factor times the row's initial one;
    it is another where a seed draws optimizer and learning rate, or a task of a mixture.
    """
    start = policy.action.start_factor
    is_one = len({(r.row["task"], r.row["total_steps"]) for r in results}) == 1
    return is_one and all(math.isclose(r.lrs[0], start * r.row["initial_lr"]) for r in results)


def best_multipliers(results: Sequence[Result]) -> dict[float, float]:
    """The multiplier with the smallest mean held-out loss over seeds, by initial learning rate.

    Args:
        results: of `static`; their rows have the column `multiplier`.
    """
    rows = [result.row for result in results]

    def loss(initial_lr: float, multiplier: float) -> float:
        mine = select(rows, initial_lr=initial_lr, multiplier=multiplier)
        return float(np.mean([row["held_out_loss"] for row in mine]))

    return {
        initial_lr: min(unique(rows, "multiplier"), key=partial(loss, initial_lr))
        for initial_lr in unique(rows, "initial_lr")
    }

"""What the paper on deep networks claims, beside what was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from lrpilot.evaluation.experiments.claims import NO_FIGURE, Claim
from lrpilot.evaluation.experiments.searches import Searched
from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.statistics import bounded_loss
from lrpilot.evaluation.tuning_cost import MOST_RUNS, worth_in_runs

POLICY = "policy"


class TaskOutcome(NamedTuple):
    """Mean held-out losses on the unseen seeds of a task, and what else the paper speaks of."""

    policy: float
    """Of the policy at its best initial learning rate."""
    untuned_policy: float
    """Of the policy at all of them, each run's at most that at its start."""
    pairs: Sequence[float]
    """Of each pair, at its best initial learning rate."""
    worth: float
    """Runs of the grid whose expected best equals the expectation of one run of the policy, both on
    the tuning seeds."""
    num_diverged: int
    num_runs: int
    """Of the policy, from all initial learning rates."""


def task_outcome(
    unseen: Sequence[Result], tuned: Mapping[str, float], searched: Searched
) -> TaskOutcome:
    """What the claims are judged by, of one task."""
    rows = [result.row for result in unseen]
    means = {
        m: float(np.mean([bounded_loss(row) for row in rows if _is(row, m, factor)]))
        for m, factor in tuned.items()
    }
    mine = [row for row in rows if row["scheduler"] == POLICY]
    (grid,) = searched.rivals.values()
    return TaskOutcome(
        policy=means.pop(POLICY),
        untuned_policy=float(np.mean([bounded_loss(row) for row in mine])),
        pairs=list(means.values()),
        worth=worth_in_runs(searched.policy, grid),
        num_diverged=sum(row["diverged"] for row in mine),
        num_runs=len(mine),
    )


def _is(row: Mapping[str, Any], method: str, factor: float) -> bool:
    return (row["scheduler"], row["initial_lr_factor"]) == (method, factor)


def claims_of(outcomes: Sequence[TaskOutcome]) -> list[Claim]:
    """What the paper says of learned schedules, beside tuned and untuned policies.

    Its figures and its protocol are not public: here the paper's is that both sides are tuned, and
    the fair one that the policy is not, as for a user without a search. The interval is the exact
    (Clopper-Pearson) one of 95 %.
    """
    num_tasks = len(outcomes)
    tuned = sum(o.policy < min(o.pairs) for o in outcomes)
    untuned = sum(o.untuned_policy < min(o.pairs) for o in outcomes)
    diverged, runs = sum(o.num_diverged for o in outcomes), sum(o.num_runs for o in outcomes)
    most = binomtest(diverged, runs).proportion_ci().high
    worth = ", ".join(worth_text(o.worth) for o in outcomes)
    least = min(o.worth for o in outcomes)
    return [
        Claim(
            "better than all pairs of optimizer and scheduler",
            "yes, " + NO_FIGURE,
            f"tuned, on {tuned} of {num_tasks} tasks",
            f"untuned, on {untuned} of {num_tasks} tasks",
            "holds" if tuned == num_tasks else f"does not hold on {num_tasks - tuned}",
        ),
        Claim(
            "worth more than a search",
            "yes, " + NO_FIGURE,
            "-",
            f"one run equals {worth} runs of the grid",
            f"one run is worth {worth_text(least)} at least",
        ),
        Claim(
            "does not diverge",
            "yes, " + NO_FIGURE,
            "-",
            f"{diverged} of {runs} runs did, at most {most:.1%}",
            "holds" if diverged == 0 else "does not hold",
        ),
    ]


def worth_text(worth: float) -> str:
    """As it is printed.

    >>> worth_text(7.0), worth_text(math.inf)
    ('7', 'over 64')
    """
    return f"over {MOST_RUNS}" if math.isinf(worth) else f"{worth:.0f}"

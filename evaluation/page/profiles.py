"""How often each method comes how close to the best, over many tasks."""

import numpy as np

from lrpilot.evaluation.statistics import Rows, select, tuned_rows, unique
from lrpilot.evaluation.tuning_cost import bounded_losses


def normalized_regret(loss: float, *, best: float, start: float) -> float:
    """The share of what could be gained on a task that a method leaves.

    It is (loss - best) / (start - best): on every task alike, 0 for the best method and 1 for one
    that does not train.

    Args:
        loss: held-out loss of the method, from `best` to `start`.
        best: the lowest held-out loss of any method on the task.
        start: loss before training.

    >>> normalized_regret(0.75, best=0.5, start=2.5)
    0.125
    """
    return 0.0 if loss <= best else min(1.0, (loss - best) / (start - best))


def normalized_regrets(
    rows: Rows, tuning_rows: Rows
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The `normalized_regret` of every scheduler, tuned and untuned.

    Held-out losses are means over seeds of at most the loss at the start, as `bounded_losses` says.

    Args:
        rows: of all tasks.
        tuning_rows: what initial learning rates are chosen on, as for `tuned_rows`; a task that has
            none chooses on its `rows`.

    Returns:
        By scheduler, one value per task, at its best initial learning rate; and one value per task
        and initial learning rate.
    """
    tuned: dict[str, list[float]] = {name: [] for name in unique(rows, "scheduler")}
    untuned: dict[str, list[float]] = {name: [] for name in tuned}
    for task in unique(rows, "task"):
        mine, chosen_on = select(rows, task=task), select(tuning_rows, task=task) or None
        names = unique(mine, "scheduler")
        losses = {name: bounded_losses(select(mine, scheduler=name)) for name in names}
        best = min(min(values.values()) for values in losses.values())
        start = float(np.mean([row["first_loss"] for row in mine]))
        for name, values in losses.items():
            regrets = {
                factor: normalized_regret(loss, best=best, start=start)
                for factor, loss in values.items()
            }
            factor = tuned_rows(mine, name, chosen_on)[0]["initial_lr_factor"]
            tuned[name].append(regrets[factor])
            untuned[name] += regrets.values()
    return tuned, untuned

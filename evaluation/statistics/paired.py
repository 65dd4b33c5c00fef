"""One scheduler against each other one, on the same seeds."""

from typing import NamedTuple

import numpy as np

from lrpilot.evaluation.statistics.matrices import paired_differences, probability_of_improvement
from lrpilot.evaluation.statistics.rows import (
    Rows,
    bounded_loss,
    mean_and_spread,
    tuned_rows,
    unique,
)
from lrpilot.evaluation.statistics.significance import holm_correction, signed_rank_test


class PairedComparison(NamedTuple):
    """A reference scheduler against another one."""

    scheduler: str
    """The other one."""
    differences: list[float]
    """Loss of the reference minus that of the other, one per seed: negative is better."""
    probability: float
    """The probability that the reference improves on the other, seeds not paired."""
    p_value: float
    """Of the signed-rank test of the differences, corrected by Holm for all comparisons."""


def compare_with(
    rows: Rows, reference: str, tuning_rows: Rows | None = None
) -> list[PairedComparison]:
    """A scheduler against each other one by held-out loss, each at its best initial learning rate.

    A run that diverged counts as one that was not trained: with its loss at the start. The p-values
    say nothing about the choice of the initial learning rates, which `tuned_rows` makes.

    Args:
        rows: of one task, with every scheduler on the same seeds.
        reference: the scheduler that is compared with each other one.
        tuning_rows: as for `tuned_rows`.

    Raises:
        ValueError: if the reference has no rows or no rival, or a scheduler has other seeds.
    """
    names = unique(rows, "scheduler")
    if reference not in names or len(names) < 2:
        raise ValueError(
            f"`reference` must be one of at least 2 schedulers {names}, got {reference}"
        )
    losses = {name: _losses_by_seed(rows, name, tuning_rows) for name in names}
    ours = losses.pop(reference)
    compared = []
    for name, theirs in losses.items():
        if theirs.keys() != ours.keys():
            raise ValueError(
                f"`rows` must have {name} on the seeds {list(ours)}, got {list(theirs)}"
            )
        mine, others = (np.array([[run[seed]] for seed in ours]) for run in (ours, theirs))
        differences = paired_differences(mine, others)[:, 0]
        probability = probability_of_improvement(-mine, -others)
        compared.append((name, differences, probability, signed_rank_test(differences)))
    corrected = holm_correction([p_value for *_, p_value in compared])
    return [
        PairedComparison(name, differences.tolist(), probability, p_value)
        for (name, differences, probability, _), p_value in zip(compared, corrected, strict=True)
    ]


def paired_table(rows: Rows, reference: str, tuning_rows: Rows | None = None) -> list[list[str]]:
    """What `compare_with` finds: a header, and a line per other scheduler.

    The mean difference stands with the ends of its interval, as `mean_and_spread` has them.
    """
    header = [f"{reference} minus", "held-out loss", "from", "to", "P(improves)", "p (Holm)"]
    lines = [
        [
            compared.scheduler,
            *(f"{value:+.4g}" for value in mean_and_spread(compared.differences)),
            f"{compared.probability:.2f}",
            f"{compared.p_value:.2g}",
        ]
        for compared in compare_with(rows, reference, tuning_rows)
    ]
    return [header, *lines]


def _losses_by_seed(rows: Rows, name: str, tuning_rows: Rows | None) -> dict[int, float]:
    return {row["seed"]: bounded_loss(row) for row in tuned_rows(rows, name, tuning_rows)}

"""The statistics of comparisons: pure functions on rows of runs, or on (runs x tasks) matrices.

What reads rows is imported from here. The rest is imported from its module, because scipy,
rliable and statsmodels take seconds to load:

- `matrices`: interquartile mean, paired differences, probability of improvement, intervals;
- `significance`: signed-rank and sign test, Holm's correction, intervals of proportions;
- `profiles`: performance profiles, and AlgoPerf's score of times to a target;
- `stages`: better or worse at 10, 50 and 100 % of the steps, as the GreedyLR paper counts;
- `paired`: one scheduler against each other one, on the same seeds.
"""

from lrpilot.evaluation.statistics.rows import (
    MIN_SEEDS,
    Rows,
    best_factor,
    bounded_loss,
    mean_and_spread,
    mean_at_factors,
    select,
    tuned_rows,
    unique,
)

__all__ = [
    "MIN_SEEDS",
    "Rows",
    "best_factor",
    "bounded_loss",
    "mean_and_spread",
    "mean_at_factors",
    "select",
    "tuned_rows",
    "unique",
]

"""Better or worse at three stages of a run: as the GreedyLR paper counts it, and once per pair.

The paper compares two schedulers on the same training at 10, 50 and 100 % of the steps, and
counts every stage as one instance: 196 instances are about 66 pairs of runs. The three stages of
a pair are of the same two runs, so they are no independent trials, and no interval of a
proportion holds for them. Counted properly, a pair has one outcome, that at its end.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpilot.evaluation.statistics.matrices import as_matrix, paired_differences
from lrpilot.evaluation.statistics.significance import proportion_interval

STAGES = (10, 50, 100)
"""At which percentages of the steps the paper compares losses."""

MARGIN = 0.1
"""Losses of the paper's small models that differ by less differ insignificantly."""


class Outcomes(NamedTuple):
    """How often a method is better or worse than its rival, with the paper's words for it."""

    clearly_better: int
    """'yes'"""
    slightly_better: int
    """'yes*'"""
    slightly_worse: int
    """'no*'; equal losses are among them"""
    clearly_worse: int
    """'no'"""

    @property
    def counts(self) -> dict[str, int]:
        """The instances behind each line of the paper's table of results.

        >>> Outcomes(48, 64, 58, 26).counts["as good or better"]
        170
        """
        better = self.clearly_better + self.slightly_better
        return {
            "as good or better": better + self.slightly_worse,
            "better": better,
            "clearly better": self.clearly_better,
            "as good": self.slightly_better + self.slightly_worse,
            "worse": self.clearly_worse,
        }

    @property
    def shares(self) -> dict[str, float]:
        """The `counts` over the number of instances, as the paper reports them.

        >>> round(100 * Outcomes(48, 64, 58, 26).shares["as good or better"], 2)
        86.73
        """
        return {name: count / sum(self) for name, count in self.counts.items()}

    def intervals(
        self, *, confidence: float = 0.95, exact: bool = False
    ) -> dict[str, tuple[float, float]]:
        """The `proportion_interval` of each share, which needs independent instances.

        Those of `final_outcomes` are, if no two pairs have a run in common; those of
        `stage_outcomes` are not.

        >>> low, high = Outcomes(20, 10, 5, 5).intervals()["clearly better"]
        >>> round(low, 3), round(high, 3)
        (0.352, 0.648)
        """
        return {
            name: proportion_interval(count, sum(self), confidence=confidence, exact=exact)
            for name, count in self.counts.items()
        }


def losses_at_stages(losses: ArrayLike) -> NDArray[np.float64]:
    """The loss of each run after 10, 50 and 100 % of its steps T: that of step ceil(p T / 100).

    The paper does not say whether it takes the loss of that step or a mean of the last ones; of
    noisy losses, pass means.

    Args:
        losses: of shape (pairs, steps), one run in each row.

    Returns:
        Of shape (pairs, 3).

    >>> losses_at_stages([[float(20 - step) for step in range(20)]]).tolist()
    [[19.0, 11.0, 1.0]]
    """
    curves = as_matrix(losses, "losses")
    # in integers, because 0.1 * 70 > 7
    return curves[:, [(percent * curves.shape[1] + 99) // 100 - 1 for percent in STAGES]]


def stage_outcomes(losses: ArrayLike, rival: ArrayLike, *, margin: float = MARGIN) -> Outcomes:
    """Better or worse than a rival, counted at every stage of every pair, as the paper does.

    With d = rival's loss - loss at a stage of a pair: clearly better if d >= margin, slightly
    better if 0 < d < margin, clearly worse if d <= -margin, and slightly worse otherwise. A margin
    below which losses do not differ is the paper's (0.1 for its small models). That losses which
    differ by just the margin differ clearly follows from its words; that equal losses, and two
    runs that both diverged, are slightly worse ("as good", not "better") is assumed here.

    Args:
        losses: of a method, of shape (pairs, stages), as `losses_at_stages` has them.
        rival: of its rival in the same pair, of the same shape.
        margin: positive. The paper's large models differ insignificantly within 1 %: divide both
            losses by the rival's, and pass 0.01.

    Returns:
        The counts; their sum is pairs * stages.

    Raises:
        ValueError: if the shapes differ, or the margin is not positive.

    References:
        Subramanian, Krishnamoorthy, Murthy. Dynamic learning rate scheduling based on loss changes
        leads to faster convergence. 2025.

    >>> stage_outcomes([[2.0, 1.0, 0.5]], [[2.5, 1.05, 0.45]])
    Outcomes(clearly_better=1, slightly_better=1, slightly_worse=1, clearly_worse=0)
    """
    if not margin > 0:
        raise ValueError(f"`margin` must be above 0, got {margin}")
    ahead = -paired_differences(losses, rival)
    clearly_better, better = ahead >= margin, ahead > 0
    clearly_worse = ahead <= -margin
    return Outcomes(
        int(clearly_better.sum()),
        int((better & ~clearly_better).sum()),
        int((~better & ~clearly_worse).sum()),
        int(clearly_worse.sum()),
    )


def final_outcomes(losses: ArrayLike, rival: ArrayLike, *, margin: float = MARGIN) -> Outcomes:
    """Better or worse than a rival at the end of the run: one outcome per pair.

    Args:
        losses: as for `stage_outcomes`; the last stage is compared alone.
        rival: as for `stage_outcomes`.
        margin: as for `stage_outcomes`.

    Returns:
        The counts; their sum is the number of pairs.

    >>> final_outcomes([[2.0, 1.0, 0.5]], [[2.5, 1.05, 0.45]])
    Outcomes(clearly_better=0, slightly_better=0, slightly_worse=1, clearly_worse=0)
    """
    ours, theirs = as_matrix(losses, "losses"), as_matrix(rival, "rival")
    return stage_outcomes(ours[:, -1:], theirs[:, -1:], margin=margin)

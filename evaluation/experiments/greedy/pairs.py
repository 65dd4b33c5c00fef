"""GreedyLR against schedules, in pairs of runs: the paper's counts, and one outcome per pair."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from lrpilot.evaluation.experiments.claims import Claim, write_claims
from lrpilot.evaluation.experiments.greedy.protocols import (
    Contest,
    Runs,
    describe_protocols,
    mean_losses_at_stages,
    train_protocols,
)
from lrpilot.evaluation.report import write_figure
from lrpilot.evaluation.runs.grid import Method
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.statistics.significance import sign_test
from lrpilot.evaluation.statistics.stages import Outcomes, final_outcomes, stage_outcomes
from lrpilot.tasks.small_networks.task import SmallNetworkTask

PAPER_SHARES = {"as good or better": 0.8673, "better": 0.5714, "clearly better": 0.2449}
PAPER_WORST = -0.62
GREEDY = "greedy"


class PairLosses(NamedTuple):
    """Losses of both sides of every pair, each of shape (pairs, stages)."""

    greedy: NDArray[np.float64]
    rival: NDArray[np.float64]

    @property
    def lead(self) -> NDArray[np.float64]:
        """How much lower GreedyLR's loss is at the end, one per pair; 0 if both diverged."""
        rival, greedy = self.rival[:, -1], self.greedy[:, -1]
        return np.subtract(rival, greedy, out=np.zeros(len(rival)), where=rival != greedy)


def compare_pairs(
    *,
    network: SmallNetworkTask,
    optimizers: Mapping[str, Mapping[str, Any]],
    greedy: Callable[..., Any],
    baselines: Mapping[str, Callable[..., Any]],
    num_networks: int,
    initial_lr_factors: Sequence[float],
    num_tuning: int,
    num_seeds: int,
    output: Output,
) -> None:
    """Train both sides of every pair under both protocols, and write table, figure and runs.

    Every pair has a network, data and runs of its own, so that pairs are independent: setup i of
    `network`, whose seeds draw other data of the same kind.

    Args:
        network: what the pairs' trainings are made from.
        optimizers: by name; `optimizer` and the `base_lr` that counts as untuned.
        greedy: the scheduler on one side of every pair.
        baselines: on the other side, by name.
        num_networks: pairs of each optimizer with each baseline.
        initial_lr_factors: as for `train_protocols`.
        num_tuning: as for `train_protocols`.
        num_seeds: as for `train_protocols`.
        output: gets runs.parquet, pairs.png and table.md.
    """
    cases = list(product(optimizers, baselines, range(num_networks)))
    contests = []
    for i, (optimizer, baseline, _) in enumerate(cases):
        task = replace(
            network,
            name=f"{i}-{optimizer}-{baseline}",
            num_setups=1,
            setup_seed=i,
            data=[network.data[i % len(network.data)]],
            **optimizers[optimizer],
        )
        methods = [Method(GREEDY, greedy), Method(baseline, baselines[baseline])]
        contests.append(Contest(task, methods))
    runs = train_protocols(
        contests,
        initial_lr_factors=initial_lr_factors,
        num_tuning=num_tuning,
        num_seeds=num_seeds,
        output=output,
    )
    as_in_paper, fair = paper_losses(runs, contests), fair_losses(runs, contests)
    draw(as_in_paper, fair, output)
    write_claims(
        output,
        f"GreedyLR in {len(cases)} pairs of {len(optimizers)} optimizers and "
        f"{len(baselines)} schedules, each on a network of its own",
        pair_claims(as_in_paper, fair),
        details=[
            f"{network.total_steps} steps per run",
            *describe_protocols(initial_lr_factors, num_tuning, num_seeds),
            "shares count one outcome per pair, with Wilson's 95 % interval",
        ],
    )


def paper_losses(runs: Runs, contests: Sequence[Contest]) -> PairLosses:
    """Training losses of the pairs at the three stages of the one run of each side."""
    sides = [
        [
            mean_losses_at_stages(
                runs.result_as_in_paper(contest.task.name, method.name), contest.task.total_steps
            )
            for method in contest.methods
        ]
        for contest in contests
    ]
    return PairLosses(*np.array(sides).swapaxes(0, 1))


def fair_losses(runs: Runs, contests: Sequence[Contest]) -> PairLosses:
    """Mean held-out losses of the pairs at the end, over seeds."""
    sides = [
        [[np.mean(runs.fair_losses(contest.task.name, m.name))] for m in contest.methods]
        for contest in contests
    ]
    return PairLosses(*np.array(sides).swapaxes(0, 1))


def pair_claims(as_in_paper: PairLosses, fair: PairLosses) -> list[Claim]:
    """The paper's shares and its worst pair, and what became of them."""
    stages, at_end = stage_outcomes(*as_in_paper), final_outcomes(*as_in_paper)
    pairs = final_outcomes(*fair)
    intervals = pairs.intervals()
    claims = [
        Claim(
            name,
            f"{100 * share:.2f} %",
            f"{100 * stages.shares[name]:.1f} % of {sum(stages)} stages; at the end "
            + share_with_interval(at_end, name),
            share_with_interval(pairs, name),
            compare_share(share, intervals[name]),
        )
        for name, share in PAPER_SHARES.items()
    ]
    lead = fair.lead
    p_value = sign_test(lead[np.isfinite(lead)])
    word = "GreedyLR ahead" if np.median(lead) > 0 else "GreedyLR behind"
    return [
        *claims,
        Claim(
            "worst lead",
            f"{PAPER_WORST:.2f}",
            f"{as_in_paper.lead.min():.2f}",
            f"{lead.min():.2f}",
            "worse than in the paper" if lead.min() < PAPER_WORST else "within the paper's",
        ),
        Claim(
            "median lead",
            "no figure",
            f"{np.median(as_in_paper.lead):+.4f}",
            f"{np.median(lead):+.4f}, sign test p = {p_value:.2g}",
            word if p_value < 0.05 else "not different from 0",
        ),
    ]


def share_with_interval(outcomes: Outcomes, name: str) -> str:
    """A share in per cent with the ends of its interval.

    >>> share_with_interval(Outcomes(5, 5, 5, 5), "better")
    '50.0 % [29.9, 70.1]'
    """
    low, high = outcomes.intervals()[name]
    return f"{100 * outcomes.shares[name]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def compare_share(paper: float, interval: tuple[float, float]) -> str:
    """Whether the paper's share lies in the interval that was measured.

    >>> compare_share(0.9, (0.3, 0.7)), compare_share(0.5, (0.3, 0.7))
    ('less often than in the paper', 'as in the paper, to the interval')
    """
    if interval[1] < paper:
        return "less often than in the paper"
    if interval[0] > paper:
        return "more often than in the paper"
    return "as in the paper, to the interval"


def draw(as_in_paper: PairLosses, fair: PairLosses, output: Output) -> None:
    """The lead of every pair at its end, sorted, under both protocols."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    titles = ("paper's protocol: training loss", "fair protocol: held-out loss")
    for axis, title, losses in zip(axes, titles, (as_in_paper, fair), strict=True):
        lead = np.sort(np.clip(losses.lead, -1.0, 1.0))
        axis.bar(np.arange(len(lead)), lead, color=np.where(lead > 0, "tab:green", "tab:gray"))
        axis.axhline(0.0, color="black", linewidth=0.6)
        axis.set(title=title, xlabel="pairs, sorted")
    axes[0].set_ylabel("rival's loss - GreedyLR's (cut at 1)")
    figure.tight_layout()
    write_figure(figure, output.folder / "pairs.png")

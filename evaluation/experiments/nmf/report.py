"""Tables and figures of the NMF experiment."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from scipy.stats import binomtest

from lrpilot.evaluation.experiments.claims import NO_FIGURE, Claim, compared
from lrpilot.evaluation.experiments.nmf.trials import Trial
from lrpilot.evaluation.report import (
    format_interval,
    format_table,
    judge,
    line_style,
    write_figure,
)
from lrpilot.evaluation.runs.cell import REPORT
from lrpilot.evaluation.runs.grid import Result

BOUNDED = ("clipped", "fraction")
"""The modes in which a control never leaves the bound."""


@dataclass(frozen=True)
class Outcome:
    """One control on the held-out seeds.

    Args:
        name: as in the table.
        mode: how it is joined to the cap: "raw", "clipped", "fraction", or "-".
        tuned: the initial learning rate or cap fraction that tuning chose; NaN if nothing is.
        trial: its runs.
    """

    name: str
    mode: str
    tuned: float
    trial: Trial


def best_schedule(outcomes: Sequence[Outcome], *modes: str) -> Outcome:
    """The best tuned schedule, by its held-out mean, of those joined to the cap in these modes."""
    schedules = [o for o in outcomes[1:] if o.mode in modes and ":" not in o.name]
    return min(schedules, key=lambda outcome: float(outcome.trial.scores.mean()))


def comparison_table(outcomes: Sequence[Outcome]) -> str:
    """Mean log10(f(T)/f(0)) with 95 % intervals, and the paired difference to the policy."""
    policy = outcomes[0].trial.scores
    lines = []
    for outcome in outcomes:
        scores = outcome.trial.scores
        wins = [format_interval(list(policy - scores)), f"{np.mean(policy < scores):.0%}"]
        lines.append(
            [
                outcome.name,
                outcome.mode,
                "-" if np.isnan(outcome.tuned) else f"{outcome.tuned:g}",
                format_interval(list(scores)),
                *(["-", "-"] if outcome is outcomes[0] else wins),
                f"{int(outcome.trial.diverged.sum())}/{len(scores)}",
            ]
        )
    header = ["control", "cap", "tuned", "log10 f(T)/f(0)", "policy minus it", "policy wins"]
    return format_table([*header, "diverged"], lines)


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Whether the policy beats the best tuned schedule with cap, and its replay, significantly."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    policy = outcomes[0].trial.scores
    best = best_schedule(outcomes, *BOUNDED)
    lines = []
    for title, other in (
        (f"best tuned schedule with cap ({best.name}, {best.mode})", best),
        ("replay of its mean schedule", by_name["placebo: replay"]),
        ("exact line oracle", by_name["oracle: exact line"]),
    ):
        judged = judge(list(policy - other.trial.scores), lower="better", higher="worse")
        lines.append(f"policy against {title}: {judged}")
    return "\n".join(lines)


def claims_of(outcomes: Sequence[Outcome], problem: str) -> list[Claim]:
    """What the paper says, on one problem; it has no figures.

    Differences are paired by run, in log10(f(T)/f(0)), between the policy and the best of the
    tuned schedules: without the bound, as traditional schedules are, which is taken for the paper's
    protocol, since that is not public, and with it. Runs under the bound are those of all controls
    that keep it; the interval of their share is the exact (Clopper-Pearson) one of 95 %.
    """
    policy = outcomes[0].trial.scores
    raw = best_schedule(outcomes, "raw")
    bounded = best_schedule(outcomes, *BOUNDED)
    without, _ = compared(list(policy), list(raw.trial.scores), raw.name)
    with_bound, word = compared(list(policy), list(bounded.trial.scores), bounded.name)
    kept = [outcome.trial.diverged for outcome in outcomes if outcome.mode in BOUNDED]
    diverged, runs = sum(int(each.sum()) for each in kept), sum(len(each) for each in kept)
    most = binomtest(diverged, runs).proportion_ci().high
    return [
        Claim(f"{problem}: better schedules", f"yes, {NO_FIGURE}", without, with_bound, word),
        Claim(
            f"{problem}: the bound keeps runs from diverging",
            f"yes, {NO_FIGURE}",
            "-",
            f"{diverged} of {runs} runs did, at most {most:.2%}",
            "holds" if diverged == 0 else "does not hold",
        ),
    ]


def outcome_rows(outcomes: Sequence[Outcome], problem: str) -> list[dict[str, Any]]:
    """One row per control and run."""
    return [
        {
            "problem": problem,
            "control": outcome.name,
            "cap": outcome.mode,
            "tuned": outcome.tuned,
            "run": i,
            "score": float(score),
            "diverged": int(outcome.trial.diverged[i]),
        }
        for outcome in outcomes
        for i, score in enumerate(outcome.trial.scores)
    ]


def results_of(outcomes: Sequence[Outcome], problem: str, seeds: Sequence[int]) -> list[Result]:
    """Every run as those of other experiments; its held-out loss is the exact f(T).

    What was tuned, the initial learning rate or the fraction of the cap, is the factor; it is 1
    where nothing is.
    """
    results = []
    for outcome in outcomes:
        trial = outcome.trial
        name = outcome.name if outcome.mode == "-" else f"{outcome.name} ({outcome.mode})"
        for i, seed in enumerate(seeds):
            diverged = bool(trial.diverged[i])
            row = {
                "task": problem,
                "scheduler": "policy" if outcome is outcomes[0] else name,
                "initial_lr_factor": 1.0 if np.isnan(outcome.tuned) else outcome.tuned,
                "initial_lr": float(trial.lrs[0, i]),
                "seed": seed,
                "total_steps": len(trial.lrs),
                "first_loss": float(trial.objectives[0, i]),
                "train_loss": np.inf if diverged else float(trial.losses[-1, i]),
                "held_out_loss": np.inf if diverged else float(trial.objectives[1, i]),
                "diverged": int(diverged),
                "seconds": trial.seconds / len(seeds),
                "part": REPORT,
            }
            actions = trial.decided[:, 1, i].tolist() if trial.decided.size else []
            results.append(
                Result(row, trial.lrs[:, i].tolist(), trial.losses[:, i].tolist(), actions)
            )
    return results


def draw_outcomes(outcomes: Sequence[Outcome], title: str, path: Path) -> None:
    """Mean log loss and mean step size over steps: policy, best schedules, placebos, oracle."""
    constant = next(o for o in outcomes if (o.name, o.mode) == ("constant", "fraction"))
    shown = [outcomes[0], best_schedule(outcomes, *BOUNDED), constant]
    shown += [best_schedule(outcomes, "raw")]
    shown += [o for o in outcomes if o.name.startswith(("placebo", "oracle"))]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for i, outcome in enumerate(shown):
        label = outcome.name if outcome.mode == "-" else f"{outcome.name} ({outcome.mode})"
        style = line_style(label, i, is_policy=i == 0)
        axes[0].plot(outcome.trial.steps, outcome.trial.curve, **style)
        # the oracle's best step is often 0, which no logarithm shows
        if outcome.mode != "raw" and not outcome.name.startswith("oracle"):
            fractions = 10.0 ** np.array(outcome.trial.fractions)
            axes[1].plot(outcome.trial.steps[:-1], fractions, **style)
    axes[0].set(xlabel="step", ylabel="mean log10 f(t)/f(0)")
    axes[1].set(xlabel="step", ylabel="learning rate / cap (geometric mean)", yscale="log")
    figure.suptitle(title)
    write_figure(figure, path, num_legend_columns=4)

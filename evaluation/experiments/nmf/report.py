"""Tables and figures of the NMF experiment."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from lrpilot.evaluation.experiments.nmf.experiment import Outcome
from lrpilot.evaluation.report import (
    POLICY_COLOR,
    format_interval,
    format_table,
    write_figure,
    write_rows,
)
from lrpilot.evaluation.statistics import judge

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def best_with_cap(outcomes: Sequence[Outcome]) -> Outcome:
    """The best tuned schedule that is joined to the cap, by its held-out mean."""
    schedules = [
        outcome
        for outcome in outcomes
        if outcome.mode in ("clipped", "fraction") and ":" not in outcome.name
    ]
    return min(
        (outcome for outcome in schedules if outcome.name != "policy"),
        key=lambda outcome: float(outcome.trial.scores.mean()),
    )


def comparison_table(outcomes: Sequence[Outcome]) -> str:
    """Mean log10(f(T)/f(0)) with 95 % intervals, and the paired difference to the policy."""
    policy = outcomes[0].trial.scores
    lines = []
    for outcome in outcomes:
        scores = outcome.trial.scores
        is_policy = outcome is outcomes[0]
        lines.append(
            [
                outcome.name,
                outcome.mode,
                "-" if np.isnan(outcome.tuned) else f"{outcome.tuned:g}",
                format_interval(list(scores)),
                "-" if is_policy else format_interval(list(policy - scores)),
                "-" if is_policy else f"{np.mean(policy < scores):.0%}",
                f"{int(outcome.trial.diverged.sum())}/{len(scores)}",
            ]
        )
    header = ["control", "cap", "tuned", "log10 f(T)/f(0)", "policy minus it", "policy wins"]
    return format_table([*header, "diverged"], lines)


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Whether the policy beats the best tuned schedule with cap, and its replay, significantly."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    policy = outcomes[0].trial.scores
    best = best_with_cap(outcomes)
    lines = []
    for title, other in (
        (f"best tuned schedule with cap ({best.name}, {best.mode})", best),
        ("replay of its mean schedule", by_name["placebo: replay"]),
        ("exact line oracle", by_name["oracle: exact line"]),
    ):
        judged = judge(list(policy - other.trial.scores), lower="better", higher="worse")
        lines.append(f"policy against {title}: {judged}")
    return "\n".join(lines)


def write_outcomes(outcomes: Sequence[Outcome], problem: str, path: Path) -> None:
    """One row per control and run."""
    write_rows(
        [
            {
                "problem": problem,
                "control": outcome.name,
                "cap": outcome.mode,
                "tuned": outcome.tuned,
                "run": i,
                "score": float(score),
                "diverged": int(diverged),
            }
            for outcome in outcomes
            for i, (score, diverged) in enumerate(
                zip(outcome.trial.scores, outcome.trial.diverged, strict=True)
            )
        ],
        path,
    )


def draw_outcomes(outcomes: Sequence[Outcome], title: str, path: Path) -> None:
    """Mean log loss and mean step size over steps: policy, best schedules, placebos, oracle."""
    best = best_with_cap(outcomes)
    raw = min(
        (outcome for outcome in outcomes if outcome.mode == "raw"),
        key=lambda outcome: float(outcome.trial.scores.mean()),
    )
    constant = next(o for o in outcomes if (o.name, o.mode) == ("constant", "fraction"))
    shown = [outcomes[0], best, constant, raw]
    shown += [o for o in outcomes if o.name.startswith(("placebo", "oracle"))]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for i, outcome in enumerate(shown):
        is_policy = outcome is outcomes[0]
        style = {
            "label": outcome.name if outcome.mode == "-" else f"{outcome.name} ({outcome.mode})",
            "color": POLICY_COLOR if is_policy else plt.get_cmap("tab10")((i + (i > 2)) % 10),
            "linewidth": 2.5 if is_policy else 1.2,
            "zorder": 3 if is_policy else 2,
        }
        axes[0].plot(outcome.trial.steps, outcome.trial.curve, **style)
        # the oracle's best step is often 0, which no logarithm shows
        if outcome.mode != "raw" and not outcome.name.startswith("oracle"):
            fractions = 10.0 ** np.array(outcome.trial.fractions)
            axes[1].plot(outcome.trial.steps[:-1], fractions, **style)
    axes[0].set(xlabel="step", ylabel="mean log10 f(t)/f(0)")
    axes[1].set(xlabel="step", ylabel="learning rate / cap (geometric mean)", yscale="log")
    figure.suptitle(title)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    write_figure(figure, path)

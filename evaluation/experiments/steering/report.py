"""Tables, figure and verdicts: the policy minus each placebo, paired by seed."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt

from lrpilot import Policy
from lrpilot.evaluation import report
from lrpilot.evaluation.runs.disturbance import UNDISTURBED
from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.statistics import (
    MIN_SEEDS,
    Rows,
    bounded_loss,
    mean_and_spread,
    select,
    unique,
)

PREFIX = "placebo: "
REPLAY = "placebo: replay"
# of the others the differences are so large that they would hide these
DRAWN = (REPLAY, "placebo: mean schedule", "placebo: static best multiplier")
WORDS = ("better than", "no different from", "worse than")


def write_report(
    results: Sequence[Result], policy: Policy, num_replay: int, output: Output
) -> None:
    """Write runs.csv, steering.png and table.md; see `compare_steering`."""
    rows = [result.row for result in results]
    output.write_rows(rows, "runs.csv")
    draw_differences(rows, output)
    tasks, num_seeds = unique(rows, "task"), len(unique(rows, "seed"))
    output.write_table(
        f"does the policy steer? held-out loss of the policy, and the policy minus each placebo, "
        f"paired by {num_seeds} seeds: {report.describe_spread(num_seeds)}; below 0 the policy is "
        "better",
        *(steering_table(select_results(results, task)) for task in tasks),
        name="table.md",
        details=[
            f"mean of {len(unique(rows, 'initial_lr_factor'))} initial learning rates, a run that "
            "ends above its first loss counting with that",
            f"placebos from {num_replay} other seeds, undisturbed",
            f"policy {policy.fingerprint[:12]}",
        ],
        verdict="\n".join(
            f"{task}, {name}: {verdict(differences(select(rows, task=task, disturbance=name)))}"
            for task in tasks
            for name in unique(rows, "disturbance")
        ),
    )


def select_results(results: Sequence[Result], task: str) -> list[Result]:
    """Those of one task."""
    return [result for result in results if result.row["task"] == task]


def seed_losses(rows: Rows, scheduler: str) -> list[float]:
    """Mean over initial learning rates of min(held-out loss, first loss), one per seed."""
    mine = select(rows, scheduler=scheduler)
    return [
        float(np.mean([bounded_loss(row) for row in select(mine, seed=seed)]))
        for seed in unique(mine, "seed")
    ]


def differences(rows: Rows) -> dict[str, list[float]]:
    """The policy's loss minus that of each placebo, one per seed.

    Args:
        rows: of one task under one disturbance.
    """
    policy = seed_losses(rows, "policy")
    return {
        name: [a - b for a, b in zip(policy, seed_losses(rows, name), strict=True)]
        for name in unique(rows, "scheduler")
        if name.startswith(PREFIX)
    }


def lr_ratio(results: Sequence[Result], disturbance: str) -> float:
    """How the policy's learning rate answers a disturbance: its change on the same seeds.

    The geometric mean, over runs and the second half of the steps after the disturbance begins, of
    the learning rate that the optimizer used over that of the undisturbed run of the same seed. A
    schedule without feedback has 1, or the multiple of a disturbance of learning rates.

    Args:
        results: of one task.
        disturbance: its name.
    """
    curves: dict[tuple[str, float, int], Sequence[float]] = {
        (r.row["disturbance"], r.row["initial_lr_factor"], r.row["seed"]): r.lrs
        for r in results
        if r.row["scheduler"] == "policy"
    }
    logs = []
    for (name, factor, seed), lrs in curves.items():
        plain = curves[(UNDISTURBED.name, factor, seed)]
        if name == disturbance and len(lrs) == len(plain):  # none broke off
            tail = slice(len(lrs) * 3 // 4, None)
            logs.append(float(np.mean(np.log(lrs[tail]) - np.log(plain[tail]))))
    return math.exp(float(np.mean(logs))) if logs else math.nan


def steering_table(results: Sequence[Result]) -> str:
    """A line per disturbance, of one task; counts are of the policy's runs.

    Where the brake of `PolicyLR` cut the learning rate, the credit is not the network's alone.
    """
    rows = [result.row for result in results]
    lines, rivals = [], list(differences(select(rows, disturbance=UNDISTURBED.name)))
    for name in unique(rows, "disturbance"):
        mine = select(rows, disturbance=name)
        found = differences(mine)
        policy = select(mine, scheduler="policy")
        diverged = [row["diverged"] for row in policy]
        braked = [row["brake_alarms"] > 0 for row in policy]
        lines.append(
            [
                name,
                report.format_interval(seed_losses(mine, "policy")),
                *(report.format_interval(found[rival]) for rival in rivals),
                f"{lr_ratio(results, name):.3g}",
                f"{sum(braked)}/{len(braked)}",
                f"{sum(diverged)}/{len(diverged)}",
            ]
        )
    header = [rows[0]["task"], "policy", *(f"minus {rival[len(PREFIX) :]}" for rival in rivals)]
    return report.format_table([*header, "lr over undisturbed", "braked", "diverged"], lines)


def verdict(found: Mapping[str, Sequence[float]]) -> str:
    """In words; steering is to be better than the replay, which differs in feedback alone.

    Args:
        found: differences, as `differences` gives.

    >>> verdict({"placebo: replay": [-0.1] * 5, "placebo: untrained": [0.1, -0.1, 0.1, -0.1, 0.0]})
    'steers; better than replay; no different from untrained'
    """
    by_word: dict[str, list[str]] = {}
    for name, values in found.items():
        by_word.setdefault(word_of(values), []).append(name.removeprefix(PREFIX))
    if len(found[REPLAY]) < MIN_SEEDS:
        return f"{len(found[REPLAY])} seeds, too few for a verdict"
    answers = ("steers", "no steering seen", "worse for its feedback")
    answer = answers[WORDS.index(word_of(found[REPLAY]))]
    parts = [f"{word} {', '.join(by_word[word])}" for word in WORDS if word in by_word]
    return "; ".join([answer, *parts])


def word_of(values: Sequence[float]) -> str:
    """Which of `WORDS` the interval of paired differences supports; below 0 is better."""
    _, low, high = mean_and_spread(values)
    return WORDS[0] if high < 0 else WORDS[2] if low > 0 else WORDS[1]


def draw_differences(rows: Rows, output: Output) -> None:
    """A panel per task: the policy minus placebos, with intervals, at every disturbance."""
    tasks, names = unique(rows, "task"), unique(rows, "disturbance")
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.6 * len(tasks), 4.0), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        axis.axvline(0.0, color="0.6", linewidth=0.8)
        for i, rival in enumerate(DRAWN):
            color = report.line_style(rival, i, is_policy=False)["color"]
            found = [
                mean_and_spread(differences(select(rows, task=task, disturbance=name))[rival])
                for name in names
            ]
            means, lows, highs = np.array(found).T
            places = np.arange(len(names)) + 0.22 * (i - 1)
            axis.hlines(places, lows, highs, color=color)
            axis.plot(means, places, "o", color=color, label=f"minus {rival[len(PREFIX) :]}")
        axis.set(title=task, yticks=range(len(names)), xlabel="policy minus placebo, held-out loss")
        axis.set_yticklabels(names if axis is axes[0, 0] else [])
        axis.invert_yaxis()
    path = output.folder / "steering.png"
    report.write_figure(figure, path, num_legend_columns=len(DRAWN))

"""Tables and figures of a comparison."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lrpilot.evaluation.grid import Result
from lrpilot.evaluation.statistics import (
    MIN_SEEDS,
    Rows,
    best_factor,
    mean_and_spread,
    select,
    unique,
)
from lrpilot.files import write_whole

matplotlib.use("Agg")
from matplotlib import pyplot as plt

POLICY_COLOR = "#d62728"
QUICK_NOTE = "quick: shows that everything runs, means nothing"


def write_rows(rows: Rows, path: Path) -> None:
    """Write rows as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, file.getvalue())


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, and close it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    plt.close(figure)
    write_whole(path, file.getvalue())


def write_table(text: str, path: Path, *, is_quick: bool = False) -> None:
    """Write a table with what belongs to it, and print it; a quick version's says what it is."""
    text = f"{QUICK_NOTE}\n\n{text}" if is_quick else text
    write_whole(path, text)
    print(f"\n{text}")


def format_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, aligned for reading as text."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([cells[0].ljust(widths[0]), *rest]) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *map(line, lines)])


def format_interval(values: Sequence[float]) -> str:
    """Mean and interval, or of few seeds the least and the largest, to the digits that show them.

    >>> format_interval([0.1, 0.2]), format_interval([0.1, 0.2, 0.3, 0.4, 0.5])
    ('0.15 (0.10 to 0.20)', '0.30 [0.18, 0.42]')
    """
    mean, low, high = mean_and_spread(values)
    if not np.isfinite(low) or len(values) == 1:
        return f"{mean:.4g}"
    digits = max(2, 1 - math.floor(math.log10(high - low))) if high > low else 3
    ends = f"{low:.{digits}f}", f"{high:.{digits}f}"
    spread = f"({' to '.join(ends)})" if len(values) < MIN_SEEDS else f"[{', '.join(ends)}]"
    return f"{mean:.{digits}f} {spread}"


def describe_spread(num_seeds: int) -> str:
    """What `format_interval` shows of so many seeds, for the head of a table."""
    if num_seeds == 1:
        return "one value"
    return "mean [95 % bootstrap interval]" if num_seeds >= MIN_SEEDS else "mean (least to largest)"


def tuned_table(rows: Rows, tuning_rows: Rows | None = None) -> str:
    """One line per scheduler, at its own best initial learning rate by held-out loss.

    Divergence is counted over all initial learning rates.

    Args:
        rows: what is reported.
        tuning_rows: what the choice is made on. Without them it is made on `rows`, and the
            held-out loss is optimistic for every scheduler alike (the test accuracy is not).
    """
    accuracy = "test_accuracy" in rows[0]
    header = ["scheduler", "best initial lr", "train loss", "held-out loss"]
    header += ["test accuracy"] * accuracy + ["diverged", "seconds/run"]
    lines = []
    for name in unique(rows, "scheduler"):
        mine = select(rows, scheduler=name)
        tuned = best_factor(mine if tuning_rows is None else select(tuning_rows, scheduler=name))
        best = select(mine, initial_lr_factor=tuned)
        line = [name, f"{best[0]['initial_lr']:.3g}"]
        line += [format_interval([row[k] for row in best]) for k in ("train_loss", "held_out_loss")]
        if accuracy:
            line.append(format_interval([row["test_accuracy"] for row in best]))
        line.append(f"{sum(row['diverged'] for row in mine)}/{len(mine)}")
        line.append(f"{np.mean([row['seconds'] for row in best]):.2f}")
        lines.append(line)
    return format_table(header, lines)


def robustness_table(rows: Rows) -> str:
    """Held-out loss (mean over seeds) of every scheduler at every initial learning rate."""
    factors = unique(rows, "initial_lr_factor")
    lines = []
    for name in unique(rows, "scheduler"):
        means = [
            float(
                np.mean(
                    [
                        row["held_out_loss"]
                        for row in select(rows, scheduler=name, initial_lr_factor=factor)
                    ]
                )
            )
            for factor in factors
        ]
        lines.append([name, *(f"{mean:.4g}" for mean in means), f"{np.median(means):.4g}"])
    base_lr = rows[0]["initial_lr"] / rows[0]["initial_lr_factor"]
    return format_table(
        ["held-out loss at initial lr", *(f"{base_lr * f:.3g}" for f in factors), "median"], lines
    )


def curve_rows(results: Sequence[Result], num_points: int = 100) -> list[dict[str, Any]]:
    """LR and mean loss over at most `num_points` stretches of each run."""
    rows = []
    for result in results:
        stretches = np.array_split(np.arange(len(result.losses)), min(num_points, len(result.lrs)))
        rows += [
            {
                **{k: result.row[k] for k in ("scheduler", "initial_lr_factor", "seed")},
                "step": int(stretch[-1]) + 1,
                "lr": result.lrs[stretch[0]],
                "train_loss": float(np.mean([result.losses[i] for i in stretch])),
            }
            for stretch in stretches
        ]
    return rows


def draw_curves(rows: Rows, curves: Rows, path: Path, tuning_rows: Rows | None = None) -> None:
    """LR and loss over steps at each scheduler's best initial LR; held-out loss over it.

    Args:
        rows: as in `runs.csv`.
        curves: as in `curves.csv`.
        path: the PNG file.
        tuning_rows: as for `tuned_table`.
    """
    factors = unique(rows, "initial_lr_factor")
    figure, axes = plt.subplots(1, 2 + (len(factors) > 1), figsize=(15, 4.5), squeeze=False)
    for i, name in enumerate(unique(rows, "scheduler")):
        mine = select(rows, scheduler=name)
        is_policy = name == "policy"
        style = {
            "label": name,
            "color": POLICY_COLOR if is_policy else plt.get_cmap("tab20")(2 * (i + (i > 2)) % 20),
            "linewidth": 2.5 if is_policy else 1.2,
            "zorder": 3 if is_policy else 2,
        }
        tuned = best_factor(mine if tuning_rows is None else select(tuning_rows, scheduler=name))
        best = select(curves, scheduler=name, initial_lr_factor=tuned)
        seeds = [select(best, seed=seed) for seed in unique(best, "seed")]
        last_step = max(points[-1]["step"] for points in seeds)
        longest = [points for points in seeds if points[-1]["step"] == last_step]
        steps = [point["step"] for point in longest[0]]
        for axis, key in ((axes[0, 0], "lr"), (axes[0, 1], "train_loss")):
            values = np.mean([[point[key] for point in points] for points in longest], axis=0)
            axis.plot(steps, values, **style)
        if len(factors) > 1:
            means = [
                np.mean([r["held_out_loss"] for r in select(mine, initial_lr_factor=f)])
                for f in factors
            ]
            base_lr = mine[0]["initial_lr"] / mine[0]["initial_lr_factor"]
            axes[0, 2].plot([base_lr * f for f in factors], means, marker="o", **style)
            axes[0, 2].set(xscale="log", xlabel="initial learning rate", ylabel="held-out loss")
    held_out = [row["held_out_loss"] for row in rows if math.isfinite(row["held_out_loss"])]
    if len(factors) > 1 and held_out and max(held_out) > 10 * min(held_out) > 0:
        axes[0, 2].set_yscale("log")
    axes[0, 0].set(yscale="log", xlabel="optimizer step", ylabel="learning rate")
    axes[0, 1].set(xlabel="optimizer step", ylabel="training loss")
    train_losses = [point["train_loss"] for point in curves if math.isfinite(point["train_loss"])]
    if train_losses and train_losses[0] > 5 * min(train_losses) > 0:
        axes[0, 1].set_yscale("log")
    task, seeds_used = rows[0]["task"], len(unique(rows, "seed"))
    figure.suptitle(f"{task}: mean of {seeds_used} unseen seeds, each at its best initial LR")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    write_figure(figure, path)

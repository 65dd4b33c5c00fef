"""Tables and figures of a comparison."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lrpilot.evaluation.palette import POLICY_STYLE, method_style
from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.runs.output import RUNS_FILE, Output
from lrpilot.evaluation.statistics import (
    MIN_SEEDS,
    Rows,
    mean_and_spread,
    mean_at_factors,
    select,
    tuned_rows,
    unique,
)
from lrpilot.evaluation.tuning_cost import tuning_table
from lrpilot.files import write_whole

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COMPARISON_FILES = (
    RUNS_FILE,
    "runs.csv",
    "curves.csv",
    "curves.png",
    "curves.svg",
    "table.md",
)


def write_figure(figure: Figure, path: Path, *, num_legend_columns: int = 0) -> None:
    """Write a figure as PNG and, of the same name, as SVG, and close it.

    With columns, the first panel's legend is below all.
    """
    if num_legend_columns:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncol=num_legend_columns, frameon=False)
        height = 0.02 + 0.04 * math.ceil(len(labels) / num_legend_columns)
        figure.tight_layout(rect=(0, height, 1, 1))
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    # without date and random ids, the same figure is the same file
    with plt.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    write_whole(path, png.getvalue())
    write_whole(path.with_suffix(".svg"), svg.getvalue())


def line_style(label: str, index: int, *, is_policy: bool) -> dict[str, Any]:
    """How a method's line is drawn: a policy's is thick, red, and in front of the others."""
    style = POLICY_STYLE if is_policy else method_style(index)
    dash = (0, style.dash) if style.dash else "-"
    kind = {"color": style.color, "linestyle": dash, "linewidth": style.width}
    return {"label": label, **kind, "zorder": 3 if is_policy else 2}


def format_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, aligned for reading as text."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([cells[0].ljust(widths[0]), *rest]) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *map(line, lines)])


def describe_spread(num_seeds: int) -> str:
    """What stands behind a mean of so many seeds, for the head of a table.

    `format_interval` and `judge` follow it: fewer than `MIN_SEEDS` seeds show their range.
    """
    if num_seeds == 1:
        return "one value"
    return "mean [95 % bootstrap interval]" if num_seeds >= MIN_SEEDS else "mean (least to largest)"


def _format_spread(low: str, high: str, num_seeds: int) -> str:
    return f"[{low}, {high}]" if num_seeds >= MIN_SEEDS else f"({low} to {high})"


def format_interval(values: Sequence[float]) -> str:
    """Mean and what `describe_spread` says of so many, to the digits that show it.

    >>> format_interval([0.1, 0.2]), format_interval([0.1, 0.2, 0.3, 0.4, 0.5])
    ('0.15 (0.10 to 0.20)', '0.30 [0.18, 0.42]')
    """
    mean, low, high = mean_and_spread(values)
    if not np.isfinite(low) or len(values) == 1:
        return f"{mean:.4g}"
    digits = max(2, 1 - math.floor(math.log10(high - low))) if high > low else 3
    spread = _format_spread(f"{low:.{digits}f}", f"{high:.{digits}f}", len(values))
    return f"{mean:.{digits}f} {spread}"


def judge(differences: Sequence[float], *, lower: str, higher: str) -> str:
    """A paired difference in words; a verdict is passed on `MIN_SEEDS` or more alone.

    Args:
        differences: one per seed.
        lower: the word for a difference below 0.
        higher: the word for one above 0.

    >>> judge([-0.1, -0.3], lower="better", higher="worse")
    '-0.2000 (-0.3000 to -0.1000), better on 2 of 2 seeds: too few for a verdict'
    """
    num_seeds = len(differences)
    count = f"{lower} on {sum(value < 0 for value in differences)} of {num_seeds} seeds"
    if not all(map(math.isfinite, differences)):
        return f"{count}; a run diverged"
    mean, low, high = mean_and_spread(differences)
    if num_seeds == 1:
        return f"{mean:+.4f} on one seed"
    word = lower if high < 0 else higher if low > 0 else "not different"
    verdict = word if num_seeds >= MIN_SEEDS else f"{count}: too few for a verdict"
    return f"{mean:+.4f} {_format_spread(f'{low:+.4f}', f'{high:+.4f}', num_seeds)}, {verdict}"


def tuned_table(rows: Rows, tuning_rows: Rows | None = None) -> list[list[str]]:
    """A header, and a line per scheduler at its best initial LR as `tuned_rows` chooses it.

    Divergence is counted over all initial learning rates. "Search steps" are the optimizer steps
    that were planned for the runs which the choice was made on: what it cost.
    """
    accuracy = ["test_accuracy"] * ("test_accuracy" in rows[0])
    lines = []
    for name in unique(rows, "scheduler"):
        mine, best = select(rows, scheduler=name), tuned_rows(rows, name, tuning_rows)
        columns = ("train_loss", "held_out_loss", *accuracy)
        lines.append(
            [
                name,
                f"{best[0]['initial_lr']:.3g}",
                *(format_interval([row[column] for row in best]) for column in columns),
                f"{sum(row['diverged'] for row in mine)}/{len(mine)}",
                f"{np.mean([row['seconds'] for row in best]):.2f}",
                str(_search_steps(select(tuning_rows or rows, scheduler=name))),
            ]
        )
    header = ["scheduler", "best initial lr", "train loss", "held-out loss"]
    header += [name.replace("_", " ") for name in accuracy]
    return [[*header, "diverged", "seconds/run", "search steps"], *lines]


def _search_steps(rows: Rows) -> int:
    if len(unique(rows, "initial_lr_factor")) == 1:
        return 0
    return sum(row["total_steps"] for row in rows)


def robustness_table(rows: Rows) -> list[list[str]]:
    """A header, and a line per scheduler: held-out loss (mean over seeds) at every initial LR."""
    lines, factors = [], unique(rows, "initial_lr_factor")
    for name in unique(rows, "scheduler"):
        means = mean_at_factors(select(rows, scheduler=name))
        shown = [f"{means[factor]:.4g}" if factor in means else "-" for factor in factors]
        lines.append([name, *shown, f"{np.median(list(means.values())):.4g}"])
    lrs = [f"{_base_lr(rows) * factor:.3g}" for factor in factors]
    return [["held-out loss at initial lr", *lrs, "median"], *lines]


def comparison_cells(rows: Rows, tuning_rows: Rows | None = None) -> list[list[list[str]]]:
    """The tables of a comparison.

    The tuned one; of several initial learning rates, robustness and cost of tuning; and, of
    `MIN_SEEDS` seeds or more, paired differences to the first method.
    """
    tables = [tuned_table(rows, tuning_rows)]
    names = unique(rows, "scheduler")
    if len(unique(rows, "initial_lr_factor")) > 1:
        tables += [robustness_table(rows), tuning_table(rows)]
    if len(names) > 1 and len(unique(rows, "seed")) >= MIN_SEEDS:
        # its libraries take seconds to be imported
        from lrpilot.evaluation.statistics.paired import paired_table

        tables.append(paired_table(rows, names[0], tuning_rows))
    return tables


def comparison_tables(rows: Rows, tuning_rows: Rows | None = None) -> list[str]:
    """The `comparison_cells` in Markdown."""
    return [format_table(header, lines) for header, *lines in comparison_cells(rows, tuning_rows)]


def _base_lr(rows: Rows) -> float:
    return float(rows[0]["initial_lr"] / rows[0]["initial_lr_factor"])


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


def write_comparison(
    results: Sequence[Result],
    output: Output,
    title: str,
    *,
    details: Sequence[str],
    tuning: Sequence[Result] = (),
    verdict: str = "",
) -> None:
    """Write the `COMPARISON_FILES` of a grid.

    Args:
        results: what is reported.
        output: gets the files.
        title: of the tables; for `details` and `verdict`, too, see `Output.write_table`.
        details: what else the head says.
        tuning: runs that the initial learning rates are chosen on; without them the choice is made
            on `results`. They are written as tuning.csv.
        verdict: a judgement in words.
    """
    rows, curves = [result.row for result in results], curve_rows(results)
    tuning_rows = [result.row for result in tuning] or None
    output.write_runs([*results, *tuning])
    output.write_rows(rows, "runs.csv")
    output.write_rows(curves, "curves.csv")
    if tuning_rows:
        output.write_rows(tuning_rows, "tuning.csv")
    draw_curves(rows, curves, output.folder / "curves.png", tuning_rows)
    tables = comparison_tables(rows, tuning_rows)
    output.write_table(title, *tables, name="table.md", details=details, verdict=verdict)


def draw_curves(rows: Rows, curves: Rows, path: Path, tuning_rows: Rows | None = None) -> None:
    """LR and loss over steps at each scheduler's best initial LR; held-out loss over it.

    Placebos are in the tables; a figure with all of them is no longer legible.

    Args:
        rows: as in `runs.csv`.
        curves: as in `curves.csv`.
        path: the PNG file.
        tuning_rows: as for `tuned_rows`.
    """
    rows = [row for row in rows if not row["scheduler"].startswith("placebo")]
    has_sweep = len(unique(rows, "initial_lr_factor")) > 1
    figure, axes = plt.subplots(1, 2 + has_sweep, figsize=(15, 4.5))
    names = unique(rows, "scheduler")
    for i, name in enumerate(names):
        style = line_style(name, i, is_policy=name == "policy")
        tuned = tuned_rows(rows, name, tuning_rows)[0]["initial_lr_factor"]
        best = select(curves, scheduler=name, initial_lr_factor=tuned)
        seeds = [select(best, seed=seed) for seed in unique(best, "seed")]
        # a seed that diverged ends earlier, and would bend the mean
        last_step = max(points[-1]["step"] for points in seeds)
        longest = [points for points in seeds if points[-1]["step"] == last_step]
        steps = [point["step"] for point in longest[0]]
        for axis, key in zip(axes, ("lr", "train_loss"), strict=False):
            values = np.mean([[point[key] for point in points] for points in longest], axis=0)
            axis.plot(steps, values, **style)
        if has_sweep:
            mine = select(rows, scheduler=name)
            means = mean_at_factors(mine)
            lrs = [_base_lr(mine) * factor for factor in means]
            axes[2].plot(lrs, list(means.values()), marker="o", **style)
    axes[0].set(yscale="log", xlabel="optimizer step", ylabel="learning rate")
    axes[1].set(xlabel="optimizer step", ylabel="training loss")
    train_losses = [point["train_loss"] for point in curves if math.isfinite(point["train_loss"])]
    if train_losses and train_losses[0] > 5 * min(train_losses) > 0:
        axes[1].set_yscale("log")
    if has_sweep:
        axes[2].set(xscale="log", xlabel="initial learning rate", ylabel="held-out loss")
        held_out = [row["held_out_loss"] for row in rows if math.isfinite(row["held_out_loss"])]
        if held_out and max(held_out) > 10 * min(held_out) > 0:
            axes[2].set_yscale("log")
    task, num_seeds = rows[0]["task"], len(unique(rows, "seed"))
    figure.suptitle(f"{task}: mean of {num_seeds} unseen seeds, each at its best initial LR")
    write_figure(figure, path, num_legend_columns=len(names))

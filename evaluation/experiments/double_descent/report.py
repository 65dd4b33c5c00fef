"""Tables and figure of double descent."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from lrpilot.evaluation.report import format_interval, format_table, line_style, write_figure
from lrpilot.evaluation.statistics import Rows, mean_and_spread, select, unique

Measure = Callable[[Rows], list[float]]


def error_rates(rows: Rows, split: str) -> list[float]:
    """Share of the images of a split that are classified wrongly, one per run."""
    return [1.0 - row[f"{split}_accuracy"] for row in rows]


MEASURES: dict[str, Measure] = {
    "test error": lambda rows: error_rates(rows, "test"),
    "test loss": lambda rows: [row["test_loss"] for row in rows],
}


def landmarks(widths: Sequence[int], interpolation_width: float) -> tuple[int, int, int]:
    """The width nearest to half the interpolation width, that nearest to it, and the largest.

    Nearness is that of logarithms. They are fixed before anything is trained: a largest or smallest
    of several noisy means would be biased.

    >>> landmarks([2, 8, 20, 40, 80, 320], 39.9)
    (20, 40, 320)
    """

    def nearest(target: float) -> int:
        return min(widths, key=lambda width: abs(np.log(width / target)))

    return nearest(interpolation_width / 2), nearest(interpolation_width), max(widths)


def peak_table(rows: Rows, interpolation_width: float) -> str:
    """How high the peak stands over both sides of it, and over that of the first scheduler.

    Differences are paired by seed.
    """
    below, at, above = widths = landmarks(unique(rows, "width"), interpolation_width)
    first = unique(rows, "scheduler")[0]
    lines = []
    for title, measure in MEASURES.items():
        for criterion in unique(rows, "chosen_by"):
            chosen = select(rows, chosen_by=criterion)
            values = {
                (name, width): measure(select(chosen, scheduler=name, width=width))
                for name in unique(rows, "scheduler")
                for width in widths
            }
            for name in unique(rows, "scheduler"):
                differences = [
                    "-"
                    if other == (name, at)
                    else format_interval(list(np.subtract(values[name, at], values[other])))
                    for other in ((name, below), (name, above), (first, at))
                ]
                means = [f"{np.mean(values[name, width]):.3f}" for width in widths]
                lines.append([title, criterion, name, *means, *differences])
    header = ["measure", "lr chosen by", "control", *(f"at {width}" for width in widths)]
    header += [f"{at} minus {below}", f"{at} minus {above}", f"minus {first}'s at {at}"]
    return format_table(header, lines)


def width_table(rows: Rows) -> str:
    """Test error, training error and initial LR at every width."""
    names = unique(rows, "scheduler")
    lines = []
    for criterion in unique(rows, "chosen_by"):
        for width in unique(rows, "width"):
            line = [criterion, str(width)]
            for name in names:
                mine = select(rows, chosen_by=criterion, width=width, scheduler=name)
                test, training = (error_rates(mine, split) for split in ("test", "train"))
                lr = mine[0]["initial_lr"]
                line.append(f"{format_interval(test)} / {np.mean(training):.2f} / {lr:g}")
            lines.append(line)
    header = ["lr chosen by", "width", *(f"{name}: test / training error / lr" for name in names)]
    return format_table(header, lines)


def draw(rows: Rows, tuning_rows: Rows, interpolation_width: float, path: Path) -> None:
    """Test and training error, and test loss, over width.

    The last column is the first scheduler on the tuning seeds at each initial LR, unchosen.

    Args:
        rows: as in `runs.csv`.
        tuning_rows: as in `tuning.csv`.
        interpolation_width: is marked.
        path: the PNG file.
    """
    names, criteria = unique(rows, "scheduler"), unique(rows, "chosen_by")
    figure, axes = plt.subplots(
        2, len(criteria) + 1, figsize=(15, 8), sharex=True, sharey="row", layout="constrained"
    )
    titles = {"fit": "initial LR with the best fit", "held-out": "initial LR best on held-out data"}
    for column, criterion in zip(axes.T, criteria, strict=False):
        for i, name in enumerate(names):
            mine = select(rows, chosen_by=criterion, scheduler=name)
            _draw_lines(column, mine, **line_style(name, i, is_policy=name == "policy"))
        column[0].set_title(titles[criterion])
    factors = unique(tuning_rows, "initial_lr_factor")
    for i, factor in enumerate(factors):
        mine = select(tuning_rows, scheduler=names[0], initial_lr_factor=factor)
        color = plt.get_cmap("viridis")(0.9 * i / max(1, len(factors) - 1))
        _draw_lines(axes[:, -1], mine, label=f"{mine[0]['initial_lr']:g}", color=color)
    axes[0, -1].set_title(f"{names[0]}, at each initial LR (tuning seeds)")
    for axis in axes.flat:
        axis.axvline(interpolation_width, color="gray", linestyle=":", zorder=0)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    note = f" parameters = numbers to fit\n (width {interpolation_width:.0f})"
    top = {"va": "top", "transform": axes[0, 0].get_xaxis_transform()}
    axes[0, 0].text(interpolation_width, 0.98, note, color="gray", fontsize=8, **top)
    axes[0, 1].legend()
    axes[0, -1].legend(title="initial LR", ncols=2)
    # 0.5 is the loss of an output of 0; what is worse, or diverged, would hide the rest
    axes[0, 0].set(ylabel="error: test (solid), training (dashed)", ylim=(0.0, 0.7))
    axes[1, 0].set(ylabel="test loss", ylim=(0.1, 0.55))
    for axis in axes[1]:
        axis.set_xlabel("width (hidden units)")
    write_figure(figure, path)


def _draw_lines(column: Sequence[Axes], rows: Rows, **style: Any) -> None:
    """Test and training error into the first panel, test loss into the second."""
    widths = unique(rows, "width")
    by_width = [select(rows, width=width) for width in widths]
    for axis, measure in zip(column, MEASURES.values(), strict=True):
        means, lows, highs = np.transpose([mean_and_spread(measure(r)) for r in by_width])
        axis.plot(widths, means, marker="o", markersize=3, **style)
        axis.fill_between(widths, lows, highs, color=style["color"], alpha=0.2, linewidth=0)
    errors = [np.mean(error_rates(r, "train")) for r in by_width]
    column[0].plot(widths, errors, color=style["color"], linestyle="--", linewidth=1.0)

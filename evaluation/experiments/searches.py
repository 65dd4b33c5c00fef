"""The figure of what a search costs: one run of a policy, against the best of many of a rival."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from lrpilot.evaluation.report import line_style, write_figure
from lrpilot.evaluation.tuning_cost import expected_best

MOST_COLUMNS = 4


class Searched(NamedTuple):
    """Held-out losses on one task, at most that at the start of a run."""

    policy: Sequence[float]
    """One per initial learning rate."""
    rivals: Mapping[str, Sequence[float]]
    """By the name of the search: of all that it draws from."""


def draw_searches(panels: Mapping[str, Searched], path: Path, *, most_runs: int) -> None:
    """A panel per task: expected best loss over the runs that were spent, and the policy's one run.

    Args:
        panels: by task, with the same rivals.
        path: the PNG file.
        most_runs: that are spent.
    """
    num_columns = min(MOST_COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure, axes = plt.subplots(
        num_rows, num_columns, figsize=(3.4 * num_columns, 3.2 * num_rows), squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    spent = range(1, most_runs + 1)
    for axis, (task, (policy, rivals)) in zip(axes.flat, panels.items(), strict=False):
        for i, (name, losses) in enumerate(rivals.items()):
            style = line_style(name, i, is_policy=False)
            axis.plot(spent, [expected_best(losses, n) for n in spent], **style)
        mean = float(np.mean(policy))
        style = line_style("policy, one run", 0, is_policy=True)
        axis.plot([1], [mean], marker="o", **style)
        axis.axhline(mean, color=style["color"], linewidth=0.6, linestyle=":")
        axis.set(title=task, xlabel="training runs spent", xscale="log")
        axis.xaxis.set_major_formatter(FuncFormatter(_plain))
        lowest, highest = axis.dataLim.intervaly
        if highest > 10.0 * lowest:
            axis.set_yscale("log")
    axes[0, 0].set_ylabel("expected best held-out loss")
    write_figure(figure, path, num_legend_columns=len(rivals) + 1)


def _plain(value: float, position: int | None) -> str:
    """10 instead of 10^1."""
    return f"{value:g}"

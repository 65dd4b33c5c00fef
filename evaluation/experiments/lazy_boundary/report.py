"""Tables and figure of the stability limit of wide networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from lrpilot.evaluation.report import format_table, write_figure
from lrpilot.evaluation.statistics import Rows, select, unique

# column, title, marker
BOUNDARIES = (
    ("linearized", "linearized model diverges", "o"),
    ("projection", "top residual grows", "x"),
    ("rise", "loss rises", "^"),
    ("learning", "learning ends", "s"),
)
# a diverged network has no kernel to show
OUTCOME_MARKERS = {"lazy": "o", "catapult": "^", "stuck": "s"}
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c")


def boundary_table(boundaries: Rows, sweep: Rows) -> str:
    """One line per activation and width."""
    header = ["network", "predicted lr", *(title for _, title, _ in BOUNDARIES), "catapult at"]
    lines = []
    for activation in unique(boundaries, "activation"):
        for width in unique(boundaries, "width"):
            key = {"activation": activation, "width": width}
            mine, swept = select(boundaries, **key), select(sweep, **key)
            multiples = [
                multiple
                for multiple in unique(swept, "multiple")
                if unique(select(swept, multiple=multiple), "outcome") == ["catapult"]
            ]
            columns = ("limit", *(name for name, _, _ in BOUNDARIES))
            ranges = [_range([row[name] for row in mine]) for name in columns]
            catapults = f"{multiples[0]:g} to {multiples[-1]:g}" if multiples else "-"
            lines.append([f"{activation}, width {width}", *ranges, catapults])
    return format_table(header, lines)


def _range(values: Sequence[float]) -> str:
    return f"{np.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def sweep_table(sweep: Rows) -> str:
    """One line per activation and multiple."""
    columns = ("peak_over_initial_loss", "final_loss", "eigenvalue_over_initial")
    header = ["activation", "multiple", "outcomes", "peak / initial loss", "final loss"]
    lines = []
    for activation in unique(sweep, "activation"):
        for multiple in unique(sweep, "multiple"):
            mine = select(sweep, activation=activation, multiple=multiple)
            outcomes = [row["outcome"] for row in mine]
            counts = [f"{outcomes.count(name)} {name}" for name in unique(mine, "outcome")]
            medians = [float(np.median([row[name] for row in mine])) for name in columns]
            lines.append(
                [activation, f"{multiple:g}", ", ".join(counts), *(f"{m:.3g}" for m in medians)]
            )
    return format_table([*header, "lambda_max, end / start"], lines)


def draw(boundaries: Rows, sweep: Rows, curves: Rows, path: Path) -> None:
    """Boundaries over width, one marker per network; loss curves and kernels of one width.

    Boundaries outside the bracket of the search (0 or infinity) have no marker.

    Args:
        boundaries: of all widths.
        sweep: of one width.
        curves: losses by step of one network per activation of that width.
        path: of the PNG.
    """
    figure, axes = plt.subplots(2, 2, figsize=(12, 9))
    _draw_boundaries(axes[0, 0], boundaries, BOUNDARIES[:-1], predicted=1.0)
    axes[0, 0].set_title("instability begins (dashed: predicted for the linearized model)")
    _draw_boundaries(axes[0, 1], boundaries, BOUNDARIES[-1:], predicted=2.0)
    axes[0, 1].set_title("learning ends (dashed: known for the linear network)")
    axes[0, 1].set_yscale("log")
    axes[0, 1].set_yticks(ticks := [1, 2, 5, 10, 20, 50], [str(tick) for tick in ticks])
    _draw_curves(axes[1, 0], curves, sweep[0]["width"])
    _draw_eigenvalues(axes[1, 1], sweep)
    figure.tight_layout()
    write_figure(figure, path)


def _draw_boundaries(
    axis: Axes, boundaries: Rows, shown: Sequence[tuple[str, str, str]], *, predicted: float
) -> None:
    widths = unique(boundaries, "width")
    for activation, color in zip(unique(boundaries, "activation"), COLORS, strict=False):
        for name, title, marker in shown:
            rows = [select(boundaries, activation=activation, width=width) for width in widths]
            values = np.array([[row[name] for row in mine] for mine in rows])
            values[values == 0.0] = np.nan
            style: dict[str, Any] = {"color": color, "fillstyle": "none"}
            axis.plot(widths, np.median(values, axis=1), color=color, linewidth=1.0)
            axis.plot(widths, values, marker, **style)
            axis.plot([], [], f"{marker}-", label=f"{activation}: {title}", **style)
    axis.axhline(predicted, color="black", linewidth=0.8, linestyle="--", zorder=0)
    axis.set(xscale="log", xlabel="width", ylabel="learning rate / predicted limit")
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set_xticks([], minor=True)
    axis.legend(fontsize=8)


def _draw_curves(axis: Axes, curves: Rows, width: int) -> None:
    activation = curves[0]["activation"]
    multiples = unique(curves, "multiple")
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.95, len(multiples)))
    for multiple, color in zip(multiples, colors, strict=True):
        for linearized, linestyle in ((False, "-"), (True, ":")):
            mine = select(curves, activation=activation, multiple=multiple, linearized=linearized)
            steps, losses = ([point[name] for point in mine] for name in ("step", "loss"))
            label = None if linearized else f"{multiple:g}"
            axis.plot(steps, losses, color=color, linestyle=linestyle, label=label)
    shown = select(curves, linearized=False, activation=activation)
    axis.set(xlabel="step", ylabel="loss", xscale="symlog", yscale="log")
    axis.set_ylim(top=3.0 * max(point["loss"] for point in shown))
    axis.set_title(f"{activation}, width {width} (dotted: linearized)")
    axis.legend(title="multiple", fontsize=8)


def _draw_eigenvalues(axis: Axes, sweep: Rows) -> None:
    for activation, color in zip(unique(sweep, "activation"), COLORS, strict=False):
        for outcome, marker in OUTCOME_MARKERS.items():
            mine = select(sweep, activation=activation, outcome=outcome)
            multiples = [row["multiple"] for row in mine]
            shrinkages = [row["eigenvalue_over_initial"] for row in mine]
            label = f"{activation}: {outcome}" if mine else None
            axis.plot(multiples, shrinkages, marker, color=color, fillstyle="none", label=label)
    multiples = unique(sweep, "multiple")
    axis.plot(multiples, [1.0 / multiple for multiple in multiples], "k--", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="learning rate / predicted limit")
    axis.set(ylabel="lambda_max of the kernel, end / start")
    axis.set_title(f"width {sweep[0]['width']}: stable below the dashed line")
    axis.legend(fontsize=8)

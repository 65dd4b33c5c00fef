"""The figures of a page, of one task or over all; the page colors and filters their traces.

Every trace says in `meta` which scheduler it is of.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from plotly import graph_objects as go

from lrpilot.evaluation.page.data import Curve, Runs
from lrpilot.evaluation.page.profiles import normalized_regrets
from lrpilot.evaluation.palette import POLICY_STYLE, Style, method_style
from lrpilot.evaluation.statistics import Rows, select, tuned_rows, unique
from lrpilot.evaluation.statistics.profiles import performance_profile
from lrpilot.evaluation.tuning_cost import bounded_losses, expected_best

MOST_SPENT = 16
BAND_OPACITY = 0.15
LEAST_REGRET = 1e-3

Styles = Mapping[str, Style]


def styles_of(schedulers: Sequence[str]) -> dict[str, Style]:
    """The style of every scheduler, the same in all figures."""
    return {
        name: POLICY_STYLE if name == "policy" else method_style(i)
        for i, name in enumerate(schedulers)
    }


def draw_schedules(runs: Runs, styles: Styles) -> go.Figure:
    """Learning rate over steps of every scheduler at its best initial LR, mean over seeds."""
    traces, largest = [], 0.0
    for name, curves in _tuned_curves(runs).items():
        lrs = np.mean([curve.lrs for curve in curves], axis=0)
        largest = max(largest, *lrs)
        traces.append(_line(name, styles, curves[0].steps, lrs))
    figure = _figure(traces, x="optimizer step", y="learning rate")
    least = min((y for trace in traces for y in trace.y if y > 0), default=0.0)
    if least:
        # the last steps of a decay to 0 would take most of the height
        least = max(least, 1e-4 * largest)
        _use_log(figure.layout.yaxis, least, largest)
        figure.update_yaxes(range=[math.log10(least) - 0.1, math.log10(largest) + 0.1])
    return figure


def draw_losses(runs: Runs, styles: Styles) -> go.Figure:
    """Training loss over steps at the best initial LR: mean over seeds, and least to largest."""
    bands, lines = [], []
    for name, curves in _tuned_curves(runs).items():
        steps, losses = curves[0].steps, np.array([curve.losses for curve in curves])
        lines.append(_line(name, styles, steps, losses.mean(axis=0)))
        if len(curves) > 1:
            edge = np.concatenate([losses.max(axis=0), losses.min(axis=0)[::-1]])
            around = np.concatenate([steps, steps[::-1]])
            bands.append(_band(name, styles, around, edge))
    figure = _figure([*bands, *lines], x="optimizer step", y="training loss")
    _use_log_if_wide(figure, [y for line in lines for y in line.y])
    return figure


def draw_regrets(runs: Runs, styles: Styles) -> go.Figure:
    """Held-out loss minus the lowest of any method, over the initial LR; crosses mark divergence.

    The mean of a line is the method's `lr_sensitivity`.
    """
    losses = _losses(runs.rows)
    best = min(min(values.values()) for values in losses.values())
    traces = []
    for name, values in losses.items():
        mine = select(runs.rows, scheduler=name)
        lrs = [select(mine, initial_lr_factor=factor)[0]["initial_lr"] for factor in values]
        diverged = {row["initial_lr_factor"] for row in mine if row["diverged"]}
        trace = _line(name, styles, lrs, [loss - best for loss in values.values()])
        trace.update(
            mode="lines+markers",
            marker={"symbol": ["x" if f in diverged else "circle" for f in values], "size": 7},
        )
        traces.append(trace)
    figure = _figure(traces, x="initial learning rate", y="regret in held-out loss")
    lrs = unique(runs.rows, "initial_lr")
    _use_log(figure.layout.xaxis, min(lrs), max(lrs))
    figure.update_yaxes(rangemode="tozero")
    return figure


def draw_searches(runs: Runs, styles: Styles) -> go.Figure:
    """Expected best held-out loss of N runs at drawn initial LRs, over N; of the policy, one run.

    A thin line continues the policy's point, to see where the search of a rival crosses it.
    """
    spent = np.arange(1, MOST_SPENT + 1)
    traces = []
    for name, values in _losses(runs.rows).items():
        losses = list(values.values())
        if name == "policy":
            level = float(np.mean(losses))
            trace = _line(name, styles, [1, MOST_SPENT], [level, level])
            trace.update(line={"width": 1, "dash": "dot"}, hoverinfo="skip")
            point = _line(name, styles, [1], [level]).update(mode="markers", marker={"size": 12})
            traces += [trace, point]
        else:
            found = [expected_best(losses, int(n)) for n in spent]
            traces.append(_line(name, styles, spent, found))
    figure = _figure(traces, x="training runs spent", y="expected best held-out loss")
    ticks = [1, 2, 4, 8, 16]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=list(map(str, ticks)))
    _use_log_if_wide(figure, [y for trace in traces for y in trace.y])
    return figure


def draw_profiles(runs: Runs, styles: Styles) -> tuple[go.Figure, go.Figure]:
    """The share of regrets that are at most so large, of every scheduler that ran on all tasks.

    It is 1 minus the `performance_profile` of the regrets, tuned and untuned.
    """
    figures = []
    for regrets, what in zip(
        normalized_regrets(runs.rows, runs.tuning_rows),
        ("share of tasks", "share of tasks and initial LRs"),
        strict=True,
    ):
        most = max(map(len, regrets.values()))
        whole = {name: values for name, values in regrets.items() if len(values) == most}
        found = np.concatenate([[0, 1], *whole.values()])
        limits = np.unique(np.clip(found, LEAST_REGRET, 1))
        traces = [
            _line(name, styles, limits, 1.0 - performance_profile([values], limits))
            for name, values in whole.items()
        ]
        figure = _figure(traces, x="normalized regret, at most", y=what)
        figure.update_traces(line_shape="hv")
        ticks = [1e-3, 1e-2, 1e-1, 1]
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=["0.001", "0.01", "0.1", "1"])
        figure.update_yaxes(range=[-0.03, 1.03])
        figures.append(figure)
    return figures[0], figures[1]


def _tuned_curves(runs: Runs) -> dict[str, list[Curve]]:
    """Curves of every scheduler at its best initial LR, of equal length; without diverged runs.

    Where all diverged, all are kept, up to the end of the first.
    """
    curves = {}
    for name in unique(runs.rows, "scheduler"):
        rows = tuned_rows(runs.rows, name, runs.tuning_rows or None)
        mine: list[Curve] = [row["curve"] for row in select(rows, diverged=0) or rows]
        num_points = min(len(curve.steps) for curve in mine)
        if num_points:
            curves[name] = [
                Curve(c.steps[:num_points], c.lrs[:num_points], c.losses[:num_points]) for c in mine
            ]
    return curves


def _losses(rows: Rows) -> dict[str, dict[float, float]]:
    return {
        name: bounded_losses(select(rows, scheduler=name)) for name in unique(rows, "scheduler")
    }


def _line(name: str, styles: Styles, x: ArrayLike, y: ArrayLike) -> go.Scatter:
    style = styles[name]
    dash = ",".join(f"{length * style.width:g}px" for length in style.dash) or "solid"
    return go.Scatter(
        x=_rounded(x),
        y=_rounded(y),
        mode="lines",
        name=name,
        meta=name,
        line={"color": style.color, "width": style.width, "dash": dash},
        hovertemplate="%{meta}<br>%{x:,.4~g}: %{y:.4~g}<extra></extra>",
    )


def _band(name: str, styles: Styles, x: ArrayLike, y: ArrayLike) -> go.Scatter:
    return go.Scatter(
        x=_rounded(x),
        y=_rounded(y),
        mode="lines",
        name=name,
        meta=name,
        fill="toself",
        fillcolor=styles[name].color,
        opacity=BAND_OPACITY,
        line={"width": 0},
        hoverinfo="skip",
    )


def _rounded(values: ArrayLike) -> list[Any]:
    """To what a reader sees, so that the page is small; whole numbers stay whole."""
    array = np.asarray(values)
    if np.issubdtype(array.dtype, np.integer):
        return list(array.tolist())
    return [float(f"{value:.4g}") for value in array]


def _figure(traces: Sequence[go.Scatter], *, x: str, y: str) -> go.Figure:
    # what comes last is in front: the policy, and all lines before the bands
    ordered = sorted(traces, key=lambda trace: (trace.fill is None, trace.meta == "policy"))
    figure = go.Figure(ordered, {"template": "none", "showlegend": False})
    figure.update_layout(margin={"l": 64, "r": 12, "t": 8, "b": 44}, hovermode="closest")
    figure.update_xaxes(title={"text": x, "standoff": 8})
    figure.update_yaxes(title={"text": y, "standoff": 8})
    return figure


def _use_log_if_wide(figure: go.Figure, values: Sequence[float]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite and max(finite) > 5 * min(finite) > 0:
        _use_log(figure.layout.yaxis, min(finite), max(finite))


def _use_log(axis: Any, least: float, largest: float) -> None:
    """A logarithmic axis with ticks at powers of 10 or, where these are few, at 1, 2 and 5."""
    axis.update(type="log", tickformat="~g", dtick=1 if largest > 100 * least else "D2")

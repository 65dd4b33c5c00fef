"""Figures have a trace per scheduler, in its style, of the numbers that the tables have, too."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly import graph_objects as go

from lrpilot.evaluation.page import figures
from lrpilot.evaluation.page.data import Runs, read_runs
from lrpilot.evaluation.tuning_cost import expected_best, losses_by_scheduler, lr_sensitivity
from tests.evaluation.page.made_up_runs import FACTORS, make_row, make_rows, write_runs

DRAW = [
    figures.draw_schedules,
    figures.draw_losses,
    figures.draw_regrets,
    figures.draw_searches,
]
NAMES = ("policy", "constant", "cosine")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return read_runs([write_runs(make_rows(NAMES), tmp_path)])


def of(figure: go.Figure, name: str, **conditions: Any) -> Any:
    """The one trace of a scheduler that has these attributes."""
    (trace,) = (
        trace
        for trace in figure.data
        if trace.meta == name and all(trace[key] == value for key, value in conditions.items())
    )
    return trace


def draw(runs: Runs, drawing: Callable[..., go.Figure]) -> go.Figure:
    return drawing(runs, figures.styles_of(runs.schedulers))


@pytest.mark.parametrize("drawing", DRAW)
def test_every_scheduler_has_a_trace_in_its_color(runs: Runs, drawing: Any) -> None:
    styles = figures.styles_of(runs.schedulers)
    traces = [trace for trace in drawing(runs, styles).data if trace.fill is None]

    assert {trace.meta for trace in traces} == set(NAMES)
    assert all(trace.line.color == styles[trace.meta].color for trace in traces)


@pytest.mark.parametrize("drawing", DRAW)
def test_the_policy_is_in_front_and_bands_are_behind_all_lines(runs: Runs, drawing: Any) -> None:
    traces = draw(runs, drawing).data
    kinds = [(trace.fill is None, trace.meta == "policy") for trace in traces]

    assert kinds == sorted(kinds)
    assert kinds[-1] == (True, True)


def test_a_schedule_is_drawn_from_the_best_initial_lr(runs: Runs) -> None:
    trace = of(draw(runs, figures.draw_schedules), "cosine")

    assert (trace.x[0], trace.x[-1], len(trace.x)) == (1, 300, 200)
    assert trace.y[0] == pytest.approx(0.05)


def test_the_band_of_losses_reaches_from_the_least_to_the_largest_seed(runs: Runs) -> None:
    figure = draw(runs, figures.draw_losses)
    band = of(figure, "cosine", fill="toself")
    curves = [
        row["curve"].losses
        for row in runs.rows
        if (row["scheduler"], row["initial_lr_factor"]) == ("cosine", 1.0)
    ]
    assert len(curves) == 2
    upper, lower = band.y[:200], band.y[:199:-1]
    assert upper == pytest.approx(np.max(curves, axis=0), rel=1e-3)
    assert lower == pytest.approx(np.min(curves, axis=0), rel=1e-3)
    assert of(figure, "cosine", fill=None).y == pytest.approx(np.mean(curves, axis=0), rel=1e-3)


def test_one_seed_has_no_band(tmp_path: Path) -> None:
    runs = read_runs([write_runs(make_rows(num_seeds=1), tmp_path)])

    assert all(trace.fill is None for trace in draw(runs, figures.draw_losses).data)


def test_the_mean_of_a_line_of_regrets_is_the_sensitivity(runs: Runs) -> None:
    figure = draw(runs, figures.draw_regrets)
    losses = losses_by_scheduler(runs.rows)
    best = min(min(values) for values in losses.values())

    for name, values in losses.items():
        mean = np.mean(of(figure, name).y)
        assert mean == pytest.approx(lr_sensitivity(values, best), rel=1e-3)
    assert min(min(trace.y) for trace in figure.data) == 0


def test_an_initial_lr_at_which_a_run_diverged_is_crossed_and_has_a_finite_regret(
    tmp_path: Path,
) -> None:
    rows = (
        make_rows(NAMES[:2]) + make_rows(["cosine"])[:-1] + [make_row("cosine", 10, 1, num_steps=9)]
    )
    figure = draw(read_runs([write_runs(rows, tmp_path)]), figures.draw_regrets)
    trace = of(figure, "cosine")

    assert list(trace.marker.symbol) == ["circle", "circle", "x"]
    assert all(map(math.isfinite, trace.y))


def test_a_search_falls_as_the_expected_best_and_the_policy_is_one_point(runs: Runs) -> None:
    figure = draw(runs, figures.draw_searches)
    losses = losses_by_scheduler(runs.rows)
    expected = [expected_best(losses["cosine"], n) for n in range(1, 17)]

    assert of(figure, "cosine").y == pytest.approx(expected, rel=1e-3)
    point = of(figure, "policy", mode="markers")
    assert (list(point.x), point.y) == ([1], pytest.approx([np.mean(losses["policy"])], rel=1e-3))


def test_a_seed_that_diverged_does_not_bend_the_curve_of_the_others(tmp_path: Path) -> None:
    rows = [make_row("policy", 1.0, seed) for seed in (0, 1)]
    rows.append(make_row("policy", 1.0, 2, num_steps=150))
    figure = draw(read_runs([write_runs(rows, tmp_path / "three")]), figures.draw_losses)
    two = draw(read_runs([write_runs(rows[:2], tmp_path / "two")]), figures.draw_losses)

    assert figure == two


@pytest.mark.parametrize("num_steps", [1, 20])
@pytest.mark.parametrize("drawing", DRAW)
def test_figures_are_drawn_where_everything_diverged(
    tmp_path: Path, drawing: Any, num_steps: int
) -> None:
    rows = make_rows(num_steps=num_steps, total_steps=3000)
    figure = draw(read_runs([write_runs(rows, tmp_path)]), drawing)

    assert isinstance(json.loads(figure.to_json()), dict)


def test_profiles_are_over_tasks_and_over_tasks_and_initial_lrs(tmp_path: Path) -> None:
    rows = make_rows(tasks=["a", "b"]) + make_rows(["linear"], tasks=["b"])
    runs = read_runs([write_runs(rows, tmp_path)])
    tuned, untuned = figures.draw_profiles(runs, figures.styles_of(runs.schedulers))

    # linear did not run on task a
    assert {trace.meta for trace in tuned.data} == set(NAMES)
    for figure, most in ((tuned, 2), (untuned, 2 * len(FACTORS))):
        for trace in figure.data:
            assert trace.y[-1] == 1
            assert (np.diff(trace.y) >= 0).all()
            counts = np.multiply(trace.y, most)
            assert counts == pytest.approx(np.round(counts), abs=1e-3)

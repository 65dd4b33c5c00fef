import csv
import math
from functools import partial
from typing import Any

import pytest
import torch

from lrpilot.evaluation.experiments.lazy_boundary.experiment import (
    boundary_row,
    compare_boundaries,
    find_boundary,
    first_rise,
    sweep_row,
    train,
)
from lrpilot.evaluation.experiments.lazy_boundary.report import boundary_table, draw
from lrpilot.evaluation.runs.output import Output
from lrpilot.tasks.theory.lazy import LazyTask

make_task = partial(
    LazyTask,
    name="lazy",
    optimizer=torch.optim.SGD,
    base_lr=1.0,
    total_steps=80,
    width=64,
    num_train=32,
)


def outcome(task: LazyTask, multiple: float) -> dict[str, Any]:
    limit, _ = task.start(0).cap()
    return sweep_row(task, seed=0, multiple=multiple, limit=limit, num_growth=30)


@pytest.mark.parametrize("boundary", [0.51, 1.0, 1.99])
def test_bisection_finds_a_boundary_to_its_tolerance(boundary: float) -> None:
    found = find_boundary(lambda multiple: multiple > boundary, (0.5, 2.0), tolerance=0.01)
    assert found == pytest.approx(boundary, rel=0.01)


def test_a_boundary_outside_the_bracket_is_zero_or_infinite() -> None:
    assert find_boundary(lambda _: True, (0.5, 2.0), tolerance=0.01) == 0.0
    assert find_boundary(lambda _: False, (0.5, 2.0), tolerance=0.01) == math.inf


@pytest.mark.parametrize(
    ("losses", "step"),
    [([3.0, 2.0, 1.0], None), ([3.0, 2.0, 2.5], 2), ([3.0, math.nan], 1), ([1.0, 1.0], None)],
)
def test_a_rise_is_the_first_step_after_which_the_loss_is_larger(
    losses: list[float], step: int | None
) -> None:
    assert first_rise(losses) == step


def test_a_training_ends_when_it_diverges() -> None:
    task = make_task(activation="linear")
    limit, _ = task.start(0).cap()
    losses, run = train(task, seed=0, lr=4.0 * limit)
    assert len(losses) == run.num_steps < 20
    assert not losses[-1] <= 1e12


def test_a_training_has_the_loss_before_each_step_and_after_the_last() -> None:
    losses, run = train(make_task(), seed=0, lr=1.0, num_steps=5)
    assert len(losses) == 6
    assert losses[0] == make_task().start(0).privileged_loss()
    assert losses[-1] == run.privileged_loss()


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("width", [16, 128])
def test_the_linearized_model_diverges_at_the_predicted_limit(activation: str, width: int) -> None:
    row = boundary_row(
        make_task(activation=activation, width=width), seed=0, num_growth=10, tolerance=0.02
    )
    assert row["linearized"] == pytest.approx(1.0, rel=0.02)


def test_the_boundaries_of_a_wide_linear_network_are_those_of_the_theory() -> None:
    task = make_task(activation="linear", width=512)
    row = boundary_row(task, seed=0, num_growth=30, tolerance=0.02)
    assert row["projection"] == pytest.approx(1.0, rel=0.03)
    assert 0.98 < row["rise"] < 1.1
    assert row["learning"] == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("activation", "multiple", "expected"),
    [
        ("relu", 0.5, "lazy"),
        ("relu", 1.5, "catapult"),
        ("relu", 32.0, "stuck"),
        ("linear", 0.5, "lazy"),
        ("linear", 1.5, "catapult"),
        ("linear", 3.0, "diverged"),
    ],
)
def test_outcomes_are_named_by_what_the_network_does(
    activation: str, multiple: float, expected: str
) -> None:
    row = outcome(make_task(activation=activation), multiple)
    assert row["outcome"] == expected
    assert math.isnan(row["eigenvalue_over_initial"]) == (expected == "diverged")
    if expected == "catapult":
        assert row["peak_over_initial_loss"] > 1.0
        assert row["eigenvalue_over_initial"] < 1.0 / multiple


def test_networks_without_a_boundary_are_reported_and_drawn_without_a_warning(
    tmp_path: Any,
) -> None:
    key = {"activation": "relu", "width": 16}
    rows = [
        {**key, "limit": 2.0, "linearized": 1.0, "projection": 1.1, "rise": rise, "learning": 4.0}
        for rise in (1.2, math.inf, math.inf)
    ]
    sweep = [outcome(make_task(width=16), multiple) for multiple in (0.5, 1.5)]
    curves = [{**key, "linearized": k, "multiple": 1.0, "step": 0, "loss": 1.0} for k in (0, 1)]
    draw(rows, sweep, curves, tmp_path / "figure.png")
    assert "inf [1.200, inf]" in boundary_table(rows, sweep)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_an_experiment_writes_its_runs_tables_and_figure(tmp_path: Any, capsys: Any) -> None:
    compare_boundaries(
        task=make_task(total_steps=30),
        activations=["relu", "linear"],
        widths=[16, 32],
        multiples=[0.5, 1.5, 4.0],
        shown_width=32,
        shown_multiples=[0.5, 1.5],
        num_growth=20,
        num_seeds=1,
        tolerance=0.05,
        output=Output(tmp_path, "machine of this test", lambda cases, total, desc: cases),
    )
    rows = {
        name: list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
        for name in ("boundaries", "sweep", "curves")
    }
    assert len(rows["boundaries"]) == 4
    assert len(rows["sweep"]) == 4 * 3
    assert {(row["activation"], row["linearized"]) for row in rows["curves"]} == {
        (activation, linearized)
        for activation in ("relu", "linear")
        for linearized in ("True", "False")
    }
    text = (tmp_path / "table_lazy_boundary.md").read_text()
    assert text in capsys.readouterr().out
    assert "machine of this test" in text
    assert "| relu, width 16" in text
    assert (tmp_path / "lazy_boundary.png").stat().st_size > 10_000

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from lrpilot.evaluation import report
from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.runs.output import Output
from tests.full_disk import full_disk

SCHEDULERS = ("policy", "constant", "cosine")
FACTORS = (0.1, 1.0, 10.0)
SEEDS = (0, 1, 2)


def make_result(
    scheduler: str, factor: float, seed: int, *, accuracy: bool = True, **changes: Any
) -> Result:
    rng = np.random.default_rng([SCHEDULERS.index(scheduler), int(10 * factor), seed])
    row: dict[str, Any] = {
        "task": "digits",
        "scheduler": scheduler,
        "initial_lr_factor": factor,
        "initial_lr": 0.05 * factor,
        "seed": seed,
        "total_steps": 300,
        "train_loss": float(rng.uniform(0.1, 1)),
        "held_out_loss": float(rng.uniform(0.1, 1)),
    }
    if accuracy:
        row["test_accuracy"] = float(rng.uniform())
    row |= {"diverged": 0, "seconds": 0.5}
    lrs = np.linspace(0.05 * factor, 0, 300, endpoint=False).tolist()
    return Result({**row, **changes}, lrs, rng.uniform(0.1, 1, 300).tolist())


def make_results(**changes: Any) -> list[Result]:
    return [
        make_result(scheduler, factor, seed, **changes)
        for seed in SEEDS
        for factor in FACTORS
        for scheduler in SCHEDULERS
    ]


def diverged(result: Result, num_steps: int) -> Result:
    row = {
        **result.row,
        "train_loss": math.inf,
        "held_out_loss": math.inf,
        "test_accuracy": 0.0,
        "diverged": 1,
    }
    return Result(row, result.lrs[:num_steps], [*result.losses[: num_steps - 1], math.nan])


def rows_of(results: list[Result]) -> list[dict[str, Any]]:
    return [result.row for result in results]


@pytest.mark.parametrize("table", [report.tuned_table, report.robustness_table])
def test_a_table_has_one_line_per_scheduler(table: Any) -> None:
    _, *lines = table(rows_of(make_results()))

    assert [line[0] for line in lines] == list(SCHEDULERS)


@pytest.mark.parametrize("table", [report.tuned_table, report.robustness_table])
def test_tables_are_aligned_markdown(table: Any) -> None:
    header, *cells = table(rows_of(make_results()))
    lines = report.format_table(header, cells).splitlines()

    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == {"|", "-"}
    assert len({line.count("|") for line in lines}) == 1


def test_the_tuned_table_takes_each_scheduler_at_its_own_best_held_out_loss() -> None:
    rows = [
        make_result("policy", 0.1, 0, held_out_loss=0.5, test_accuracy=0.2).row,
        make_result("policy", 1.0, 0, held_out_loss=0.6, test_accuracy=0.9).row,
        make_result("cosine", 0.1, 0, held_out_loss=0.8, test_accuracy=0.95).row,
        make_result("cosine", 1.0, 0, held_out_loss=0.7, test_accuracy=0.3).row,
    ]
    header, policy, cosine = report.tuned_table(rows)

    lr, accuracy = header.index("best initial lr"), header.index("test accuracy")
    assert (policy[lr], policy[accuracy]) == ("0.005", "0.2")
    assert (cosine[lr], cosine[accuracy]) == ("0.05", "0.3")


def test_the_tuned_table_reports_at_the_initial_lr_that_the_tuning_rows_choose() -> None:
    rows = [
        make_result("policy", 0.1, 0, held_out_loss=0.5).row,
        make_result("policy", 1.0, 0, held_out_loss=0.6).row,
    ]
    tuning_rows = [
        make_result("policy", 0.1, 1, held_out_loss=0.9).row,
        make_result("policy", 1.0, 1, held_out_loss=0.1).row,
    ]
    header, policy = report.tuned_table(rows, tuning_rows)

    lr, loss = header.index("best initial lr"), header.index("held-out loss")
    assert (policy[lr], policy[loss]) == ("0.05", "0.6")


def test_the_tuned_table_counts_divergence_over_all_initial_lrs() -> None:
    results = [
        diverged(result, 50)
        if result.row["scheduler"] == "cosine" and result.row["initial_lr_factor"] == 10.0
        else result
        for result in make_results()
    ]
    header, *lines = report.tuned_table(rows_of(results))

    column = header.index("diverged")
    assert [line[column] for line in lines] == ["0/9", "0/9", "3/9"]


def test_the_tuned_table_says_what_the_choice_cost_in_optimizer_steps() -> None:
    rows = rows_of(make_results())
    header, policy, *_ = report.tuned_table(rows, rows[: len(rows) // 3])

    assert policy[header.index("search steps")] == "900"


def test_without_a_choice_the_search_costs_nothing() -> None:
    header, policy = report.tuned_table([make_result("policy", 1.0, 0).row])

    assert policy[header.index("search steps")] == "0"


def test_a_task_without_accuracy_has_no_accuracy_column() -> None:
    header, *_ = report.tuned_table(rows_of(make_results(accuracy=False)))

    assert "test accuracy" not in header


def test_tables_of_runs_that_all_diverged_say_infinity_without_a_warning() -> None:
    rows = [diverged(result, 20).row for result in make_results()]
    _, tuned, *_ = report.tuned_table(rows)
    _, robust, *_ = report.robustness_table(rows)

    assert tuned[2:4] == ["inf", "inf"]
    assert robust[1:] == ["inf"] * 4


def test_the_robustness_table_has_means_over_seeds_and_their_median() -> None:
    losses = {0.1: (1.0, 3.0), 1.0: (0.5, 0.5), 10.0: (9.0, math.inf)}
    rows = [
        make_result("policy", factor, seed, held_out_loss=loss).row
        for factor, pair in losses.items()
        for seed, loss in enumerate(pair)
    ]
    header, line = report.robustness_table(rows)

    assert header == ["held-out loss at initial lr", "0.005", "0.05", "0.5", "median"]
    assert line == ["policy", "2", "0.5", "inf", "2"]


def test_an_interval_of_one_seed_is_printed_as_its_mean() -> None:
    assert report.format_interval([0.12345678]) == "0.1235"


def test_an_interval_of_equal_values_is_printed_with_its_ends() -> None:
    assert report.format_interval([2.0] * 5) == "2.000 [2.000, 2.000]"


def test_of_fewer_than_five_values_the_least_and_the_largest_are_printed() -> None:
    assert report.format_interval([2.0, 2.5, 1.0]) == "1.83 (1.00 to 2.50)"


@pytest.mark.parametrize("name", ["rows.csv", "figure.png", "table.md"])
def test_a_result_that_cannot_be_written_whole_leaves_the_old_one(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_text("old")
    rows, output = rows_of(make_results()), Output(tmp_path, "origin", iter)
    write: dict[str, Any] = {
        "rows.csv": lambda: output.write_rows(rows, name),
        "figure.png": lambda: draw(make_results(), path),
        "table.md": lambda: output.write_table("x" * 2000, name=name),
    }

    with full_disk(), pytest.raises(OSError, match=name):
        write[name]()

    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == [name]
    plt.close("all")


@settings(deadline=None, max_examples=30)
@given(center=st.floats(-1e3, 1e3), spread=st.floats(-7, 3).map(lambda x: 10.0**x))
def test_the_printed_ends_of_an_interval_differ_and_enclose_the_printed_mean(
    center: float, spread: float
) -> None:
    text = report.format_interval([center, center + spread, center + 3 * spread])
    mean, low, high = map(float, re.findall(r"-?[\d.]+", text))

    assert low <= mean <= high
    assert low < high


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    rows = rows_of(make_results())
    Output(tmp_path, "origin", iter).write_rows(rows, "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        read = list(csv.DictReader(file))

    assert read == [{name: str(value) for name, value in row.items()} for row in rows]


def test_curves_keep_the_mean_loss_and_end_at_the_last_step() -> None:
    result = make_result("policy", 1.0, 0)
    curves = report.curve_rows([result], num_points=30)

    assert [point["step"] for point in curves] == list(range(10, 301, 10))
    assert curves[0]["lr"] == result.lrs[0]
    assert np.mean([point["train_loss"] for point in curves]) == pytest.approx(
        np.mean(result.losses)
    )


def test_curves_of_a_short_run_have_a_point_per_step() -> None:
    result = make_result("policy", 1.0, 0)
    short = Result(result.row, result.lrs[:3], result.losses[:3])
    curves = report.curve_rows([short])

    assert [(p["step"], p["lr"], p["train_loss"]) for p in curves] == list(
        zip((1, 2, 3), short.lrs, short.losses, strict=True)
    )


def test_a_figure_is_written_as_png_and_svg(tmp_path: Path) -> None:
    report.write_figure(plt.figure(), tmp_path / "curves.png")

    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_the_same_figure_is_the_same_svg_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        figure, axis = plt.subplots()
        axis.plot([0, 1], [0, 1], marker="o")
        report.write_figure(figure, tmp_path / folder / "curves.png")

    first, second = (tmp_path / folder / "curves.svg" for folder in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_the_line_of_the_policy_is_thick_red_and_in_front_of_the_others() -> None:
    policy = report.line_style("policy", 0, is_policy=True)
    others = [report.line_style("rival", i, is_policy=False) for i in range(30)]

    assert policy["color"] == "#d62728"
    assert all(policy["linewidth"] > 1.5 * other["linewidth"] for other in others)
    assert all(policy["zorder"] > other["zorder"] for other in others)


def draw(results: list[Result], path: Path) -> bytes:
    report.draw_curves(rows_of(results), report.curve_rows(results), path)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("factors", [FACTORS, (1.0,)])
def test_the_figure_is_a_png(tmp_path: Path, factors: tuple[float, ...]) -> None:
    results = [r for r in make_results() if r.row["initial_lr_factor"] in factors]
    content = draw(results, tmp_path / "curves.png")

    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 20])
def test_the_figure_is_drawn_when_everything_diverged(tmp_path: Path, num_steps: int) -> None:
    content = draw([diverged(r, num_steps) for r in make_results()], tmp_path / "curves.png")

    assert content.startswith(b"\x89PNG")


def test_the_figure_is_drawn_when_some_runs_diverged(tmp_path: Path) -> None:
    results = [diverged(r, 20) if r.row["seed"] == 1 else r for r in make_results()]

    assert draw(results, tmp_path / "curves.png").startswith(b"\x89PNG")


def test_drawing_leaves_no_figure_open(tmp_path: Path) -> None:
    before = plt.get_fignums()
    draw(make_results(), tmp_path / "curves.png")

    assert plt.get_fignums() == before


@pytest.mark.parametrize("num_steps", [20, 150])
def test_a_seed_that_diverged_does_not_bend_the_drawn_curve_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    results = [make_result("policy", 1.0, seed) for seed in (0, 1, 2)]
    results[1] = diverged(results[1], num_steps)
    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw(results, tmp_path / "curves.png")
    line = plt.gcf().axes[0].lines[0]
    monkeypatch.undo()
    plt.close("all")

    expected = report.curve_rows(results[:1])
    assert np.asarray(line.get_xdata()).tolist() == [point["step"] for point in expected]
    assert line.get_ydata() == pytest.approx([point["lr"] for point in expected])

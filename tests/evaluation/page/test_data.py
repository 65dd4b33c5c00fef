"""Files of runs are read whole and sorted, or refused with what is wrong with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrpilot.evaluation.page import write_page
from lrpilot.evaluation.page.data import NUM_POINTS, downsample, read_runs
from tests.evaluation.page.made_up_runs import make_row, make_rows, write_runs


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = make_rows(["policy"], factors=[1.0], test_accuracy=0.5)
    runs = read_runs([write_runs(rows, tmp_path)])

    lists = ("lrs", "losses", "curve")
    kept, read = (
        [{name: value for name, value in row.items() if name not in lists} for row in some]
        for some in (rows, runs.rows)
    )
    assert read == kept


def test_runs_are_sorted_by_task_scheduler_initial_lr_and_seed_and_the_policy_is_first(
    tmp_path: Path,
) -> None:
    rows = make_rows(["cosine", "policy", "constant"], tasks=["digits", "nmf"])
    runs = read_runs([write_runs(rows, tmp_path)])

    columns = ("task", "scheduler", "initial_lr_factor", "seed")
    assert [tuple(row[name] for name in columns) for row in runs.rows] == [
        (task, scheduler, factor, seed)
        for task in ("digits", "nmf")
        for scheduler in ("policy", "cosine", "constant")
        for factor in (0.1, 1.0, 10.0)
        for seed in (0, 1)
    ]


def test_a_curve_belongs_to_its_row(tmp_path: Path) -> None:
    runs = read_runs([write_runs(make_rows(), tmp_path)])

    for row in runs.rows:
        assert row["curve"].lrs[-1] == pytest.approx(row["initial_lr"] / row["total_steps"])


def test_several_folders_are_read_as_one(tmp_path: Path) -> None:
    folders = [
        write_runs(make_rows(tasks=[task]), tmp_path / task) for task in ("digits", "quadratic")
    ]
    runs = read_runs(folders)

    assert (runs.tasks, len(runs.rows)) == (["digits", "quadratic"], 36)
    assert runs.files == [folder / "runs.parquet" for folder in folders]


def test_rows_that_chose_learning_rates_are_no_results(tmp_path: Path) -> None:
    rows = make_rows() + make_rows(part="tuning", num_seeds=1) + make_rows(part="other")
    runs = read_runs([write_runs(rows, tmp_path)])

    assert {row["part"] for row in runs.rows} == {"report"}
    assert (len(runs.rows), len(runs.tuning_rows)) == (18, 9)


def test_a_task_without_accuracy_has_no_such_column_beside_one_that_has(tmp_path: Path) -> None:
    rows = make_rows(test_accuracy=0.5) + make_rows(tasks=["nmf"])
    runs = read_runs([write_runs(rows, tmp_path)])

    assert ["test_accuracy" in runs.of_task(task).rows[0] for task in runs.tasks] == [True, False]


def refused(rows: list[dict[str, Any]], folder: Path) -> str:
    with pytest.raises(ValueError, match=r"^`runs` must") as caught:
        read_runs([write_runs(rows, folder)])
    return str(caught.value)


def test_a_folder_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`runs` must name folders with a .*, got {tmp_path}$"):
        read_runs([tmp_path])


def test_no_folder_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="`runs` must name one folder at least"):
        read_runs([])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = write_runs(make_rows(), tmp_path) / "runs.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(ValueError, match=f"`runs` must name whole files, got {path}"):
        read_runs([tmp_path])


@pytest.mark.parametrize("byte", range(4, 2000, 133))
def test_a_file_with_a_damaged_byte_is_read_or_refused(tmp_path: Path, byte: int) -> None:
    path = write_runs(make_rows(), tmp_path) / "runs.parquet"
    content = bytearray(path.read_bytes())
    content[byte] ^= 0xFF
    path.write_bytes(content)

    try:
        read_runs([tmp_path])
    except ValueError as error:
        assert str(error).startswith("`runs` must")  # noqa: PT017


def test_columns_that_an_older_file_lacks_are_named(tmp_path: Path) -> None:
    rows = [
        {name: value for name, value in row.items() if name not in ("lrs", "part", "commit")}
        for row in make_rows()
    ]
    assert "without part, commit, lrs;" in refused(rows, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("first_loss", "one", "numbers"),
        ("machine", 3, "texts"),
        ("losses", 0.5, "lists of numbers"),
    ],
)
def test_a_column_of_another_kind_is_refused(
    tmp_path: Path, name: str, value: Any, kind: str
) -> None:
    assert f"must have {kind} in {name}, got" in refused(make_rows(**{name: value}), tmp_path)


def test_a_gap_in_a_column_is_refused(tmp_path: Path) -> None:
    rows = [*make_rows(), make_row("linear", held_out_loss=None)]
    assert "no gap, got one in held_out_loss" in refused(rows, tmp_path)


def test_a_file_without_results_is_refused(tmp_path: Path) -> None:
    rows = make_rows(part="tuning")
    assert "of the part 'report', got 18 rows and none of it" in refused(rows, tmp_path)


@pytest.mark.parametrize("column", ["lrpilot", "torch", "commit"])
def test_runs_of_two_versions_or_commits_are_refused(tmp_path: Path, column: str) -> None:
    first, second = (
        [{**row, column: value} for row in make_rows([name])]
        for name, value in (("policy", "1"), ("cosine", "2"))
    )
    rows = first + second
    said = refused(rows, tmp_path)
    assert "must hold runs of one version" in said
    assert f"{column} 1" in said
    assert f"{column} 2" in said


def test_a_training_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    assert "got 'policy' on 'digits' again" in refused([*make_rows(), make_row()], tmp_path)


def test_a_grid_with_a_hole_is_refused(tmp_path: Path) -> None:
    rows = make_rows(["policy"]) + make_rows(["cosine"])[1:]
    said = refused(rows, tmp_path)
    assert "the same seeds of every scheduler at every initial learning rate, got 1 of 2" in said


def test_disturbed_trainings_are_those_of_another_task(tmp_path: Path) -> None:
    rows = make_rows(disturbance="none") + make_rows(disturbance="lr x 10 at 0.5 T")
    runs = read_runs([write_runs(rows, tmp_path)])
    assert runs.tasks == ["digits", "digits, lr x 10 at 0.5 T"]


def test_a_scheduler_may_have_fewer_initial_learning_rates(tmp_path: Path) -> None:
    rows = make_rows(["policy"], factors=[0.1, 1.0]) + make_rows(["cosine"], factors=[1.0])
    runs = read_runs([write_runs(rows, tmp_path)])
    write_page(tmp_path, tmp_path / "report.html")
    assert len(runs.rows) == len(rows)
    assert "report.html" in {path.name for path in tmp_path.iterdir()}


def test_runs_of_one_task_that_are_not_of_one_length_are_refused(tmp_path: Path) -> None:
    rows = make_rows(["policy"]) + make_rows(["cosine"], total_steps=200)
    assert "for one number of steps, got [300, 200]" in refused(rows, tmp_path)


@given(total_steps=st.integers(1, 2000), share=st.floats(0, 1))
def test_a_point_of_a_curve_has_the_lr_of_its_step_and_the_mean_loss_up_to_it(
    total_steps: int, share: float
) -> None:
    values = np.random.default_rng(total_steps).uniform(size=max(1, int(share * total_steps)))
    curve = downsample(values, values, total_steps=total_steps)
    width = max(1, total_steps // 50)

    assert len(curve.steps) <= NUM_POINTS
    assert curve.lrs.tolist() == values[curve.steps - 1].tolist()
    means = [values[max(0, step - width) : step].mean() for step in curve.steps]
    assert curve.losses == pytest.approx(means)


@given(total_steps=st.integers(1, 2000))
def test_the_last_point_of_a_whole_run_is_its_last_step(total_steps: int) -> None:
    values = np.ones(total_steps)
    steps = downsample(values, values, total_steps=total_steps).steps

    assert (len(steps), steps[-1]) == (min(NUM_POINTS, total_steps), total_steps)


def test_a_run_that_ended_early_has_the_points_of_one_that_did_not() -> None:
    losses = np.arange(1000.0)
    whole = downsample(losses, losses, total_steps=1000)
    part = downsample(losses[:503], losses[:503], total_steps=1000)

    assert part.steps.tolist() == whole.steps[:100].tolist()
    assert part.losses.tolist() == whole.losses[:100].tolist()

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lrpilot import Policy
from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.runs.cell import TUNING, Cell, grid_of
from lrpilot.evaluation.runs.grid import Method, Result, deployed
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.runner import Runner
from lrpilot.evaluation.runs.store import Store, read_results, write_results
from lrpilot.tasks.quadratic import QuadraticTask

SCHEDULES = [Method(name, getattr(schedules, name)) for name in ("constant", "cosine")]


def no_bar(iterable: Any, **_: Any) -> Any:
    return iterable


def killed(optimizer: Optimizer, *, total_steps: int) -> LRScheduler:
    """As when a system runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return schedules.constant(optimizer, total_steps=total_steps)


@pytest.fixture
def cells(task: QuadraticTask, policy: Policy) -> list[Cell]:
    methods = [*SCHEDULES, Method("policy", partial(deployed, policy=policy))]
    return grid_of(task, methods, initial_lr_factors=[0.1, 1e38], seeds=[3, 4])


def without_seconds(results: list[Result]) -> list[Result]:
    return [replace(r, row={**r.row, "seconds": 0.0}) for r in results]


def test_kept_runs_are_those_that_were_trained(cells: list[Cell], tmp_path: Path) -> None:
    results = Runner(Store(tmp_path), no_bar).run(cells, "")
    for cell, result in zip(cells, results, strict=True):
        trained = cell.train()
        assert list(result.losses) == pytest.approx(trained.losses, rel=0, abs=0, nan_ok=True)
        assert list(result.lrs) == list(trained.lrs)
        assert list(result.actions) == list(trained.actions)
        same = {k: v for k, v in result.row.items() if k in trained.row and k != "seconds"}
        assert same == {k: v for k, v in trained.row.items() if k != "seconds"}
    assert {result.row["diverged"] for result in results} == {0, 1}


def test_no_run_is_trained_twice(cells: list[Cell], tmp_path: Path) -> None:
    runner = Runner(Store(tmp_path), no_bar)
    first = runner.run(cells[:5], "")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = runner.run(cells, "")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert repr([r.row for r in again[:5]]) == repr([r.row for r in first])
    assert repr([list(r.losses) for r in again[:5]]) == repr([list(r.losses) for r in first])
    assert len(list(tmp_path.iterdir())) == len(cells)


def test_a_run_that_stands_twice_among_the_cells_is_trained_once(
    cells: list[Cell], tmp_path: Path
) -> None:
    twice = [cells[0], replace(cells[0], part=TUNING, labels={"width": 8})]
    results = Runner(Store(tmp_path), no_bar).run(twice, "")
    assert len(list(tmp_path.iterdir())) == 1
    assert [result.row["part"] for result in results] == ["report", "tuning"]
    assert results[1].row["width"] == 8


@pytest.mark.slow
def test_processes_give_the_same_runs(cells: list[Cell], tmp_path: Path) -> None:
    here = without_seconds(Runner(Store(tmp_path / "here"), no_bar).run(cells, ""))
    apart = Runner(Store(tmp_path / "there"), no_bar, num_workers=2)
    there = without_seconds(apart.run(cells, ""))
    assert repr([r.row for r in there]) == repr([r.row for r in here])
    assert repr([list(r.losses) for r in there]) == repr([list(r.losses) for r in here])


@pytest.fixture
def as_job_of_joblib() -> Iterator[None]:
    """The default start method is joblib's own, as in its jobs."""
    pytest.importorskip("joblib.externals.loky")
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("loky", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
@pytest.mark.usefixtures("as_job_of_joblib")
def test_a_job_of_joblib_may_have_processes(cells: list[Cell], tmp_path: Path) -> None:
    assert len(Runner(Store(tmp_path), no_bar, num_workers=2).run(cells, "")) == len(cells)
    assert multiprocessing.get_start_method() == "loky"


@pytest.mark.slow
def test_a_killed_worker_keeps_the_finished_runs(
    cells: list[Cell], task: QuadraticTask, tmp_path: Path
) -> None:
    runner = Runner(Store(tmp_path), no_bar, num_workers=1)
    doomed = Cell(task, Method("killed", killed), 1.0, 3)
    with pytest.raises(RuntimeError, match=r"3 of 4 runs are finished and kept in .* goes on"):
        runner.run([*cells[:3], doomed], "")
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_what_cannot_be_sent_to_a_process_is_named(task: QuadraticTask, tmp_path: Path) -> None:
    made_here = Method("mine", lambda optimizer, total_steps: LambdaLR(optimizer, abs))
    runner = Runner(Store(tmp_path), no_bar, num_workers=1)
    with pytest.raises(ValueError, match=r"`num_workers` must be 0 for 'mine' on 'quadratic'"):
        runner.run([Cell(task, made_here, 1.0, 3)], "")


def test_a_negative_number_of_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`num_workers` must be at least 0, got -1"):
        Runner(Store(tmp_path), no_bar, num_workers=-1)


def changed(path: Path, **columns: Any) -> None:
    table = parquet.read_table(path)
    for name, value in columns.items():
        position = table.column_names.index(name)
        table = table.set_column(position, name, pyarrow.array([value] * table.num_rows))
    parquet.write_table(table, path)


@pytest.mark.parametrize("column", ["lrpilot", "torch", "commit"])
def test_a_run_of_another_version_is_refused(
    cells: list[Cell], tmp_path: Path, column: str
) -> None:
    runner = Runner(Store(tmp_path), no_bar)
    runner.run(cells[:1], "")
    changed(next(tmp_path.iterdir()), **{column: "other"})
    with pytest.raises(ValueError, match=rf"`store` .* one version, .*{column} other.*another"):
        runner.run(cells[:1], "")


def test_the_runs_of_an_output_folder_are_trained_again_by_another_version(
    cells: list[Cell], tmp_path: Path
) -> None:
    output = Output(tmp_path, "", no_bar)
    output.train(cells[:1], "")
    (path,) = (tmp_path / "cells").iterdir()
    changed(path, commit="other", seconds=-1.0)
    (result,) = output.train(cells[:1], "")
    assert result.row["seconds"] >= 0.0
    assert parquet.read_table(path)["commit"][0].as_py() != "other"


def test_a_damaged_run_is_named(cells: list[Cell], tmp_path: Path) -> None:
    runner = Runner(Store(tmp_path), no_bar)
    runner.run(cells[:1], "")
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=rf"{path.name} must be a Parquet file of runs"):
        runner.run(cells[:1], "")


def test_columns_that_some_rows_lack_stay_away_from_them(cells: list[Cell], tmp_path: Path) -> None:
    results = [cell.train() for cell in cells[:2]]
    results[1] = replace(results[1], row={**results[1].row, "width": 8})
    path = tmp_path / "runs.parquet"
    write_results(results, path)
    read = read_results(path)
    assert "width" not in read[0].row
    assert read[1].row["width"] == 8
    assert math.isclose(read[0].row["held_out_loss"], results[0].row["held_out_loss"], rel_tol=0)


def test_two_versions_in_one_table_are_refused(cells: list[Cell], tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    write_results([cell.train() for cell in cells[:2]], path)
    table = parquet.read_table(path)
    position = table.column_names.index("commit")
    parquet.write_table(table.set_column(position, "commit", pyarrow.array(["a", "b"])), path)
    with pytest.raises(ValueError, match=r"runs of one version, got those of .*commit a and .*b"):
        read_results(path)


def test_an_older_file_is_refused_with_the_columns_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    parquet.write_table(pyarrow.table({"task": ["t"], "seed": [1]}), path)
    with pytest.raises(ValueError, match=r"got none for \['scheduler', .*'losses'"):
        read_results(path)

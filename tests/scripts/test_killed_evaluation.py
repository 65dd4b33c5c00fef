"""An evaluation that is killed goes on from its finished runs, and ends with the same table."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest

from tests.programs import Program, run, start

GRID = (
    "task=digits",
    "scheduler=[constant,d2z]",
    "task.total_steps=60",
    "initial_lr_factors=[0.1,1,10]",
    "num_seeds=1",
    "placebos=false",
    "policy=cifar",
)
NUM_RUNS = 9


def begin(*arguments: str, cwd: Path) -> Program:
    return start("evaluate.py", *GRID, *arguments, cwd=cwd, start_new_session=True)


def finish(*arguments: str, cwd: Path) -> None:
    code, _, err = run("evaluate.py", *GRID, *arguments, cwd=cwd)
    assert code == 0, err


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    finish("hydra.run.dir=run", cwd=folder)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_evaluation_ends_with_the_same_table(
    tmp_path: Path, whole: Path, num_workers: int
) -> None:
    store = tmp_path / "kept"
    given = (f"store={store}", f"num_workers={num_workers}")
    process = begin(*given, "hydra.run.dir=killed", cwd=tmp_path)
    while len(list(store.glob("*.parquet"))) < 4:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in store.glob("*.parquet")}
    assert 4 <= len(kept) < NUM_RUNS

    finish(*given, "hydra.run.dir=again", cwd=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert rows_of(tmp_path / "again") == rows_of(whole)
    assert len(rows_of(tmp_path / "again")) == NUM_RUNS
    curves = [(folder / "curves.csv").read_bytes() for folder in (tmp_path / "again", whole)]
    assert curves[0] == curves[1]

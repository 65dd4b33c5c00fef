"""`experiment=quick/...`: a small version of an experiment that says what it is."""

import csv
from typing import Any

import pytest

from tests.programs import run_scripts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The quick version of an experiment, with some values given."""
    folder = tmp_path_factory.mktemp("quick")
    given = ["compare.num_seeds=3", "compare.widths=[4,20,40]", "task.total_steps=20"]
    given += ["show_progress=false", f"hydra.run.dir={folder}/out"]
    command = ["reproduce.py", "experiment=quick/double_descent", *given]
    ((code, _, err),) = run_scripts([command], folder)
    assert code == 0, err
    return folder / "out"


def test_command_line_wins_over_the_quick_version(out_dir: Any) -> None:
    with (out_dir / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["seed"] for row in rows}) == 3
    assert {row["width"] for row in rows} == {"4", "20", "40"}
    assert {row["total_steps"] for row in rows} == {"20"}


def test_quick_version_takes_its_own_values_for_the_rest(out_dir: Any) -> None:
    with (out_dir / "tuning.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["initial_lr_factor"] for row in rows} == {"0.3", "3.0"}
    assert len({row["seed"] for row in rows}) == 1


def test_table_of_a_quick_version_says_so_and_shows_no_interval_of_three_seeds(
    out_dir: Any,
) -> None:
    text = (out_dir / "table_double_descent.md").read_text()
    assert text.startswith("quick: shows that everything runs, means nothing\n")
    assert "mean (least to largest)" in text
    assert "[" not in text.split("\n\n", 2)[2]


def test_configuration_in_the_folder_is_what_ran(out_dir: Any) -> None:
    assert "num_seeds: 3" in (out_dir / "config.yaml").read_text()

"""Evaluation as a library call, and its report from files alone."""

from pathlib import Path

import pytest

from lrpilot import Policy
from lrpilot.command.main import main
from lrpilot.evaluation.evaluate import evaluate, read_rows
from lrpilot.evaluation.methods.schedules import constant, cosine
from lrpilot.evaluation.statistics import unique
from lrpilot.tasks.shipped import load_task


@pytest.mark.slow
def test_evaluation_writes_what_it_returns_and_the_command_reports_it_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = evaluate(
        load_task("quadratic"),
        policy=Policy.load("small_networks"),
        schedulers={"constant": constant, "cosine": cosine},
        initial_lr_factors=[0.1, 1.0],
        num_seeds=2,
        num_skipped_seeds=3,
        num_replay=1,
        total_steps=160,
        out_dir=tmp_path / "out",
        show_progress=False,
    )
    assert read_rows(tmp_path / "out" / "runs.csv") == rows
    assert sorted({row["seed"] - 2**30 for row in rows}) == [3, 4]
    assert {row["total_steps"] for row in rows} == {160}
    names = [name for name in unique(rows, "scheduler") if name.startswith("placebo: ")]
    assert len(names) == 5
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    figure = tmp_path / "out" / "curves.png"
    drawn = figure.read_bytes()
    figure.unlink()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert figure.read_bytes() == drawn
    assert capsys.readouterr().out.strip().endswith(table.split("\n\n", 1)[1].strip())


def test_evaluation_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`scheduler` must name one at least"):
        evaluate("quadratic", initial_lr_factors=[1.0], num_seeds=1, out_dir=tmp_path)

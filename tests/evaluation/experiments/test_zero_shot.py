"""One untuned run on unseen trainings, against a search."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.optim import SGD

from lrpilot import Policy
from lrpilot.evaluation.experiments.zero_shot import compare_unseen, summary_table
from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds
from lrpilot.tasks.quadratic import QuadraticTask

FACTORS = [0.1, 1.0, 10.0]
SCHEDULES = {"d2z": schedules.d2z, "constant": schedules.constant}


def no_bar(iterable: Any, **_: Any) -> Any:
    return iterable


def compare(
    task: QuadraticTask,
    policy: Policy,
    folder: Path,
    store: Path | None = None,
    **changes: Any,
) -> None:
    arguments = {
        "tasks": {"shallow": task, "long": replace(task, total_steps=50)},
        "schedulers": SCHEDULES,
        "rivals": {"plain": {"scheduler": schedules.linear, "optimizer": SGD, "base_lr": 0.2}},
        "search_rivals": ["d2z"],
        "initial_lr_factors": FACTORS,
        "num_seeds": 2,
    }
    output = Output(folder, "machine of this test", no_bar, store=store)
    compare_unseen(policy=policy, output=output, **{**arguments, **changes})


@pytest.fixture(scope="module")
def out_dir(task: QuadraticTask, policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unseen")
    compare(task, policy, folder)
    return folder


def test_every_method_trains_every_task_from_every_lr_on_every_seed(out_dir: Path) -> None:
    with (out_dir / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("task", "scheduler", "initial_lr_factor", "seed")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows) == 2 * 4 * 3 * 2
    assert {int(row["seed"]) for row in rows} == {*evaluation_seeds(2)}
    of_rival = {float(row["initial_lr"]) for row in rows if row["scheduler"] == "plain"}
    assert sorted(of_rival) == pytest.approx([0.02, 0.2, 2.0])


def test_another_policy_trains_its_own_runs_alone(
    task: QuadraticTask, policy: Policy, out_dir: Path
) -> None:
    store = out_dir / "cells"
    kept = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    other = replace(policy, layers=[(2.0 * weight, bias) for weight, bias in policy.layers])
    compare(task, other, out_dir / "other", store)
    new = {path.name for path in store.iterdir()} - kept.keys()
    assert len(new) == 2 * 3 * 2
    assert all("-policy-" in name for name in new)
    assert {name: (store / name).stat().st_mtime_ns for name in kept} == kept


def test_the_figure_and_the_table_are_written(out_dir: Path) -> None:
    assert (out_dir / "zero_shot.png").stat().st_size > 5000
    text = (out_dir / "table.md").read_text()
    assert "worth in runs of d2z" in text
    assert text.count("| plain ") == 2


def test_tasks_can_be_chosen(task: QuadraticTask, policy: Policy, tmp_path: Path) -> None:
    compare(task, policy, tmp_path, only=["long"])
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert {row["task"] for row in csv.DictReader(file)} == {"long"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search_rivals": ["wsd"]}, "`search_rivals` must be among the schedulers and rivals"),
        ({"only": ["cnn"]}, "`only` must be among the tasks"),
    ],
)
def test_names_of_nothing_are_refused(
    task: QuadraticTask, policy: Policy, tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(task, policy, tmp_path, **changes)


def test_the_summary_counts_what_a_search_costs() -> None:
    """The rival finds .5 at one of two rates, and 2 (its start, where it diverges) at the other."""

    def row(scheduler: str, factor: float, loss: float) -> dict[str, Any]:
        return {
            "task": "t",
            "scheduler": scheduler,
            "initial_lr_factor": factor,
            "held_out_loss": loss,
            "first_loss": 2.0,
            "diverged": int(math.isinf(loss)),
            "total_steps": 7,
        }

    rows = [row("policy", 1.0, 0.6), row("policy", 3.0, 0.7)]
    rows += [row("d2z", 1.0, 0.5), row("d2z", 3.0, math.inf)]
    cells = [
        cell.strip() for cell in summary_table(rows, ["d2z"]).splitlines()[-1].split("|")[1:-1]
    ]
    # .5 + 1.5 / 2^N <= .65 from N = 4 on
    assert cells == ["t", "7", "0.65", "4", "0.6", "0.5", "0/2", "0.150", "0.750"]

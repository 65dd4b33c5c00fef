import csv
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lrpilot import ClockSpec, Policy
from lrpilot.evaluation.experiments.double_descent.experiment import choose, compare_widths
from lrpilot.evaluation.experiments.double_descent.report import landmarks, peak_table
from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds, tuning_seeds
from lrpilot.tasks.theory.width import WidthTask

CONF = Path(__file__).resolve().parents[3] / "conf"
POLICY = replace(Policy.load("small_networks"), clock=ClockSpec(horizon_range=(1, 300)))


def no_bar(cases: Any, **_: Any) -> Any:
    return cases


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("double_descent")
    compare_widths(
        task=WidthTask(
            name="width",
            optimizer=partial(torch.optim.SGD, momentum=0.9),
            base_lr=0.3,
            total_steps=30,
            width=1,
            num_train=60,
        ),
        schedulers={"constant": schedules.constant, "cosine": schedules.cosine},
        widths=[4, 8, 40],
        initial_lr_factors=[0.1, 1.0],
        num_tuning=1,
        num_seeds=2,
        policy=POLICY,
        output=Output(folder, "machine of this test", no_bar),
    )
    return folder


@pytest.mark.slow
def test_table_figure_and_runs_are_written(out_dir: Path) -> None:
    tables = {"runs.csv", "runs.parquet", "table_double_descent.md", "tuning.csv"}
    names = {"double_descent.png", "double_descent.svg", "cells", *tables}
    assert {path.name for path in out_dir.iterdir()} == names
    assert "machine of this test" in (out_dir / "table_double_descent.md").read_text()


@pytest.mark.slow
def test_every_method_runs_at_every_width_and_initial_lr_for_tuning(out_dir: Path) -> None:
    rows = read(out_dir / "tuning.csv")
    cases = {(row["width"], row["scheduler"], row["initial_lr_factor"]) for row in rows}
    assert len(rows) == len(cases) == 3 * 3 * 2


def test_reported_seeds_are_not_those_of_tuning(out_dir: Path) -> None:
    tuning, reported = read(out_dir / "tuning.csv"), read(out_dir / "runs.csv")
    assert {int(row["seed"]) for row in tuning} == {*tuning_seeds(1)}
    assert {int(row["seed"]) for row in reported} == {*evaluation_seeds(2)}


def test_both_criteria_report_every_width_scheduler_and_seed(out_dir: Path) -> None:
    rows = read(out_dir / "runs.csv")
    cases = {(r["chosen_by"], r["width"], r["scheduler"], r["seed"]) for r in rows}
    assert len(rows) == len(cases) == 2 * 3 * 3 * 2


@pytest.mark.parametrize(
    ("column", "factor"), [("train_loss", 1.0), ("held_out_loss", 0.1)], ids=["fit", "held-out"]
)
def test_each_criterion_chooses_by_the_mean_over_seeds(column: str, factor: float) -> None:
    losses = {0.1: ((0.3, 0.2), (0.5, 0.2)), 1.0: ((0.1, 0.1), (0.1, 0.9)), 10.0: 2 * ((9, 9),)}
    rows = [
        {
            "width": 8,
            "scheduler": "constant",
            "initial_lr_factor": lr_factor,
            "train_loss": train_loss,
            "held_out_loss": held_out_loss,
        }
        for lr_factor, seeds in losses.items()
        for train_loss, held_out_loss in seeds
    ]
    assert choose(rows, column) == [(8, "constant", factor)]


def test_peak_is_measured_against_both_sides_by_seed() -> None:
    losses = {5: (0.1, 0.2), 10: (0.4, 0.6), 100: (0.3, 0.3)}
    rows = [
        {
            "chosen_by": "fit",
            "scheduler": "constant",
            "width": width,
            "test_loss": loss,
            "test_accuracy": 1.0 - loss,
        }
        for width, seeds in losses.items()
        for loss in seeds
    ]
    (line,) = [line for line in peak_table(rows, 10.0).splitlines() if "test loss" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:6] == ["0.150", "0.500", "0.300"]
    assert [float(cell.split()[0]) for cell in cells[6:8]] == [0.35, 0.2]


def test_landmarks_are_chosen_by_the_ratio_of_widths() -> None:
    assert landmarks([4, 16, 80, 100], 40.0) == (16, 80, 100)


def test_experiment_builds_what_it_names() -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("reproduce", ["experiment=double_descent"])
    compare = instantiate(cfg.compare, _convert_="all")
    assert compare.keywords["task"].interpolation_width == pytest.approx(299 * 10 / 75)
    assert list(compare.keywords["schedulers"]) == ["constant", "cosine", "greedy"]
    assert Policy.load(cfg.policy).fingerprint == Policy.load("small_networks").fingerprint

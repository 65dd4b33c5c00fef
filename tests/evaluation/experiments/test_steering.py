"""Whether a policy steers: it and its placebos under disturbances."""

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpilot import Policy
from lrpilot.evaluation.experiments.steering.experiment import compare_steering
from lrpilot.evaluation.experiments.steering.report import (
    differences,
    lr_ratio,
    seed_losses,
    verdict,
)
from lrpilot.evaluation.runs.disturbance import BatchSizeChange, LabelShift, LRScaling
from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds, replay_seeds
from lrpilot.evaluation.runs.store import read_results
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.quadratic import QuadraticTask

DISTURBANCES = (BatchSizeChange(factor=0.125), LabelShift(), LRScaling(multiple=10.0))
TASK = ImageTask(
    name="unnamed",
    data="digits",
    model=partial(mlp, width=4),
    optimizer=torch.optim.SGD,
    base_lr=0.1,
    total_steps=10,
)
RIVALS = ("replay", "mean schedule", "static best multiplier", "untrained", "random walk")


def no_bar(iterable: Any, **_: Any) -> Any:
    return iterable


@pytest.fixture(scope="module")
def out_dir(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steering")
    compare_steering(
        tasks={"small": TASK, "slow": replace(TASK, base_lr=0.01)},
        disturbances=DISTURBANCES,
        initial_lr_factors=[0.5, 2.0],
        num_seeds=1,
        num_replay=1,
        policy=policy,
        output=Output(folder, "machine of this test", no_bar),
    )
    return folder


def test_every_method_meets_every_disturbance_on_every_seed(out_dir: Path) -> None:
    with (out_dir / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("task", "disturbance", "scheduler", "initial_lr_factor", "seed")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows) == 2 * 4 * 6 * 2
    assert {row["disturbance"] for row in rows} == {"none", *(d.name for d in DISTURBANCES)}


def test_placebos_come_from_undisturbed_runs_of_other_seeds(out_dir: Path) -> None:
    rows = [result.row for result in read_results(out_dir / "runs.parquet")]
    seeds = {part: {r["seed"] for r in rows if r["part"] == part} for part in ("report", "replay")}
    assert seeds == {"report": {*evaluation_seeds(1)}, "replay": {*replay_seeds(1)}}
    assert {row["disturbance"] for row in rows if row["part"] == "replay"} == {"none"}


def test_the_table_has_a_verdict_for_every_task_and_disturbance(out_dir: Path) -> None:
    text = (out_dir / "table.md").read_text()
    for task in ("small", "slow"):
        for name in ("none", *(disturbance.name for disturbance in DISTURBANCES)):
            assert f"\n{task}, {name}: " in text
    assert all(f"minus {rival}" in text for rival in RIVALS)
    assert (out_dir / "steering.png").read_bytes().startswith(b"\x89PNG")


def test_placebos_do_not_answer_a_disturbance(out_dir: Path) -> None:
    results = [r for r in read_results(out_dir / "runs.parquet") if r.row["part"] == "report"]
    fixed = {f"placebo: {name}" for name in RIVALS} - {"placebo: untrained"}
    lrs: dict[tuple[Any, ...], set[tuple[float, ...]]] = {}
    for result in results:
        row = result.row
        if row["scheduler"] in fixed and not row["disturbance"].startswith("lr"):
            key = row["task"], row["scheduler"], row["initial_lr_factor"], row["seed"]
            lrs.setdefault(key, set()).add(tuple(result.lrs))
    assert {len(found) for found in lrs.values()} == {1}


def test_a_task_that_cannot_be_disturbed_is_refused_before_anything_is_trained(
    task: QuadraticTask, policy: Policy, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"`shift_labels` must be asked .*, got QuadraticRun"):
        compare_steering(
            tasks={"small": TASK, "bowl": task},
            disturbances=[LabelShift()],
            initial_lr_factors=[1.0],
            num_seeds=1,
            num_replay=1,
            policy=policy,
            output=Output(tmp_path, "", no_bar),
        )
    assert list(tmp_path.iterdir()) == []


def row(scheduler: str, seed: int, loss: float, **others: Any) -> dict[str, Any]:
    return {
        "scheduler": scheduler,
        "seed": seed,
        "held_out_loss": loss,
        "first_loss": 2.0,
        "initial_lr_factor": 1.0,
        **others,
    }


def test_a_diverged_run_counts_with_its_first_loss() -> None:
    rows = [row("policy", 1, 0.5), row("policy", 1, float("inf")), row("policy", 2, 0.25)]
    assert seed_losses(rows, "policy") == [1.25, 0.25]


def test_differences_are_paired_by_seed() -> None:
    rows = [row("policy", 1, 0.5), row("placebo: replay", 1, 0.75)]
    rows += [row("policy", 2, 1.0), row("placebo: replay", 2, 0.5)]
    assert differences(rows) == {"placebo: replay": [-0.25, 0.5]}


@pytest.mark.parametrize(
    ("replay", "answer"),
    [
        ([-0.1] * 5, "steers; better than replay"),
        ([0.1] * 5, "worse for its feedback; worse than replay"),
        ([-0.1, 0.1, -0.1, 0.1, 0.0], "no steering seen; no different from replay"),
        ([-0.1] * 4, "4 seeds, too few for a verdict"),
    ],
)
def test_steering_is_to_be_better_than_the_replay(replay: list[float], answer: str) -> None:
    assert verdict({"placebo: replay": replay}) == answer


def test_the_ratio_is_one_of_a_schedule_that_does_not_answer_and_a_tenth_of_a_cut() -> None:
    plain = Result(row("policy", 1, 0.5, disturbance="none"), [1.0] * 8, [0.0] * 8)
    deaf = replace(plain, row={**plain.row, "disturbance": "deaf"})
    cut = Result({**plain.row, "disturbance": "cut"}, [1.0] * 6 + [0.1] * 2, [0.0] * 8)
    assert lr_ratio([plain, deaf, cut], "deaf") == 1.0
    assert lr_ratio([plain, deaf, cut], "cut") == pytest.approx(0.1)

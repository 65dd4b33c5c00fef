"""Placebos that are made on seeds of their own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpilot import Policy
from lrpilot.evaluation.methods.placebos import STATIC_MULTIPLIERS
from lrpilot.evaluation.methods.recorded import Learned, best_multipliers, with_placebos
from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import replay_seeds
from lrpilot.tasks.mixture import MixtureTask
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.task import Task

FACTORS = [0.1, 1.0]
WITHOUT_CURVES = ["policy", "placebo: untrained", "placebo: random walk"]


def no_bar(iterable: Any, **_: Any) -> Any:
    return iterable


def learned(task: Task, policy: Policy, folder: Path, **changes: Any) -> Learned:
    given = {"initial_lr_factors": FACTORS, "num_replay": 2, **changes}
    return with_placebos(policy, task, output=Output(folder, "", no_bar), **given)


def test_policy_and_multipliers_are_run_on_replay_seeds_alone(
    task: QuadraticTask, policy: Policy, tmp_path: Path
) -> None:
    rows = [result.row for result in learned(task, policy, tmp_path).recorded]
    assert len(rows) == (1 + len(STATIC_MULTIPLIERS)) * len(FACTORS) * 2
    assert {row["seed"] for row in rows} == {*replay_seeds(2)}
    assert {row["part"] for row in rows} == {"replay"}


def test_the_policy_comes_first_and_every_placebo_after_it(
    task: QuadraticTask, policy: Policy, tmp_path: Path
) -> None:
    names = [method.name for method in learned(task, policy, tmp_path).methods]
    rivals = ("replay", "mean schedule", "static best multiplier", "untrained", "random walk")
    assert names == ["policy", *(f"placebo: {name}" for name in rivals)]


def test_the_horizon_is_that_of_the_comparison(
    task: QuadraticTask, policy: Policy, tmp_path: Path
) -> None:
    methods = learned(task, policy, tmp_path, total_steps=20).methods
    replay = next(method for method in methods if method.name == "placebo: replay")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    assert replay.make(optimizer, total_steps=20) is not None


def test_a_mixture_has_no_schedule_to_replay(
    task: QuadraticTask, policy: Policy, tmp_path: Path
) -> None:
    mixture = MixtureTask(tasks={"near": task, "far": replace(task, base_lr=0.02)})
    found = learned(mixture, policy, tmp_path, num_replay=8)
    assert {result.row["task"] for result in found.recorded} == {"near", "far"}
    assert [method.name for method in found.methods] == WITHOUT_CURVES


def result(lr: float, multiplier: float, loss: float) -> Result:
    return Result({"initial_lr": lr, "multiplier": multiplier, "held_out_loss": loss}, [], [])


def test_the_best_multiplier_is_chosen_for_each_initial_lr_by_its_mean_over_seeds() -> None:
    results = [result(1.0, 0.1, 2.0), result(1.0, 0.1, 2.0)]
    results += [result(1.0, 3.0, 1.0), result(1.0, 3.0, 4.0)]
    results += [result(0.1, 0.1, 5.0), result(0.1, 3.0, 1.0)]
    assert best_multipliers(results) == {1.0: 0.1, 0.1: 3.0}


def test_a_multiplier_that_diverges_is_not_chosen() -> None:
    results = [result(1.0, 0.1, float("inf")), result(1.0, 3.0, 1e6)]
    assert best_multipliers(results) == {1.0: pytest.approx(3.0)}

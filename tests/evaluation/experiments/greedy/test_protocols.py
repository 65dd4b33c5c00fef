"""Both protocols, and the experiments that are made of them, on trainings of a few steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrpilot import Policy
from lrpilot.evaluation.experiments.greedy import factor, noise, pairs, rescue, rivals
from lrpilot.evaluation.experiments.greedy.protocols import (
    AS_IN_PAPER,
    Contest,
    Runs,
    mean_losses_at_stages,
    train_protocols,
)
from lrpilot.evaluation.experiments.greedy.schedulers import practical, theory
from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.page import write_page
from lrpilot.evaluation.runs.grid import Method, Result
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds, tuning_seeds
from lrpilot.evaluation.runs.store import read_results
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.small_networks.task import SmallNetworkTask

TUNED: dict[str, Any] = {"initial_lr_factors": [0.1, 1.0], "num_tuning": 1, "num_seeds": 2}
METHODS = [Method("greedy", practical), Method("constant", schedules.constant)]


def no_bar(iterable: Any, **_: Any) -> Any:
    return iterable


def network() -> SmallNetworkTask:
    return SmallNetworkTask(
        name="small_networks", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=8
    )


@pytest.fixture(scope="module")
def runs(task: QuadraticTask, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    output = Output(tmp_path_factory.mktemp("protocols"), "machine of this test", no_bar)
    return train_protocols([Contest(task, METHODS)], output=output, **TUNED)


def test_the_papers_protocol_is_one_run_at_the_tasks_own_rate(runs: Runs) -> None:
    rows = [result.row for result in runs.as_in_paper]
    assert [row["scheduler"] for row in rows] == ["greedy", "constant"]
    assert {(row["seed"], row["initial_lr_factor"]) for row in rows} == {
        (evaluation_seeds(1)[0], 1.0)
    }


def test_the_fair_protocol_reports_other_seeds_than_it_tunes_on(runs: Runs) -> None:
    assert {result.row["seed"] for result in runs.tuning} == {*tuning_seeds(1)}
    assert {result.row["seed"] for result in runs.fair} == {*evaluation_seeds(2)}


def test_the_best_rate_of_the_tuning_seeds_is_reported(runs: Runs, task: QuadraticTask) -> None:
    searched = {
        result.row["initial_lr_factor"]: result.row["held_out_loss"]
        for result in runs.tuning
        if result.row["scheduler"] == "constant"
    }
    best = min(searched, key=lambda lr_factor: searched[lr_factor])
    reported = {r.row["initial_lr_factor"] for r in runs.fair if r.row["scheduler"] == "constant"}
    assert reported == {best}
    assert len(runs.fair_losses(task.name, "constant")) == 2


def test_two_tasks_of_one_name_are_refused(task: QuadraticTask, tmp_path: Path) -> None:
    contests = [Contest(task, METHODS)] * 2
    with pytest.raises(ValueError, match="`contests` must have tasks of different names, got"):
        train_protocols(contests, output=Output(tmp_path, "", no_bar), **TUNED)


def test_stages_after_a_run_broke_off_are_infinite() -> None:
    result = Result({}, [], [1.0] * 40)
    assert mean_losses_at_stages(result, 60).tolist() == [1.0, 1.0, np.inf]


def test_a_claimed_training_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`claimed` must be one of .*, got 'none'"):
        factor.sweep_factor(
            trainings={},
            claimed="none",
            factors=[0.5],
            output=Output(tmp_path, "", no_bar),
            **TUNED,
        )


@pytest.mark.parametrize(
    ("methods", "equal_cost", "message"),
    [
        ({"a": {}}, [], "`methods` must have 'greedy'"),
        ({"greedy": {}}, ["b"], "`equal_cost` must be among"),
    ],
)
def test_methods_that_cannot_be_compared_are_refused(
    tmp_path: Path, methods: Any, equal_cost: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rivals.compare_rivals(
            tasks={},
            methods=methods,
            equal_cost=equal_cost,
            output=Output(tmp_path, "", no_bar),
            **TUNED,
        )


def sweep(task: QuadraticTask, policy: Policy, output: Output) -> None:
    trainings = {"quadratic": {"task": task, "greedy": theory}}
    factor.sweep_factor(
        trainings=trainings,
        claimed="quadratic",
        factors=[0.25, 0.99],
        output=output,
        **TUNED,
    )


def pair_up(task: QuadraticTask, policy: Policy, output: Output) -> None:
    adagrad = {"optimizer": torch.optim.Adagrad, "base_lr": 0.01}
    pairs.compare_pairs(
        network=network(),
        optimizers={"adagrad": adagrad},
        greedy=practical,
        baselines={"linear": schedules.linear, "polynomial": schedules.polynomial},
        num_networks=1,
        output=output,
        **TUNED,
    )


def add_noise(task: QuadraticTask, policy: Policy, output: Output) -> None:
    noise.compare_under_noise(
        network=network(),
        greedy=practical,
        schedules={"cosine": schedules.cosine},
        strength=0.5,
        noisy_batch_size=2,
        num_networks=2,
        output=output,
        **TUNED,
    )


def compare(task: QuadraticTask, policy: Policy, output: Output) -> None:
    methods: dict[str, dict[str, Any]] = {
        "greedy": {"make": practical},
        "sgd": {"make": schedules.constant},
    }
    rivals.compare_rivals(
        tasks={"quadratic": task},
        methods=methods,
        equal_cost=["sgd"],
        output=output,
        **TUNED,
    )


def find_regrets(task: QuadraticTask, policy: Policy, output: Output) -> None:
    rescue.rescue(
        tasks={"quadratic": task},
        schedulers={"constant": schedules.constant},
        rivals={"plain": {"scheduler": schedules.linear, "base_lr": 0.2}},
        initial_lr_factors=[0.1, 1.0],
        num_seeds=2,
        policy=policy,
        output=output,
    )


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [sweep, pair_up, add_noise, compare, find_regrets])
def test_an_experiment_ends_in_one_table_a_figure_and_its_runs(
    experiment: Callable[..., None],
    task: QuadraticTask,
    policy: Policy,
    tmp_path: Path,
) -> None:
    experiment(task, policy, Output(tmp_path, "machine of this test", no_bar))
    text = (tmp_path / "table.md").read_text()
    assert text.count("| claim ") == 1
    for column in ("paper said", "paper's protocol", "fair protocol", "verdict"):
        assert column in text.splitlines()[3]
    (figure,) = tmp_path.glob("*.png")
    assert figure.stat().st_size > 5000
    assert read_results(tmp_path / "runs.parquet")
    write_page(tmp_path, tmp_path / "page.html")


@pytest.mark.slow
def test_every_pair_has_a_network_of_its_own(tmp_path: Path) -> None:
    output = Output(tmp_path, "machine of this test", no_bar)
    pair_up(None, None, output)  # type: ignore[arg-type]
    firsts: dict[str, set[float]] = {}
    for result in read_results(tmp_path / "runs.parquet"):
        if result.row["part"] == AS_IN_PAPER:
            firsts.setdefault(result.row["task"], set()).add(result.row["first_loss"])
    # both sides of a pair start from the same network, and no two pairs do
    assert [len(losses) for losses in firsts.values()] == [1, 1]
    assert len(set.union(*firsts.values())) == 2

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lrpilot import ClockSpec, ObservationSpec, Policy, PolicyLR
from lrpilot.envs.lr_control import FIRST_EVALUATION_SEED
from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.runs.cell import grid_of
from lrpilot.evaluation.runs.grid import Method, Result, train
from lrpilot.tasks import from_model
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.mixture import MixtureTask
from lrpilot.tasks.nmf.task import NMFTask
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.task import Task
from tests.scheduling import plain_action

TASKS = ("quadratic", "nmf", "digits")
SEEDS = [FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + 1]


def make_task(name: str) -> Task:
    common: dict[str, Any] = {
        "name": name,
        "optimizer": partial(torch.optim.SGD, momentum=0.9),
        "total_steps": 12,
        "base_lr": 0.01,
    }
    if name == "quadratic":
        return QuadraticTask(**common)
    if name == "nmf":
        return NMFTask(**common, shape=(12, 8), rank=3, batch_size=4)
    return ImageTask(**common, data="digits", batch_size=32)


def make_policy() -> Policy:
    observation = ObservationSpec()
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(len(observation.names), 1)).astype(np.float32)
    return Policy(
        [(weight, np.zeros(1, np.float32))],
        observation,
        plain_action(start_factor=0.5),
        ClockSpec(num_decisions=6),
    )


POLICY = Method("policy", partial(PolicyLR, policy=make_policy()))
CONSTANT = Method("constant", schedules.constant)
METHODS = [
    POLICY,
    *(
        Method(name, getattr(schedules, name))
        for name in ("constant", "step", "exponential", "linear", "cosine", "one_cycle", "wsd")
    ),
]


def identity(result: Result) -> tuple[str, float, int]:
    row = result.row
    return row["scheduler"], row["initial_lr_factor"], row["seed"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_method_meets_the_same_seeds_and_the_same_first_loss(name: str) -> None:
    results = [
        c.train()
        for c in grid_of(make_task(name), METHODS, initial_lr_factors=[0.5, 1.0], seeds=SEEDS)
    ]

    for seed in SEEDS:
        first_losses = {r.losses[0] for r in results if r.row["seed"] == seed}
        assert len(first_losses) == 1
    assert len({r.losses[0] for r in results}) == len(SEEDS)


def test_the_grid_is_the_full_product_in_a_fixed_order() -> None:
    methods = METHODS[:3]
    results = [
        c.train()
        for c in grid_of(make_task("nmf"), methods, initial_lr_factors=[0.5, 1.0], seeds=SEEDS)
    ]

    assert [identity(result) for result in results] == [
        (method.name, factor, seed) for seed in SEEDS for factor in (0.5, 1.0) for method in methods
    ]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("method", [POLICY, CONSTANT], ids=lambda method: method.name)
def test_a_training_repeats_exactly(name: str, method: Method) -> None:
    first, second = (
        train(make_task(name), method, initial_lr_factor=1.0, seed=1) for _ in range(2)
    )
    first.row.pop("seconds")
    second.row.pop("seconds")

    assert first == second


def test_a_run_of_the_grid_does_not_depend_on_its_neighbours() -> None:
    task = make_task("digits")
    grid = [c.train() for c in grid_of(task, METHODS[:2], initial_lr_factors=[1.0], seeds=SEEDS)]
    alone = train(task, METHODS[1], initial_lr_factor=1.0, seed=SEEDS[1])

    assert grid[-1].losses == alone.losses


def test_a_run_makes_its_own_network_and_no_second_one() -> None:
    made: list[nn.Module] = []

    def network() -> nn.Module:
        made.append(nn.Linear(4, 3))
        return made[-1]

    task = from_model(
        model=network,
        loss=nn.functional.cross_entropy,
        data=(torch.zeros(60, 4), torch.arange(60) % 3),
        optimizer=torch.optim.SGD,
        base_lr=0.1,
        total_steps=2,
        batch_size=16,
    )
    adam = Method("adam", schedules.constant, optimizer=torch.optim.Adam)
    train(task, CONSTANT, initial_lr_factor=1.0, seed=0)  # finds out what the network does
    made.clear()
    for method in (CONSTANT, adam):
        train(task, method, initial_lr_factor=3.0, seed=0)
    assert len(made) == 2


def test_a_constant_schedule_is_a_plain_run() -> None:
    task = make_task("digits")
    result = train(task, CONSTANT, initial_lr_factor=2.0, seed=3)
    run = task.start(3)
    losses = [float(run.step(0.02)) for _ in range(12)]

    assert result.lrs == [0.02] * 12
    assert result.losses == losses
    assert {name: result.row[name] for name in run.evaluate()} == run.evaluate()
    assert result.row["train_loss"] == losses[-1]


def test_lrs_are_those_of_the_scheduler_from_the_first_step_on() -> None:
    linear = Method("linear", schedules.linear)
    lrs = train(make_task("nmf"), linear, initial_lr_factor=1.0, seed=0, total_steps=4).lrs

    assert lrs == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_a_row_says_what_was_trained() -> None:
    row = train(make_task("nmf"), CONSTANT, initial_lr_factor=3.0, seed=7, total_steps=5).row

    assert row["task"] == "nmf"
    assert row["scheduler"] == "constant"
    assert (row["initial_lr_factor"], row["initial_lr"]) == (3.0, 0.03)
    assert (row["seed"], row["total_steps"], row["diverged"]) == (7, 5, 0)
    assert row["seconds"] > 0.0


def test_train_loss_is_the_mean_of_the_last_thirtieth() -> None:
    result = train(make_task("nmf"), CONSTANT, initial_lr_factor=0.1, seed=0, total_steps=90)

    assert result.row["train_loss"] == pytest.approx(np.mean(result.losses[-3:]))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_horizon_of_one_step_trains_one_step(method: Method) -> None:
    result = train(make_task("nmf"), method, initial_lr_factor=1.0, seed=0, total_steps=1)

    assert len(result.losses) == len(result.lrs) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the training diverges")
@pytest.mark.parametrize("name", ["quadratic", "digits"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("factor", [1e6, 1e30])
def test_a_diverged_run_is_data(name: str, method: Method, factor: float) -> None:
    result = train(make_task(name), method, initial_lr_factor=factor, seed=0)
    row = result.row

    assert row["diverged"] == 1
    assert row["train_loss"] == row["held_out_loss"] == math.inf
    if name == "digits":
        assert row["test_loss"] == math.inf
        assert row["test_accuracy"] == row["held_out_accuracy"] == 0.0
    assert len(result.lrs) == len(result.losses) <= 12


def test_a_run_stops_at_the_first_loss_that_is_not_finite() -> None:
    result = train(make_task("quadratic"), CONSTANT, initial_lr_factor=1e12, seed=0)

    assert len(result.losses) < 12
    assert [math.isfinite(loss) for loss in result.losses] == [True] * (len(result.losses) - 1) + [
        False
    ]


@pytest.mark.parametrize(("initial_lr_factor", "diverged"), [(330.0, 0), (345.0, 1)])
def test_a_finite_loss_above_ten_times_the_first_is_divergence(
    initial_lr_factor: float, diverged: int
) -> None:
    task = make_task("quadratic")
    result = train(task, CONSTANT, initial_lr_factor=initial_lr_factor, seed=0)

    assert all(map(math.isfinite, result.losses))
    assert (result.losses[-1] > 10.0 * result.losses[0]) == bool(diverged)
    assert result.row["diverged"] == diverged


def test_rows_of_one_task_have_the_same_columns_whether_or_not_they_diverged() -> None:
    results = [
        c.train()
        for c in grid_of(make_task("digits"), METHODS[:2], initial_lr_factors=[1, 1e9], seeds=[0])
    ]

    assert len({tuple(result.row) for result in results}) == 1


def test_a_run_of_a_mixture_is_trained_as_one_of_its_own_task() -> None:
    bowl = QuadraticTask(name="", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=5)
    result = train(MixtureTask(tasks={"bowl": bowl}), CONSTANT, initial_lr_factor=2.0, seed=3)

    assert (result.row["task"], result.row["initial_lr"], len(result.losses)) == ("bowl", 0.2, 5)

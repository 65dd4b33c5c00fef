"""semantics="transformers" beside the class that it copies."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import Optimizer
from transformers.optimization import GreedyLR as HuggingFaceGreedyLR

from lrpilot.schedulers.greedy.scheduler import GreedyLR
from tests.running import through_file

NUM_CASES = 1000


def sgd(lrs: list[float]) -> Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=0.1)


def random_lrs(rng: random.Random, num: int) -> list[float]:
    return [10 ** rng.uniform(-9, 1) for _ in range(num)]


def random_arguments(rng: random.Random, num_groups: int) -> dict[str, Any]:
    """Any subset of the arguments, with extremes."""
    bounds = (lambda: random_lrs(rng, num_groups), lambda: random_lrs(rng, 1)[0])
    choices: dict[str, Any] = {
        "mode": lambda: rng.choice(["min", "max"]),
        "factor": lambda: rng.choice([0.1, 0.5, 0.95, 0.999, rng.random(), -0.5]),
        "patience": lambda: rng.choice([-1, 0, 1, 2, 3, 10, 1.5]),
        "threshold": lambda: rng.choice([0.0, 1e-6, 0.01, 0.5, 2.0, -0.1]),
        "threshold_mode": lambda: rng.choice(["rel", "abs"]),
        "cooldown": lambda: rng.choice([0, 1, 5]),
        "warmup": lambda: rng.choice([0, 1, 5]),
        "min_lr": lambda: rng.choice([0.0, 1e-9, bounds[0](), tuple(bounds[0]()), bounds[1]()]),
        "max_lr": lambda: rng.choice(
            [math.inf, 10.0, bounds[0](), tuple(bounds[0]()), bounds[1]()]
        ),
        "eps": lambda: rng.choice([0.0, 1e-8, 1e-4, -1.0]),
        "smooth": lambda: rng.random() < 0.5,
        "window_size": lambda: rng.choice([1, 2, 7, 50]),
        "reset_start": lambda: rng.choice([-1, 0, 1, 2, 5]),
    }
    return {name: draw() for name, draw in choices.items() if rng.random() < 0.7}


def random_metrics(rng: random.Random, num: int) -> list[float]:
    """A noisy trend with ties, and in half of the cases values that are not finite or huge."""
    slope, noise = rng.choice([-1, 0, 1]) * rng.random(), rng.choice([0.0, 0.1, 5.0])
    start, num_digits = rng.uniform(-20, 20), rng.choice([0, 1, 15])
    odd = rng.choice([0.0, 0.05])
    return [
        rng.choice([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, 1e308])
        if rng.random() < odd
        else round(start + slope * step + rng.gauss(0.0, noise), num_digits)
        for step in range(num)
    ]


def lrs_after(scheduler: Any, metrics: list[float]) -> list[list[float]]:
    rows = []
    for metric in metrics:
        scheduler.step(metric)
        rows.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
    return rows


@pytest.mark.slow
def test_a_thousand_random_runs_have_identical_lrs() -> None:
    num_changes = num_resets = 0
    for seed in range(NUM_CASES):
        rng = random.Random(seed)
        lrs = random_lrs(rng, rng.choice([1, 2, 3]))
        arguments = random_arguments(rng, len(lrs))
        metrics = random_metrics(rng, 250)
        scheduler = GreedyLR(sgd(lrs), semantics="transformers", **arguments)
        ours = lrs_after(scheduler, metrics)
        assert ours == lrs_after(HuggingFaceGreedyLR(sgd(lrs), **arguments), metrics), seed
        assert scheduler.get_last_lr() == ours[-1]
        num_changes += len({tuple(row) for row in ours}) > 1
        num_resets += any(decision.rule == "reset" for decision in scheduler.log)
    assert num_changes > NUM_CASES // 4
    assert num_resets > 20


def test_a_resumed_run_still_has_the_lrs_of_the_copied_class() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        lrs = random_lrs(rng, 2)
        arguments = random_arguments(rng, 2)
        metrics = random_metrics(rng, 120)
        cut = rng.randrange(120)
        first = GreedyLR(sgd(lrs), semantics="transformers", **arguments)
        rows = lrs_after(first, metrics[:cut])
        second = GreedyLR(sgd(lrs), semantics="transformers", **arguments)
        second.load_state_dict(through_file(first.state_dict()))
        rows += lrs_after(second, metrics[cut:])
        assert rows == lrs_after(HuggingFaceGreedyLR(sgd(lrs), **arguments), metrics), seed


def test_the_defaults_are_those_of_the_copied_class() -> None:
    theirs = HuggingFaceGreedyLR(sgd([0.1]))
    ours = GreedyLR(sgd([0.1]), semantics="transformers").arguments
    assert ours.pop("min_lr") == theirs.min_lrs[0]
    assert ours.pop("max_lr") == theirs.max_lrs[0]
    assert ours == {name: getattr(theirs, name) for name in ours}


def test_other_hands_on_the_lr_are_followed() -> None:
    rows = []
    for scheduler in (
        GreedyLR(sgd([0.1]), semantics="transformers", patience=1),
        HuggingFaceGreedyLR(sgd([0.1]), patience=1),
    ):
        first = lrs_after(scheduler, [3.0, 2.0, 1.0])
        scheduler.optimizer.param_groups[0]["lr"] = 0.02
        rows.append(first + lrs_after(scheduler, [0.5, 0.4, 0.3, 0.2]))
    assert rows[0] == rows[1]


def test_the_initial_lr_of_an_earlier_scheduler_does_not_matter() -> None:
    rows = []
    for make in (
        lambda o: GreedyLR(o, semantics="transformers", patience=0, reset_start=1, factor=0.1),
        lambda o: HuggingFaceGreedyLR(o, patience=0, reset_start=1, factor=0.1),
    ):
        optimizer = sgd([0.1])
        optimizer.param_groups[0]["initial_lr"] = 0.5
        rows.append(lrs_after(make(optimizer), [1.0] * 8))
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "metric",
    [2, np.float32(0.1), np.float64(0.1), np.array(0.1), torch.tensor(0.1), 10**20],
    ids=repr,
)
def test_every_kind_of_number_is_read_as_by_the_copied_class(metric: Any) -> None:
    ours = GreedyLR(sgd([0.1]), semantics="transformers", patience=0, smooth=True)
    theirs = HuggingFaceGreedyLR(sgd([0.1]), patience=0, smooth=True)
    assert lrs_after(ours, [metric, 1.0]) == lrs_after(theirs, [metric, 1.0])


def test_metrics_and_epoch_may_be_named() -> None:
    ours = GreedyLR(sgd([0.1]), semantics="transformers", patience=0)
    theirs = HuggingFaceGreedyLR(sgd([0.1]), patience=0)
    for scheduler in (ours, theirs):
        scheduler.step(metrics=1.0, epoch=7)
        scheduler.step(metrics=1.0)
        scheduler.step(0.5, 20)
    assert ours.get_last_lr() == theirs.get_last_lr()
    assert ours.last_epoch == theirs.last_epoch == 20


@pytest.mark.parametrize("epoch", [-1, 0])
def test_an_epoch_does_not_restart_the_run(epoch: int) -> None:
    ours = GreedyLR(sgd([0.1]), semantics="transformers", patience=0)
    lrs_after(ours, [3.0])
    ours.step(2.0, epoch)
    assert lrs_after(ours, [1.0]) == [[0.1 / 0.95 / 0.95 / 0.95]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"factor": 1.0},
        {"mode": "best"},
        {"threshold_mode": "relative"},
        {"min_lr": [0.1, 0.1]},
        {"max_lr": [0.1, 0.1]},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_it_refuses_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(?i)factor|mode|expected"):
        HuggingFaceGreedyLR(sgd([0.1]), **arguments)
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must"):
        GreedyLR(sgd([0.1]), semantics="transformers", **arguments)

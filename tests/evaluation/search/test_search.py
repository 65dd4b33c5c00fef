"""Searches over the initial learning rate, on real trainings of a small MLP."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch

from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.runs.grid import Method, train
from lrpilot.evaluation.search.lr_search import LRSearch, SearchResult, Trial, random_search
from lrpilot.evaluation.search.pruning import asha_search, tpe_search
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask

TASK = ImageTask(
    name="digits_mlp",
    data="digits",
    model=partial(mlp, width=32),
    optimizer=partial(torch.optim.SGD, momentum=0.9),
    base_lr=0.1,
    total_steps=60,
)
SEARCHES: dict[str, Callable[[LRSearch], SearchResult]] = {
    "random": random_search,
    "tpe": tpe_search,
    "asha": asha_search,
}
every_search = pytest.mark.parametrize("name", SEARCHES)


def search(**arguments: Any) -> LRSearch:
    given: dict[str, Any] = {
        "task": TASK,
        "make": schedules.d2z,
        "lr_range": (1e-4, 10.0),
        "budget_steps": 500,
        "seed": 3,
    }
    return LRSearch(**{**given, **arguments})


@cache
def found(name: str, seed: int = 3) -> SearchResult:
    return SEARCHES[name](search(seed=seed))


@every_search
def test_the_steps_of_all_trials_are_within_the_budget_and_leave_no_whole_run(name: str) -> None:
    result = found(name)
    assert result.num_steps == sum(trial.num_steps for trial in result.trials)
    assert 500 - 60 < result.num_steps <= 500


@every_search
def test_the_same_seed_makes_the_same_trials(name: str) -> None:
    assert SEARCHES[name](search()).trials == found(name).trials


@every_search
def test_another_seed_draws_other_learning_rates(name: str) -> None:
    assert found(name, seed=4).trials[0].lr != found(name).trials[0].lr


@every_search
def test_learning_rates_are_in_the_range(name: str) -> None:
    assert all(1e-4 <= trial.lr <= 10.0 for trial in found(name).trials)


@every_search
def test_the_best_trial_is_that_of_the_grid_at_its_learning_rate(name: str) -> None:
    best = found(name).best
    method = Method("d2z", schedules.d2z)
    row = train(TASK, method, initial_lr_factor=best.lr / TASK.base_lr, seed=3).row
    assert best.is_complete
    assert best.held_out_loss == pytest.approx(row["held_out_loss"], rel=1e-4)
    assert best.held_out_loss == min(t.held_out_loss for t in found(name).trials if t.is_complete)


@pytest.mark.parametrize("name", ["tpe", "asha"])
def test_pruning_pays_for_more_trials_than_a_random_search_has(name: str) -> None:
    trials = found(name).trials
    assert len(trials) > len(found("random").trials) == 8
    assert any(trial.is_pruned for trial in trials)


@pytest.mark.parametrize("name", ["tpe", "asha"])
def test_a_pruned_trial_ran_to_a_rung_and_no_further(name: str) -> None:
    assert search().rungs == [2, 6, 18]
    steps = {trial.num_steps for trial in found(name).trials if trial.is_pruned}
    assert steps <= {2, 6, 18}


@pytest.mark.slow
def test_a_learning_rate_that_hardly_trains_is_pruned_beside_good_ones() -> None:
    result = asha_search(search(budget_steps=1500))
    assert result.best.lr > 0.02
    assert [t.is_pruned for t in result.trials[3:] if t.lr < 1e-3] != []
    assert all(t.is_pruned for t in result.trials[3:] if t.lr < 1e-3)


def test_a_trial_is_pruned_by_held_out_examples_alone() -> None:
    asked: list[tuple[int, float]] = []

    def goes_on(num_steps: int, loss: float) -> bool:
        asked.append((num_steps, loss))
        return len(asked) < 2

    trial = search().run_trial(0.1, goes_on=goes_on)
    run = TASK.start(3)
    scheduler = schedules.d2z(run.optimizer, total_steps=60)
    for _ in range(6):
        run.step()
        scheduler.step()
    assert asked[1] == (6, run.privileged_loss())
    assert trial == Trial(0.1, 6, run.privileged_loss(), is_pruned=True)


@every_search
def test_trials_that_diverge_are_data(name: str) -> None:
    result = SEARCHES[name](search(lr_range=(1e6, 1e9), budget_steps=200))
    assert all(trial.held_out_loss == math.inf or trial.is_pruned for trial in result.trials)
    assert not result.best.is_complete


def test_a_schedule_that_takes_the_run_gets_it() -> None:
    given: list[Any] = []

    def make(optimizer: Any, *, total_steps: int, run: Any) -> Any:
        given.append(run.optimizer is optimizer)
        return schedules.constant(optimizer, total_steps=total_steps)

    random_search(search(make=make, budget_steps=60))
    assert given == [True]


@pytest.mark.slow
def test_the_bound_on_the_regret_ends_a_search_after_ten_complete_trials() -> None:
    near = search(total_steps=20, lr_range=(0.05, 0.5), budget_steps=2000)
    loose = tpe_search(near, regret_tolerance=1e6)
    assert sum(trial.is_complete for trial in loose.trials) == 10
    assert tpe_search(near, regret_tolerance=1e-9).num_steps > loose.num_steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr_range": (0.0, 1.0)}, r"`lr_range` must be 0 < low < high, got \(0.0, 1.0\)"),
        ({"lr_range": (1.0, 0.1)}, r"`lr_range` must be 0 < low < high"),
        ({"budget_steps": 59}, "`budget_steps` must be at least 60, got 59"),
        ({"total_steps": 0}, "`total_steps` must be at least 1, got 0"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(**arguments)


@pytest.mark.parametrize("tolerance", [0.0, math.nan])
def test_a_regret_tolerance_that_is_not_positive_is_named(tolerance: float) -> None:
    with pytest.raises(ValueError, match="`regret_tolerance` must be positive, got"):
        tpe_search(search(), regret_tolerance=tolerance)

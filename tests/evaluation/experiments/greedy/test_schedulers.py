"""The forms of GreedyLR that the paper's claims are about."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrpilot.evaluation.experiments.greedy.perturbed import KINDS, Perturbation, perturbed
from lrpilot.evaluation.experiments.greedy.schedulers import (
    SAFE_SHARE,
    TheoryGreedyLR,
    practical,
    practical_below,
    theory,
)
from lrpilot.evaluation.runs.grid import Method, train
from lrpilot.schedulers.base import dry_run, idle_optimizer
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.runs import Run

FACTORS = st.floats(0.05, 0.95)


def quadratic(**changes: Any) -> QuadraticTask:
    arguments = {"base_lr": 0.1, "total_steps": 60, "noise_power": 0.0, **changes}
    return QuadraticTask(name="quadratic", optimizer=torch.optim.SGD, **arguments)


def trained(make: Any, task: QuadraticTask, initial_lr_factor: float = 1.0) -> dict[str, Any]:
    method = Method("greedy", make)
    return train(task, method, initial_lr_factor=initial_lr_factor, seed=0).row


@pytest.mark.parametrize("factor", [0.0, 1.0, float("nan")])
def test_a_factor_out_of_range_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=r"`factor` must be in \(0, 1\), got"):
        TheoryGreedyLR(idle_optimizer(0.1), factor=factor)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20), FACTORS)
def test_the_theorems_rule_raises_after_a_lower_loss_and_lowers_after_any_other(
    losses: list[float], factor: float
) -> None:
    lrs = dry_run(TheoryGreedyLR(idle_optimizer(0.1), factor=factor), losses)
    expected = [0.1, 0.1]
    for last, loss in pairwise(losses):
        expected.append(expected[-1] * (1.0 / factor if loss < last else factor))
    assert lrs == expected


@given(FACTORS, st.floats(0.001, 100.0), st.floats(0.1, 10.0))
@settings(max_examples=20, deadline=None)
def test_below_the_limit_of_stability_no_factor_raises_the_loss_of_a_quadratic(
    factor: float, initial_lr_factor: float, curvature: float
) -> None:
    make = partial(theory, factor=factor, is_capped=True)
    task = quadratic(curvature=curvature)
    result = train(task, Method("greedy", make), initial_lr_factor=initial_lr_factor, seed=0)
    assert all(b <= a for a, b in pairwise(result.losses))
    assert max(result.lrs) <= SAFE_SHARE * 2.0 / curvature


def test_without_a_cap_a_small_factor_blows_a_quadratic_up() -> None:
    assert trained(partial(theory, factor=0.25, is_capped=False), quadratic())["diverged"]
    assert not trained(partial(theory, factor=0.25, is_capped=True), quadratic())["diverged"]


def test_the_practical_forms_bounds_are_relative_to_the_initial_rate() -> None:
    falling = [100.0 - step for step in range(2000)]
    lrs = dry_run(practical(idle_optimizer(5e-5), total_steps=2000), falling)
    assert max(lrs) == pytest.approx(5e-4)
    assert dry_run(practical(idle_optimizer(1.0), total_steps=9), [1.0] * 2000)[-1] == 0.01


def test_the_practical_form_is_below_the_cap_that_is_given() -> None:
    make = partial(practical_below, factor=0.25, is_capped=True)
    task = quadratic(total_steps=300)
    result = train(task, Method("greedy", make), initial_lr_factor=1.0, seed=0)
    assert max(result.lrs) == pytest.approx(SAFE_SHARE * 2.0)


def test_a_run_without_a_curvature_has_no_cap() -> None:
    run: Any = object()
    with pytest.raises(ValueError, match="`run` must be a quadratic or an image task's"):
        theory(idle_optimizer(0.1), total_steps=5, run=run, factor=0.5, is_capped=True)


def test_an_unknown_perturbation_is_refused() -> None:
    with pytest.raises(ValueError, match="`kind` must be"):
        Perturbation("loud", 0.5, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_strength_perturbs_nothing(kind: str) -> None:
    noise = Perturbation(kind, 0.0, seed=0)
    losses = [3.0, 2.0, 2.5, 1.0]
    assert [noise(loss) for loss in losses] == losses


@pytest.mark.parametrize("kind", KINDS)
def test_a_perturbation_is_that_of_its_seed(kind: str) -> None:
    told = [
        [noise(1.0 / (step + 1)) for step in range(100)]
        for noise in (Perturbation(kind, 0.5, seed=seed) for seed in (0, 0))
    ]
    assert told[0] == told[1]


def test_periodic_spikes_are_the_first_three_of_fifty_calls() -> None:
    noise = Perturbation("periodic spikes", 1.0, seed=0)
    told = [noise(1.0) for _ in range(100)]
    assert [call for call, loss in enumerate(told) if loss == 2.0] == [0, 1, 2, 50, 51, 52]


def test_the_adversary_hides_a_fall_alone() -> None:
    noise = Perturbation("adversarial", 1.0, seed=0)
    assert [noise(loss) for loss in (2.0, 1.0, 3.0)] == [2.0, 1.5, 3.0]


def test_perturbed_losses_change_the_learning_rates_and_no_perturbation_does_not() -> None:
    task = quadratic(total_steps=300, noise_power=0.1)

    def lrs(make: Any) -> list[float]:
        return list(train(task, Method("greedy", make), initial_lr_factor=1.0, seed=0).lrs)

    def told(strength: float) -> Any:
        return partial(perturbed, kind="gaussian", strength=strength)

    assert lrs(told(0.0)) == lrs(practical)
    assert lrs(told(5.0)) != lrs(practical)


def test_the_losses_that_are_kept_are_the_true_ones() -> None:
    task = quadratic()
    constant = partial(perturbed, kind="oscillation", strength=0.5)
    run: Run = task.start(0)
    first = float(run.step())
    result = train(task, Method("greedy", constant), initial_lr_factor=1.0, seed=0)
    assert result.losses[0] == first

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lrpilot import ActionSpec
from lrpilot.tasks.quadratic import QuadraticTask
from tests.best_return import best_return
from tests.scheduling import plain_action

NUM_SEEDS = 1500
# A mean of NUM_SEEDS must lie within this many standard errors; the seeds are fixed.
TOLERANCE = 4.0


make_task = partial(
    QuadraticTask,
    name="quadratic",
    optimizer=torch.optim.SGD,
    base_lr=0.1,
    total_steps=60,
    dimension=50,
    curvature=2.0,
    noise_power=0.3,
    initial_power=1.5,
)


def one_step(task: QuadraticTask, v: float, eta: float) -> float:
    return (1 - eta * task.curvature) ** 2 * v + eta**2 * task.noise_power


def error_in_standard_errors(samples: list[float], expected: float) -> float:
    array = np.array(samples)
    return float(abs(array.mean() - expected) / (array.std(ddof=1) / math.sqrt(len(array))))


@pytest.mark.parametrize("eta", [0.1, 0.4, 0.9])
def test_mean_power_after_one_step_follows_the_formula(eta: float) -> None:
    task = make_task()
    powers = []
    for seed in range(NUM_SEEDS):
        run = task.start(seed)
        run.step(eta)
        powers.append(float(run.x.detach().square().sum()))

    assert error_in_standard_errors(powers, one_step(task, 1.5, eta)) < TOLERANCE


def test_mean_power_after_four_steps_follows_the_formula() -> None:
    task = make_task()
    etas = (0.45, 0.3, 0.2, 0.1)
    powers = []
    for seed in range(NUM_SEEDS):
        run = task.start(seed)
        for eta in etas:
            run.step(eta)
        powers.append(float(run.x.detach().square().sum()))
    v = 1.5
    for eta in etas:
        v = one_step(task, v, eta)

    assert error_in_standard_errors(powers, v) < TOLERANCE


def test_gradient_noise_power_is_s_squared() -> None:
    task = make_task()
    powers = []
    for seed in range(NUM_SEEDS):
        run = task.start(seed)
        exact = task.curvature * run.x.detach().clone()
        run.step(0.0)
        assert run.x.grad is not None
        powers.append(float((run.x.grad - exact).square().sum()))

    assert error_in_standard_errors(powers, 0.3) < TOLERANCE


def test_mean_gradient_is_the_exact_gradient() -> None:
    task = make_task()
    run = task.start(0)
    exact = task.curvature * run.x.detach().clone()
    total = torch.zeros_like(exact)
    for _ in range(NUM_SEEDS):
        run.step(0.0)
        assert run.x.grad is not None
        total += run.x.grad
    # ||mean error||^2 has the mean s^2/N, and the standard deviation sqrt(2/d) s^2/N
    error = float((total / NUM_SEEDS - exact).square().sum()) * NUM_SEEDS / 0.3

    assert abs(error - 1.0) < TOLERANCE * math.sqrt(2 / task.dimension)


def test_mean_minibatch_loss_is_the_objective_plus_the_noise_floor() -> None:
    task = make_task()
    run = task.start(0)
    losses = [float(run.step(0.0)) for _ in range(NUM_SEEDS)]
    # lambda/2 E||z||^2 = s^2 / (2 lambda)
    expected = run.privileged_loss() + 0.3 / (2 * 2.0)

    assert error_in_standard_errors(losses, expected) < TOLERANCE


@settings(deadline=None, max_examples=30)
@given(
    dimension=st.integers(1, 300),
    curvature=st.floats(0.1, 10),
    power=st.floats(0.01, 100),
    seed=st.integers(0, 2**40),
)
def test_a_run_starts_on_the_sphere_of_its_initial_power(
    dimension: int, curvature: float, power: float, seed: int
) -> None:
    task = make_task(dimension=dimension, curvature=curvature, initial_power=power)

    loss = task.start(seed).privileged_loss()
    assert loss == pytest.approx(curvature / 2 * power, rel=1e-5)


def test_without_noise_the_newton_step_reaches_the_minimum() -> None:
    run = make_task(curvature=2.0, noise_power=0.0).start(0)
    run.step(0.5)

    assert run.privileged_loss() == 0.0


@given(v=st.floats(1e-3, 1e3), curvature=st.floats(1e-2, 1e2), noise=st.floats(1e-3, 1e3))
def test_the_best_step_of_the_docstring_minimizes_the_one_step_formula(
    v: float, curvature: float, noise: float
) -> None:
    task = make_task(curvature=curvature, noise_power=noise)
    eta = curvature * v / (curvature**2 * v + noise)

    best = one_step(task, v, eta)
    assert best == pytest.approx(v * noise / (curvature**2 * v + noise), rel=1e-9)
    assert all(one_step(task, v, eta * factor) >= best for factor in (0.5, 0.99, 1.01, 2.0))


def test_a_step_of_the_best_size_reaches_the_best_mean_power() -> None:
    task = make_task()
    eta = 2.0 * 1.5 / (4.0 * 1.5 + 0.3)
    powers = []
    for seed in range(NUM_SEEDS):
        run = task.start(seed)
        run.step(eta)
        powers.append(float(run.x.detach().square().sum()))

    assert error_in_standard_errors(powers, 1.5 * 0.3 / (4.0 * 1.5 + 0.3)) < TOLERANCE


ACTIONS = {
    "constant": plain_action(max_log_change=0.5, min_factor=0.01, max_factor=10.0),
    "box binds": plain_action(max_log_change=1.0, min_factor=0.3, max_factor=2.0),
    "linear": plain_action(anchor="linear", max_log_change=0.7, min_factor=0.01, max_factor=30.0),
    "cosine": plain_action(anchor="cosine", max_log_change=0.7, min_factor=0.01, max_factor=30.0),
    "cautious": plain_action(
        max_log_change=0.7, min_factor=1e-3, max_factor=10.0, start_factor=0.03
    ),
}


def returns_of_all_sequences(
    task: QuadraticTask,
    spec: ActionSpec,
    *,
    initial_lr: float,
    interval_steps: int,
    num_intervals: int,
    actions: NDArray[np.float64],
) -> NDArray[np.float64]:
    """log(v_0/v_K) of every sequence of the given actions, from ActionSpec itself."""
    returns = []
    for sequence in itertools.product(actions, repeat=num_intervals - 1):
        v, factor, multiplier = task.initial_power, spec.start_factor, spec.start_factor
        for k in range(num_intervals):
            if k > 0:
                factor, multiplier = spec.apply(
                    float(sequence[k - 1]), multiplier=multiplier, progress=k / num_intervals
                )
            for _ in range(interval_steps):
                v = one_step(task, v, initial_lr * factor)
        returns.append(math.log(task.initial_power / v))
    return np.array(returns)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("interval_steps", [1, 3])
@pytest.mark.parametrize("initial_lr", [0.05, 0.4])
def test_best_return_is_reached_and_not_exceeded_by_sequences_of_three_decisions(
    name: str, interval_steps: int, initial_lr: float
) -> None:
    task, spec = make_task(), ACTIONS[name]
    arguments: dict[str, Any] = {
        "initial_lr": initial_lr,
        "interval_steps": interval_steps,
        "num_intervals": 4,
    }
    best = best_return(task, spec, **arguments, grid_size=3001)
    tried = returns_of_all_sequences(task, spec, **arguments, actions=np.linspace(-1, 1, 17))

    # The grid of best_return loses below one spacing per decision; the actions tried are coarse.
    assert tried.max() <= best + 0.01
    assert tried.max() >= best - 0.05


@settings(deadline=None, max_examples=50)
@given(
    actions=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    name=st.sampled_from(sorted(ACTIONS)),
    initial_lr=st.floats(0.01, 2.0),
)
def test_no_admissible_sequence_exceeds_best_return(
    actions: list[float], name: str, initial_lr: float
) -> None:
    task, spec = make_task(), ACTIONS[name]
    best = best_return(task, spec, initial_lr=initial_lr, interval_steps=2, num_intervals=4)
    v, factor, multiplier = task.initial_power, spec.start_factor, spec.start_factor
    for k in range(4):
        if k > 0:
            factor, multiplier = spec.apply(actions[k - 1], multiplier=multiplier, progress=k / 4)
        for _ in range(2):
            v = one_step(task, v, initial_lr * factor)

    assert math.log(task.initial_power / v) <= best + 0.03


@settings(deadline=None, max_examples=50)
@given(
    max_log_change=st.floats(0.3, 2.0),
    start_factor=st.floats(0.05, 0.5),
    grid_size=st.integers(40, 801),
)
def test_best_return_uses_only_moves_that_actions_can_make(
    max_log_change: float, start_factor: float, grid_size: int
) -> None:
    # One decision towards a far optimum: the best action is known to be +1.
    task = make_task()
    spec = plain_action(
        max_log_change=max_log_change,
        min_factor=0.01,
        max_factor=10.0,
        start_factor=start_factor,
    )
    limits: dict[str, Any] = {"initial_lr": 1e-3, "interval_steps": 1, "num_intervals": 2}
    exact = returns_of_all_sequences(task, spec, **limits, actions=np.array([1.0]))

    assert best_return(task, spec, **limits, grid_size=grid_size) <= exact.max() * (1 + 1e-6)


def test_best_return_is_finite_when_a_factor_of_the_grid_is_the_newton_step() -> None:
    task, spec = make_task(curvature=1.0), plain_action(min_factor=1e-3, max_factor=10.0)

    assert math.isfinite(best_return(task, spec, initial_lr=0.1, interval_steps=1, num_intervals=2))


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(sorted(ACTIONS)),
    initial_lr=st.floats(0.001, 5.0),
    num_intervals=st.integers(1, 8),
    interval_steps=st.integers(1, 4),
)
def test_best_return_stays_below_the_unlimited_optimum(
    name: str, initial_lr: float, num_intervals: int, interval_steps: int
) -> None:
    task = make_task()
    best = best_return(
        task,
        ACTIONS[name],
        initial_lr=initial_lr,
        interval_steps=interval_steps,
        num_intervals=num_intervals,
    )
    v = task.initial_power
    for _ in range(num_intervals * interval_steps):
        v = v * task.noise_power / (task.curvature**2 * v + task.noise_power)

    assert best <= math.log(task.initial_power / v) + 1e-9


def test_best_return_comes_close_to_the_unlimited_optimum_under_wide_limits() -> None:
    task = make_task()
    spec = plain_action(max_log_change=5.0, min_factor=1e-3, max_factor=1e3)
    # the first interval is no decision, so it is given the best step itself
    best = best_return(
        task, spec, initial_lr=3.0 / 6.3, interval_steps=1, num_intervals=10, grid_size=3001
    )
    v = task.initial_power
    for _ in range(10):
        v = v * task.noise_power / (task.curvature**2 * v + task.noise_power)

    assert best == pytest.approx(math.log(task.initial_power / v), abs=1e-3)


def test_best_return_of_one_interval_is_that_of_the_start_factor() -> None:
    task = make_task()
    spec = plain_action(start_factor=0.5)
    best = best_return(task, spec, initial_lr=0.2, interval_steps=2, num_intervals=1)
    v = one_step(task, one_step(task, 1.5, 0.1), 0.1)

    assert best == math.log(1.5 / v)


def test_best_return_works_when_the_box_is_a_single_factor() -> None:
    task = make_task()
    spec = plain_action(min_factor=1.0, max_factor=1.0)
    best = best_return(task, spec, initial_lr=0.1, interval_steps=1, num_intervals=2)

    assert best == pytest.approx(math.log(1.5 / one_step(task, one_step(task, 1.5, 0.1), 0.1)))


def test_best_return_refuses_actions_that_are_not_cumulative() -> None:
    with pytest.raises(ValueError, match="`action` must be of kind 'multiplier', got 'residual'"):
        best_return(
            make_task(),
            plain_action(kind="residual"),
            initial_lr=0.1,
            interval_steps=1,
            num_intervals=2,
        )

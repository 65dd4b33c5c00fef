import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.nmf import NMFRun, NMFTask

NUM_DRAWS = 3000
# A mean of NUM_DRAWS must lie within this many standard errors; the seeds are fixed.
TOLERANCE = 5.0


def make_task(**changes: Any) -> NMFTask:
    arguments: dict[str, Any] = {
        "name": "nmf",
        "optimizer": torch.optim.SGD,
        "base_lr": 0.01,
        "total_steps": 50,
        "shape": (12, 8),
        "rank": 3,
        "batch_size": 4,
    }
    return NMFTask(**{**arguments, **changes})


def gradients(run: NMFRun) -> tuple[Tensor, Tensor]:
    assert run.w.grad is not None
    assert run.h.grad is not None
    return run.w.grad.double(), run.h.grad.double()


def exact_gradients(run: NMFRun) -> tuple[Tensor, Tensor]:
    w, h = run.w.detach().double(), run.h.detach().double()
    residual = w @ h - run.matrix.double()
    return residual @ h.T, w.T @ residual


def draws_at_one_point(run: NMFRun) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of W and H, and losses, of many minibatches; a step of size 0 moves nothing."""
    w, h, losses = [], [], []
    for _ in range(NUM_DRAWS):
        losses.append(run.step(0.0).double())
        w_gradient, h_gradient = gradients(run)
        w.append(w_gradient)
        h.append(h_gradient)
    return torch.stack(w), torch.stack(h), torch.stack(losses)


def largest_error_in_standard_errors(samples: Tensor, expected: Tensor) -> float:
    standard_error = samples.std(0) / math.sqrt(len(samples))
    return float(((samples.mean(0) - expected).abs() / standard_error).max())


def test_a_step_of_size_zero_moves_nothing() -> None:
    run = make_task().start(0)
    before = [parameter.detach().clone() for parameter in run.parameters]
    run.step(0.0)

    assert all(map(torch.equal, run.parameters, before))


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
@pytest.mark.parametrize("gradient_noise", [0.0, 2.0])
def test_minibatch_gradients_and_loss_are_unbiased(
    shape: tuple[int, int], gradient_noise: float
) -> None:
    run = make_task(shape=shape, gradient_noise=gradient_noise).start(1)
    exact_w, exact_h = exact_gradients(run)
    w, h, losses = draws_at_one_point(run)

    assert largest_error_in_standard_errors(w, exact_w) < TOLERANCE
    assert largest_error_in_standard_errors(h, exact_h) < TOLERANCE
    objective = torch.tensor(run.privileged_loss())
    assert largest_error_in_standard_errors(losses, objective) < TOLERANCE


def test_minibatch_noise_has_the_variance_of_sampling_without_replacement() -> None:
    run = make_task(shape=(12, 8), batch_size=3).start(1)
    w, h = run.w.detach().double(), run.h.detach().double()
    residual = w @ h - run.matrix.double()
    by_column = torch.stack([torch.outer(residual[:, j], h[:, j]) for j in range(8)])
    by_row = torch.stack([torch.outer(w[i], residual[i]) for i in range(12)])
    w_draws, h_draws, _ = draws_at_one_point(run)

    for draws, parts in ((w_draws, by_column), (h_draws, by_row)):
        n = len(parts)
        spread = parts.square().sum((1, 2)).mean() - parts.mean(0).square().sum()
        expected = n**2 / 3 * spread * (n - 3) / (n - 1)
        noise = (draws - parts.sum(0)).square().sum((1, 2))
        assert largest_error_in_standard_errors(noise, expected) < TOLERANCE


def test_added_gradient_noise_has_the_given_standard_deviation() -> None:
    run = make_task(shape=(8, 8), batch_size=8, gradient_noise=0.7).start(0)
    exact_w, exact_h = exact_gradients(run)
    w, h, _ = draws_at_one_point(run)

    for draws, exact in ((w, exact_w), (h, exact_h)):
        # a sample deviation of N draws has the relative standard error 1/sqrt(2N)
        deviation = float((draws - exact).square().mean().sqrt())
        assert abs(deviation / 0.7 - 1) < TOLERANCE / math.sqrt(2 * draws.numel())


def test_a_full_batch_gives_the_exact_gradients_and_objective() -> None:
    run = make_task(shape=(8, 8), batch_size=8).start(0)
    exact_w, exact_h = exact_gradients(run)
    objective = run.privileged_loss()
    loss = run.step(0.0)
    w, h = gradients(run)

    torch.testing.assert_close(w, exact_w, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(h, exact_h, rtol=1e-5, atol=1e-5)
    assert float(loss) == pytest.approx(objective, rel=1e-5)


def test_exact_gradients_are_those_of_the_privileged_loss() -> None:
    run = make_task().start(0)
    w = run.w.detach().double().requires_grad_()
    h = run.h.detach().double().requires_grad_()
    objective = (w @ h - run.matrix.double()).square().sum() / 2
    objective.backward()  # type: ignore[no-untyped-call]
    exact_w, exact_h = exact_gradients(run)

    assert run.privileged_loss() == pytest.approx(float(objective.detach()), rel=1e-5)
    torch.testing.assert_close(w.grad, exact_w)
    torch.testing.assert_close(h.grad, exact_h)


def test_a_step_updates_both_factors_from_the_same_point_and_clips() -> None:
    run = make_task(gradient_noise=1.0).start(0)
    before = [parameter.detach().clone() for parameter in run.parameters]
    run.step(0.05)

    for parameter, old in zip(run.parameters, before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter, old.add(parameter.grad, alpha=-0.05).clamp(min=0.0))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**40),
    lr=st.floats(1e-4, 10.0),
    noise=st.floats(0.0, 10.0),
    optimizer=st.sampled_from([torch.optim.SGD, torch.optim.Adam]),
)
def test_factors_stay_non_negative(seed: int, lr: float, noise: float, optimizer: Any) -> None:
    run = make_task(optimizer=optimizer, gradient_noise=noise).start(seed)
    for _ in range(10):
        run.step(lr)
        # NaN, after divergence, is not negative
        assert not any(bool((parameter < 0).any()) for parameter in run.parameters)


def test_matrix_and_start_are_non_negative() -> None:
    run = make_task(data_noise=2.0).start(0)

    assert float(run.matrix.min()) == 0.0
    assert all(float(parameter.detach().min()) >= 0.0 for parameter in run.parameters)


def test_the_start_has_the_scale_of_the_matrix() -> None:
    ratios = []
    for seed in range(50):
        run = make_task(shape=(40, 40), rank=5).start(seed)
        ratios.append(float((run.w @ run.h).detach().mean() / run.matrix.mean()))

    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)


def test_without_data_noise_the_matrix_has_the_rank_of_the_factors() -> None:
    run = make_task(data_noise=0.0, rank=2).start(0)

    assert int(torch.linalg.matrix_rank(run.matrix, rtol=1e-5)) == 2


def test_every_seed_is_a_new_matrix() -> None:
    task = make_task()

    assert not torch.equal(task.start(0).matrix, task.start(1).matrix)


def test_gradient_descent_reduces_the_objective() -> None:
    run = make_task(shape=(20, 20), batch_size=20).start(0)
    losses = [run.privileged_loss()]
    for _ in range(50):
        run.step(0.005)
        losses.append(run.privileged_loss())

    assert all(new < old for old, new in itertools.pairwise(losses))


def test_evaluate_gives_the_objective_and_the_relative_error() -> None:
    run = make_task().start(0)
    residual = (run.w @ run.h - run.matrix).detach()
    metrics = run.evaluate()

    assert set(metrics) == {"held_out_loss", "relative_error"}
    assert metrics["held_out_loss"] == run.privileged_loss()
    assert metrics["relative_error"] == pytest.approx(
        float(residual.norm() / run.matrix.norm()), rel=1e-5
    )


@pytest.mark.parametrize("rank", [0, -1, 9])
def test_a_rank_out_of_range_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"`rank` must be in \[1, min\(m, n\) = 8\], got {rank}"):
        make_task(rank=rank)


@pytest.mark.parametrize("batch_size", [0, -1, 9])
def test_a_batch_size_out_of_range_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"`batch_size` must be in .* = 8\], got {batch_size}"):
        make_task(batch_size=batch_size)


@pytest.mark.parametrize("name", ["data_noise", "gradient_noise"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_noise_level_that_is_negative_or_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must not be negative, got {value}"):
        make_task(**{name: value})

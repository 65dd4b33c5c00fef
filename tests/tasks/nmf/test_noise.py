import functools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lrpilot.tasks.nmf.batch import BatchedNMFRuns
from lrpilot.tasks.nmf.draws import DRAWN_STEPS, Draws
from lrpilot.tasks.nmf.problem import NOISES
from lrpilot.tasks.nmf.run import NMFRun
from tests.tasks.nmf.builders import (
    ADDED,
    LEVEL,
    exact_gradients,
    factors,
    gradients,
    make_task,
    padded_task,
    rms,
    size_of,
    valid_block,
)

# Samples at one point; their means must lie within this many standard errors (fixed seeds).
NUM_RUNS = 200
NUM_DRAWS = NUM_RUNS * DRAWN_STEPS
TOLERANCE = 5.0


@dataclass
class Samples:
    """`NUM_DRAWS` independent noisy gradients and losses at one point."""

    w: Tensor
    h: Tensor
    losses: Tensor
    exact: tuple[Tensor, Tensor]
    objective: float

    @property
    def squared_errors(self) -> tuple[Tensor, Tensor]:
        """Per draw ||xi||^2 of W and of H."""
        w, h = self.w - self.exact[0], self.h - self.exact[1]
        return w.square().sum((-2, -1)), h.square().sum((-2, -1))


@functools.cache
def draws_at_one_point(
    noise: str,
    *,
    with_replacement: bool = False,
    batch_size: int = 4,
    padded: bool = False,
    moved: bool = False,
) -> Samples:
    """Steps of size 0 of many runs of one seed; `moved` draws after some real steps."""
    make = padded_task if padded else make_task
    task = make(
        noise=noise,
        with_replacement=with_replacement,
        batch_size=batch_size,
        noise_range=(LEVEL, LEVEL),
    )
    runs = BatchedNMFRuns(task, NUM_RUNS)
    runs.reset(list(range(NUM_RUNS)), [2] * NUM_RUNS)
    active = torch.ones(NUM_RUNS, dtype=torch.bool)
    for _ in range(DRAWN_STEPS if moved else 0):
        runs.step(torch.full((NUM_RUNS,), 0.02), active)
    # the numbers of the next step are drawn anew: from here on each run has its own
    state = runs.state_dict()
    state["generators"] = [torch.Generator().manual_seed(i).get_state() for i in range(NUM_RUNS)]
    runs.load_state_dict(state)
    losses, entries = [], []
    for _ in range(DRAWN_STEPS):
        losses.append(runs.step(torch.zeros(NUM_RUNS), active).double())
        entries.append(runs.gradients().double())
    w, h = runs.w[0], runs.h[0]
    flat = torch.cat(entries)
    return Samples(
        w=flat[:, : w.numel()].reshape(-1, *w.shape),
        h=flat[:, w.numel() :].reshape(-1, *h.shape),
        losses=torch.cat(losses),
        exact=exact_gradients(w, h, state["_instance"]["matrix"][0]),
        objective=float(runs.privileged_losses()[0]),
    )


def check_mean(samples: Tensor, expected: Tensor) -> None:
    standard_error = samples.std(0) / math.sqrt(len(samples))
    rounding = 1e-5 * expected.abs().amax()
    assert bool(((samples.mean(0) - expected).abs() <= TOLERANCE * standard_error + rounding).all())


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("with_replacement", [False, True])
@pytest.mark.parametrize("noise", NOISES)
def test_the_mean_noisy_gradient_is_the_exact_one(
    noise: str, with_replacement: bool, padded: bool
) -> None:
    draws = draws_at_one_point(noise, with_replacement=with_replacement, padded=padded)

    check_mean(draws.w, draws.exact[0])
    check_mean(draws.h, draws.exact[1])


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("with_replacement", [False, True])
@pytest.mark.parametrize("noise", NOISES)
def test_the_mean_observed_loss_is_the_objective(
    noise: str, with_replacement: bool, padded: bool
) -> None:
    draws = draws_at_one_point(noise, with_replacement=with_replacement, padded=padded)

    check_mean(draws.losses, torch.tensor(draws.objective, dtype=torch.float64))


@pytest.mark.parametrize("noise", ["minibatch", *ADDED])
def test_the_observed_loss_is_noisy(noise: str) -> None:
    draws = draws_at_one_point(noise)

    assert float(draws.losses.std()) > 0.01 * draws.objective


@pytest.mark.parametrize("with_replacement", [False, True])
def test_minibatch_noise_has_the_squared_length_of_the_sampling_formula(
    with_replacement: bool,
) -> None:
    draws = draws_at_one_point("minibatch", with_replacement=with_replacement, batch_size=3)
    run = make_task(batch_size=3, noise_range=(LEVEL, LEVEL)).start(2)
    w, h = (x.double() for x in factors(run))
    residual = w @ h - run.matrix.double()
    by_column = torch.stack([torch.outer(residual[:, j], h[:, j]) for j in range(8)])
    by_row = torch.stack([torch.outer(w[i], residual[i]) for i in range(12)])

    for squares, parts in zip(draws.squared_errors, (by_column, by_row), strict=True):
        n = len(parts)
        spread = parts.square().sum((1, 2)).mean() - parts.mean(0).square().sum()
        correction = 1.0 if with_replacement else (n - 3) / (n - 1)
        check_mean(squares, n**2 / 3 * spread * correction)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_gaussian_noise_has_the_level_times_the_rms_of_the_first_gradient_at_every_step(
    padded: bool, moved: bool
) -> None:
    run = (padded_task if padded else make_task)().start(2)
    draws = draws_at_one_point("gaussian", padded=padded, moved=moved)

    assert (draws.objective < 0.9 * run.privileged_loss()) == moved
    # V's true entries are the same whatever the noise; it is one and the same seed
    m, n, r = size_of(run)
    errors = torch.cat(
        [
            (draws.w - draws.exact[0])[:, :m, :r].flatten(),
            (draws.h - draws.exact[1])[:, :r, :n].flatten(),
        ]
    )
    expected = LEVEL * rms(exact_gradients(*valid_block(run)))
    # a sample deviation of N draws has the relative standard error 1/sqrt(2N)
    assert abs(float(errors.std()) / expected - 1) < TOLERANCE / math.sqrt(2 * errors.numel())


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_relative_noise_has_the_level_times_the_length_of_the_present_gradient(
    padded: bool, moved: bool
) -> None:
    draws = draws_at_one_point("relative", padded=padded, moved=moved)
    w, h = draws.squared_errors

    check_mean(w + h, torch.tensor(LEVEL**2 * sum(float(x.square().sum()) for x in draws.exact)))


def test_relative_noise_has_one_standard_deviation_in_both_blocks() -> None:
    draws = draws_at_one_point("relative")
    w, h = (
        float(error.mean()) / exact.numel()
        for error, exact in zip(draws.squared_errors, draws.exact, strict=True)
    )

    # variances of N normal draws, relative standard error sqrt(2/N) each
    assert abs(w / h - 1) < TOLERANCE * math.sqrt(2 / NUM_DRAWS * (1 / 36 + 1 / 24))


def test_the_noise_of_both_blocks_is_uncorrelated() -> None:
    draws = draws_at_one_point("minibatch")
    w, h = (draws.w - draws.exact[0])[:, 0, 0], (draws.h - draws.exact[1])[:, 0, 0]

    check_mean(w * h, torch.tensor(0.0, dtype=torch.float64))


@pytest.mark.parametrize("moved", [False, True])
def test_without_noise_gradients_are_exact(moved: bool) -> None:
    draws = draws_at_one_point("none", moved=moved)

    for samples, exact in zip((draws.w, draws.h), draws.exact, strict=True):
        torch.testing.assert_close(samples, exact.expand_as(samples), rtol=1e-5, atol=1e-5)


def test_without_noise_the_observed_loss_is_the_objective() -> None:
    run = make_task(noise="none").start(0)
    objective = run.privileged_loss()

    assert float(run.step()) == pytest.approx(objective, rel=1e-6)


def shortened_noise(noise: str, factor: float) -> tuple[NMFRun, list[Tensor], list[Tensor]]:
    """The noise of a step whose normal numbers are multiplied, and what it is without a bound."""
    task = make_task(noise=noise, noise_range=(LEVEL, LEVEL))
    run = task.start(0)
    uniforms, normals = (x[0] for x in Draws(task).draw([torch.Generator()]))
    numbers = run.objective.prepare(uniforms, factor * normals)
    run.load_state_dict({**run.state_dict(), "numbers": list(numbers)})
    exact = exact_gradients(*factors(run), run.matrix)
    run.step(0.0)
    noises = [g - e for g, e in zip(gradients(run), exact, strict=True)]
    std = LEVEL * rms(exact)
    drawn = (factor * std * normals[0].double()).split([36, 24])
    free = [z.reshape(g.shape) for z, g in zip(drawn, exact, strict=True)]
    return run, noises, free


@pytest.mark.parametrize("noise", ADDED)
@pytest.mark.parametrize("factor", [10.0, 1e6])
def test_noise_beyond_eight_deviations_is_shortened_to_its_bound(noise: str, factor: float) -> None:
    run, noises, free = shortened_noise(noise, factor)
    std = LEVEL * rms(exact_gradients(*factors(run), run.matrix))

    for xi, unbounded in zip(noises, free, strict=True):
        bound = std * (math.sqrt(xi.numel()) + 8.0)
        assert float(unbounded.norm()) > bound
        assert float(xi.norm()) == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize("noise", ADDED)
def test_shortened_noise_keeps_its_direction(noise: str) -> None:
    for xi, unbounded in zip(*shortened_noise(noise, 10.0)[1:], strict=True):
        torch.testing.assert_close(xi / xi.norm(), unbounded / unbounded.norm(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("noise", ADDED)
def test_noise_within_its_bound_is_added_as_drawn(noise: str) -> None:
    _, noises, free = shortened_noise(noise, 1.0)

    for xi, unbounded in zip(noises, free, strict=True):
        torch.testing.assert_close(xi, unbounded, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", ADDED)
def test_no_drawn_noise_exceeds_its_bound(noise: str) -> None:
    draws = draws_at_one_point(noise)
    std = LEVEL * rms(draws.exact)

    for squares, exact in zip(draws.squared_errors, draws.exact, strict=True):
        bound = std * (math.sqrt(exact.numel()) + 8.0)
        assert float(squares.max().sqrt()) <= bound * (1 + 1e-5)


def test_a_full_batch_without_replacement_gives_the_exact_gradients() -> None:
    run = make_task(shape=(8, 8), batch_size=8).start(0)
    expected = exact_gradients(*factors(run), run.matrix)
    run.step(0.0)

    for gradient, exact in zip(gradients(run), expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-5)


def test_a_full_batch_without_replacement_gives_the_objective() -> None:
    run = make_task(shape=(8, 8), batch_size=8).start(0)
    objective = run.privileged_loss()

    assert float(run.step(0.0)) == pytest.approx(objective, rel=1e-5)


def test_the_gradient_is_that_of_the_privileged_loss() -> None:
    run = make_task(noise="none").start(0)
    w, h = (x.double().requires_grad_() for x in factors(run))
    objective = (w @ h - run.matrix.double()).square().sum() / 2
    objective.backward()
    run.step(0.0)

    assert run.privileged_loss() == pytest.approx(float(objective.detach()), rel=1e-5)
    for gradient, expected in zip(gradients(run), (w.grad, h.grad), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_the_ball_caps_gaussian_noise_is_relative_to_the_gradient_at_the_start() -> None:
    # of rank 1, the factors drawn at the start are longer than the ball: the run starts on it
    task = make_task(noise="gaussian", cap_kind="ball", rank=1, shape=(60, 8))
    run = task.start(0)
    expected = rms(exact_gradients(*factors(run), run.matrix))
    errors = []
    for _ in range(200):
        exact = exact_gradients(*factors(run), run.matrix)
        run.step(0.0)
        errors += [(g - e).flatten() for g, e in zip(gradients(run), exact, strict=True)]
    deviations = torch.cat(errors)

    error = float(deviations.std()) / expected - 1
    assert abs(error) < TOLERANCE / math.sqrt(2 * deviations.numel())

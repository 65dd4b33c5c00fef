import functools
import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrpilot.caps.cap import block_cap, joint_ball_cap, segment_cap
from lrpilot.tasks.nmf.batch import BatchedNMFRuns
from lrpilot.tasks.nmf.problem import DRAWN_STEPS
from lrpilot.tasks.nmf.problem import Draws as ProblemDraws
from lrpilot.tasks.nmf.task import NOISES, NMFRun, NMFTask
from tests.running import through_file

# Samples at one point; their means must lie within this many standard errors (fixed seeds).
NUM_RUNS = 200
NUM_DRAWS = NUM_RUNS * DRAWN_STEPS
TOLERANCE = 5.0
ADDED = ("gaussian", "relative")
LEVEL = 0.7
VARIED: dict[str, Any] = {
    "shape": (12, 10),
    "rank": 4,
    "smallest_shape": (6, 5),
    "smallest_rank": 2,
    "scale_range": (0.01, 100.0),
    "condition_range": (1.0, 10.0),
    "sparsity_range": (0.0, 0.2),
}
# noise, cap and update that go together
CAPPED = [
    *((noise, "segment", "simultaneous") for noise in ("none", *ADDED)),
    *((noise, "ball", "simultaneous") for noise in NOISES),
    *((noise, "block", "alternating") for noise in ("none", "minibatch")),
]


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


def factors(run: NMFRun) -> tuple[Tensor, Tensor]:
    return run.w.detach().clone(), run.h.detach().clone()


def gradients(run: NMFRun) -> tuple[Tensor, Tensor]:
    assert run.w.grad is not None
    assert run.h.grad is not None
    return run.w.grad.double(), run.h.grad.double()


def exact_gradients(w: Tensor, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    residual = w.double() @ h.double() - v.double()
    return residual @ h.double().mT, w.double().mT @ residual


def rms(parts: tuple[Tensor, Tensor]) -> float:
    return math.sqrt(sum(float(x.square().sum()) for x in parts) / sum(x.numel() for x in parts))


def size_of(run: NMFRun) -> tuple[int, int, int]:
    """Valid rows, columns and rank of a padded run."""
    return *run.problem.size.tolist(), int((run.w > 0).any(0).sum())  # type: ignore[return-value]


def valid_block(run: NMFRun) -> tuple[Tensor, Tensor, Tensor]:
    m, n, r = size_of(run)
    w, h = factors(run)
    return w[:m, :r], h[:r, :n], run.matrix[:m, :n]


def padded_task(**changes: Any) -> NMFTask:
    return make_task(smallest_shape=(6, 5), smallest_rank=1, **changes)


def padded_run(**changes: Any) -> NMFRun:
    """Smaller than the largest size in rows, columns and rank."""
    run = padded_task(**changes).start(2)
    assert all(a < b for a, b in zip(size_of(run), (12, 8, 3), strict=True))
    return run


# noise


@dataclass
class Draws:
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
) -> Draws:
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
    return Draws(
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
    squared_norm = sum(x.square().sum() for x in draws.exact)

    check_mean(sum(draws.squared_errors), LEVEL**2 * torch.as_tensor(squared_norm))


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
    uniforms, normals = (x[0] for x in ProblemDraws(task).draw([torch.Generator()]))
    numbers = run.problem.prepare(uniforms, factor * normals)
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
    objective.backward()  # type: ignore[no-untyped-call]
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


# steps and projection


def test_a_step_of_size_zero_moves_nothing() -> None:
    run = make_task().start(0)
    before = factors(run)
    run.step(0.0)

    assert all(map(torch.equal, run.parameters, before))


@pytest.mark.parametrize("noise", NOISES)
def test_a_step_updates_both_factors_from_the_same_point_and_clips(noise: str) -> None:
    run = make_task(noise=noise).start(0)
    before = factors(run)
    run.step(0.05)

    for parameter, old in zip(run.parameters, before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter, old.add(parameter.grad, alpha=-0.05).clamp(min=0.0))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**40),
    lr=st.floats(1e-4, 10.0),
    noise=st.sampled_from(NOISES),
    optimizer=st.sampled_from([torch.optim.SGD, torch.optim.Adam]),
)
def test_factors_stay_non_negative(seed: int, lr: float, noise: str, optimizer: Any) -> None:
    run = make_task(optimizer=optimizer, noise=noise).start(seed)
    for _ in range(10):
        run.step(lr)
        # NaN, after divergence, is not negative
        assert not any(bool((parameter < 0).any()) for parameter in run.parameters)


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("lr", [0.01, 1.0, 1e6])
def test_under_the_ball_cap_factors_stay_in_the_ball(noise: str, lr: float, padded: bool) -> None:
    run = (padded_task if padded else make_task)(noise=noise, cap_kind="ball").start(2)
    # ||W||_F^2 <= sqrt(r) ||V||_F at a balanced optimum, with a fifth to spare
    radius = math.sqrt(1.2 * math.sqrt(size_of(run)[2]) * float(run.matrix.norm()))
    for _ in range(20):
        run.step(lr)
        for parameter in run.parameters:
            assert float(parameter.detach().norm()) <= radius * (1 + 1e-6)
            assert float(parameter.detach().min()) >= 0.0


def test_under_the_ball_cap_a_run_starts_in_the_ball() -> None:
    run = make_task(cap_kind="ball", rank=1, shape=(60, 8)).start(0)
    radius = math.sqrt(1.2 * float(run.matrix.norm()))

    assert float(run.w.detach().norm()) == pytest.approx(radius, rel=1e-6)


@pytest.mark.parametrize("lr", [1e20, 1e38])
def test_under_the_ball_cap_no_step_is_too_long_to_be_projected(lr: float) -> None:
    run = make_task(noise="gaussian", cap_kind="ball").start(0)
    run.step(lr)

    assert math.isfinite(run.privileged_loss())


@pytest.mark.parametrize("noise", NOISES)
def test_alternating_updates_move_w_at_even_steps_and_h_at_odd_ones(noise: str) -> None:
    run = make_task(noise=noise, update="alternating").start(0)
    for step in range(6):
        before = factors(run)
        run.step(0.01)
        moved = [not torch.equal(a, b) for a, b in zip(before, factors(run), strict=True)]
        assert moved == [step % 2 == 0, step % 2 == 1]


def test_alternating_runs_resume_with_the_block_that_is_due() -> None:
    task = make_task(update="alternating")
    run, resumed = task.start(0), task.start(1)
    run.step()
    resumed.load_state_dict(through_file(run.state_dict()))
    before = factors(resumed)
    resumed.step()

    assert torch.equal(resumed.w, before[0])
    assert not torch.equal(resumed.h, before[1])


def test_gradient_descent_reduces_the_objective_at_every_step() -> None:
    run = make_task(shape=(20, 20), noise="none").start(0)
    losses = [float(run.step(0.005)) for _ in range(50)]

    assert sorted(losses, reverse=True) == losses


def test_evaluate_gives_the_objective_and_the_relative_error() -> None:
    run = make_task().start(0)
    residual = (run.w @ run.h - run.matrix).detach()
    metrics = run.evaluate()

    assert set(metrics) == {"held_out_loss", "relative_error"}
    assert metrics["held_out_loss"] == run.privileged_loss()
    assert metrics["relative_error"] == pytest.approx(
        float(residual.norm() / run.matrix.norm()), rel=1e-5
    )


# padding


@pytest.mark.parametrize("cap_kind", [None, "ball"])
@pytest.mark.parametrize("noise", NOISES)
def test_zero_padding_stays_zero(noise: str, cap_kind: str | None) -> None:
    run = padded_run(noise=noise, cap_kind=cap_kind)
    m, n, r = size_of(run)
    for _ in range(40):
        run.step(0.02)

    assert float(run.w[:m, :r].detach().sum()) > 0.0
    for padding in (run.w[m:], run.w[:, r:], run.h[r:], run.h[:, n:]):
        assert not bool(padding.any())


def test_v_is_zero_in_the_padding_alone() -> None:
    run = padded_run(data_noise=0.0)
    m, n, _ = size_of(run)

    assert not bool(run.matrix[m:].any())
    assert not bool(run.matrix[:, n:].any())
    assert bool((run.matrix[:m, :n] > 0).all())


def test_padded_sizes_and_ranks_take_every_value_of_their_ranges() -> None:
    task = padded_task()
    sizes = [size_of(task.start(seed)) for seed in range(150)]
    rows, columns, ranks = map(set, zip(*sizes, strict=True))

    assert rows == set(range(6, 13))
    assert columns == set(range(5, 9))
    assert ranks == {1, 2, 3}


def test_without_ranges_every_run_has_the_largest_size() -> None:
    assert {size_of(make_task().start(seed)) for seed in range(5)} == {(12, 8, 3)}


def test_a_padded_run_equals_gradient_descent_on_its_valid_block() -> None:
    run = padded_run(noise="none")
    w, h, v = valid_block(run)
    for _ in range(60):
        residual = w @ h - v
        loss = float(run.step(0.02))
        assert loss == pytest.approx(float(residual.square().sum() / 2), rel=1e-5)
        w, h = (
            (w - 0.02 * residual @ h.mT).clamp(min=0.0),
            (h - 0.02 * w.mT @ residual).clamp(min=0.0),
        )

    torch.testing.assert_close(valid_block(run)[:2], (w, h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cap_kind", ["segment", "ball", "block"])
def test_the_cap_of_a_padded_run_is_that_of_its_valid_block(cap_kind: str) -> None:
    update = "alternating" if cap_kind == "block" else "simultaneous"
    run = padded_run(noise="none", cap_kind=cap_kind, update=update)
    w, h, v = valid_block(run)
    radius = (1.2 * math.sqrt(w.shape[1]) * v.norm()).sqrt()
    expected = {
        "segment": lambda: segment_cap(w, h, v, c=1.9),
        "ball": lambda: joint_ball_cap(v, radius, radius, c=1.9, bound="gram_rows"),
        "block": lambda: block_cap(h, update=update, c=1.9, bound="gram_rows"),
    }[cap_kind]()[0]

    assert run.cap()[0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("with_replacement", [False, True])
@pytest.mark.parametrize("block", ["w", "h"])
def test_a_padded_minibatch_never_has_a_column_or_row_of_the_padding(
    block: str, with_replacement: bool
) -> None:
    run = padded_run(noise="minibatch", with_replacement=with_replacement)
    m, n, _ = size_of(run)
    state = run.state_dict()
    # W's gradient is from columns, H's from rows
    padding = state["problem"]["matrix"][:, n:] if block == "w" else state["problem"]["matrix"][m:]
    padding.fill_(math.nan)
    for position in range(DRAWN_STEPS):
        run.load_state_dict({**state, "position": position})
        run.step(0.0)
        gradient = getattr(run, block).grad
        assert bool(gradient.isfinite().all())


# what is drawn per run


def test_v_has_the_scale_as_its_mean_and_is_non_negative() -> None:
    run = make_task(data_noise=2.0, scale_range=(7.0, 7.0)).start(0)

    assert float(run.matrix.mean()) == pytest.approx(7.0, rel=1e-5)
    assert float(run.matrix.min()) == 0.0


def test_scales_are_log_uniform_in_their_range() -> None:
    task = make_task(scale_range=(0.01, 100.0))
    logs = torch.tensor([float(task.start(s).matrix.mean()) for s in range(400)]).log10()

    assert float(logs.abs().max()) <= 2 + 1e-5
    # quarters of equal probability; 4 standard errors are 35 draws
    counts = torch.histc(logs, bins=4, min=-2, max=2)
    assert float((counts - 100).abs().max()) <= 35


def test_noise_levels_are_log_uniform_in_their_range() -> None:
    task = make_task(noise="gaussian", noise_range=(0.1, 10.0))
    logs = torch.tensor([float(task.start(s).problem.noise_level) for s in range(400)]).log10()

    assert float(logs.abs().max()) <= 1 + 1e-5
    counts = torch.histc(logs, bins=4, min=-1, max=1)
    assert float((counts - 100).abs().max()) <= 35


def test_the_drawn_scale_is_the_mean_of_the_valid_block_of_a_padded_run() -> None:
    run = padded_run(scale_range=(7.0, 7.0))

    assert float(valid_block(run)[2].mean()) == pytest.approx(7.0, rel=1e-5)


def decay(condition_range: tuple[float, float], seed: int) -> Tensor:
    """Scales of the columns of W*, relative to the largest.

    With V0 = W H of condition 1 and V = W D H of the same seed, V0^+ V = H^+ D H.
    """
    task = make_task(data_noise=0.0, shape=(30, 30))
    plain = task.start(seed).matrix.double()
    task = make_task(data_noise=0.0, shape=(30, 30), condition_range=condition_range)
    product = torch.linalg.pinv(plain, rtol=1e-5) @ task.start(seed).matrix.double()
    top = torch.linalg.eigvals(product).real.sort(descending=True).values[:3]
    return top / top[0]


def test_the_columns_of_w_decay_geometrically_by_the_condition() -> None:
    expected = torch.tensor([1.0, 0.25, 0.0625], dtype=torch.float64)

    torch.testing.assert_close(decay((16.0, 16.0), 0), expected, rtol=1e-3, atol=0)


def test_conditions_lie_in_their_range_and_differ() -> None:
    conditions = [1 / float(decay((2.0, 50.0), seed)[2]) for seed in range(20)]

    assert all(2.0 * 0.999 <= condition <= 50.0 * 1.001 for condition in conditions)
    assert max(conditions) > 3 * min(conditions)


def test_zeros_in_the_factors_have_a_share_in_the_range_of_sparsities() -> None:
    # of rank 1, a row of V is zero where W* is
    task = make_task(shape=(400, 400), rank=1, data_noise=0.0, sparsity_range=(0.2, 0.6))
    shares = []
    for seed in range(20):
        zero = task.start(seed).matrix == 0
        rows, columns = (float(zero.all(dim).double().mean()) for dim in (1, 0))
        # two shares of 400 draws each
        assert abs(rows - columns) < 4 * math.sqrt(2 * 0.25 / 400)
        shares.append(rows)

    slack = 4 * math.sqrt(0.25 / 400)
    assert 0.2 - slack <= min(shares) < 0.35
    assert 0.45 < max(shares) <= 0.6 + slack


def test_without_sparsity_no_entry_of_v_is_zero() -> None:
    assert bool((make_task(data_noise=0.0).start(0).matrix > 0).all())


def test_very_sparse_instances_have_a_finite_matrix() -> None:
    task = make_task(shape=(6, 6), rank=1, sparsity_range=(0.9, 0.9))

    assert all(bool(task.start(seed).matrix.isfinite().all()) for seed in range(20))


def test_the_start_has_the_scale_of_the_matrix() -> None:
    task = make_task(shape=(40, 40), rank=5, scale_range=(0.01, 100.0))
    ratios = []
    for seed in range(50):
        run = task.start(seed)
        ratios.append(float((run.w @ run.h).detach().mean() / run.matrix.mean()))

    assert sum(ratios) / 50 == pytest.approx(1.0, abs=0.05)


def test_a_start_of_another_scale_is_the_same_start_times_the_scale() -> None:
    run, smaller = make_task().start(0), make_task(start_scale=0.25).start(0)

    assert torch.equal(smaller.matrix, run.matrix)
    for x, y in zip(factors(smaller), factors(run), strict=True):
        assert torch.equal(x, 0.25 * y)


def test_without_data_noise_the_matrix_has_the_rank_of_the_factors() -> None:
    run = make_task(data_noise=0.0, rank=2).start(0)

    assert int(torch.linalg.matrix_rank(run.matrix, rtol=1e-5)) == 2


def test_every_seed_is_a_new_matrix() -> None:
    task = make_task()

    assert not torch.equal(task.start(0).matrix, task.start(1).matrix)


def test_a_real_matrix_sets_the_shape_and_is_every_runs() -> None:
    task = make_task(matrix="digits", scale_range=(0.25, 0.25))
    first, second = task.start(0), task.start(1)

    assert tuple(task.shape) == (61, 1797)
    assert torch.equal(first.matrix, second.matrix)
    assert float(first.matrix.mean()) == pytest.approx(0.25, rel=1e-5)
    assert not torch.equal(first.w, second.w)


# equivariance


def trajectory(task: NMFTask, *, lr: float | None = None, num_steps: int = 50) -> dict[str, Tensor]:
    """Without an lr, every step is 0.6 of the cap."""
    run = task.start(4)
    caps, losses = [], []
    for _ in range(num_steps):
        caps.append(run.cap()[0] if lr is None else lr)
        losses.append(run.step(0.6 * caps[-1] if lr is None else lr))
    return {
        "matrix": run.matrix,
        "w": run.w.detach(),
        "h": run.h.detach(),
        "caps": torch.tensor(caps, dtype=torch.float64),
        "losses": torch.stack(losses),
    }


def scaled(values: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """What V -> factor V makes of a trajectory."""
    k = math.sqrt(factor)
    powers = {"matrix": factor, "w": k, "h": k, "caps": 1 / factor, "losses": factor**2}
    return {name: value * powers[name] for name, value in values.items()}


@pytest.mark.slow
@pytest.mark.parametrize("factor", [4.0**5, 4.0**-4])
@pytest.mark.parametrize(("noise", "cap_kind", "update"), CAPPED)
def test_capped_runs_are_exactly_equivariant_under_powers_of_four(
    noise: str, cap_kind: str, update: str, factor: float
) -> None:
    changes = {"noise": noise, "cap_kind": cap_kind, "update": update}
    plain = trajectory(make_task(**changes, scale_range=(1.0, 1.0)))
    other = trajectory(make_task(**changes, scale_range=(factor, factor)))
    expected = scaled(plain, factor)

    assert [name for name in other if not torch.equal(other[name], expected[name])] == []


@pytest.mark.parametrize("factor", [3.7, 0.23])
@pytest.mark.parametrize("noise", ["none", *ADDED])
def test_capped_runs_are_equivariant_to_rounding_under_other_factors(
    noise: str, factor: float
) -> None:
    changes = {"noise": noise, "cap_kind": "segment"}
    plain = trajectory(make_task(**changes, scale_range=(1.0, 1.0)))
    other = trajectory(make_task(**changes, scale_range=(factor, factor)))

    for name, expected in scaled(plain, factor).items():
        error = float((other[name] - expected).norm() / expected.norm())
        assert error < 1e-4, name


@pytest.mark.parametrize("noise", NOISES)
def test_uncapped_runs_with_a_quarter_of_the_lr_are_exactly_equivariant(noise: str) -> None:
    plain = trajectory(make_task(noise=noise), lr=0.02)
    other = trajectory(make_task(noise=noise, scale_range=(4.0, 4.0)), lr=0.005)
    expected = scaled(plain, 4.0)

    assert [name for name in other if not torch.equal(other[name], expected[name])] == []


# batched runs


def batch_of(task: NMFTask, seeds: list[int]) -> BatchedNMFRuns:
    runs = BatchedNMFRuns(task, len(seeds))
    runs.reset(list(range(len(seeds))), seeds)
    return runs


def check_equal(runs: BatchedNMFRuns, singles: list[NMFRun]) -> None:
    for name in ("w", "h"):
        expected = torch.stack([getattr(run, name).detach() for run in singles])
        assert torch.allclose(getattr(runs, name), expected, rtol=1e-5, atol=1e-5)
    losses = [run.privileged_loss() for run in singles]
    assert runs.privileged_losses().tolist() == pytest.approx(losses, rel=1e-5)


def drive(
    runs: BatchedNMFRuns, singles: list[NMFRun], lrs: Tensor, num_steps: int, actives: Tensor
) -> None:
    """Step the batch and the single runs; their observed losses must agree."""
    for step in range(num_steps):
        active = actives[step % len(actives)]
        losses = runs.step(lrs, active)
        expected = [float(singles[i].step(float(lrs[i]))) for i in active.nonzero()[:, 0]]
        assert losses[active].tolist() == pytest.approx(expected, rel=1e-5)
        check_equal(runs, singles)


ALL = torch.ones(1, 4, dtype=torch.bool)
LRS = torch.tensor([0.003, 0.01, 0.02, 0.03], dtype=torch.float64)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("noise", NOISES)
def test_batched_runs_equal_single_runs(noise: str, update: str) -> None:
    task = padded_task(noise=noise, update=update)
    seeds = [5, 6, 7, 8]
    drive(batch_of(task, seeds), [task.start(seed) for seed in seeds], LRS, 60, ALL)


def test_batched_minibatches_with_replacement_equal_those_of_single_runs() -> None:
    task = padded_task(with_replacement=True)
    seeds = [5, 6, 7, 8]
    drive(batch_of(task, seeds), [task.start(seed) for seed in seeds], LRS, 60, ALL)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("noise", NOISES)
def test_batched_runs_equal_single_runs_with_some_rows_active(noise: str, update: str) -> None:
    task = padded_task(noise=noise, update=update)
    seeds = [5, 6, 7, 8]
    actives = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1], [1, 0, 1, 1]], dtype=torch.bool)
    drive(batch_of(task, seeds), [task.start(seed) for seed in seeds], LRS, 60, actives)


@pytest.mark.parametrize("noise", NOISES)
def test_batched_runs_equal_single_runs_after_a_reset_of_some_rows(noise: str) -> None:
    task = padded_task(noise=noise, update="alternating")
    seeds = [5, 6, 7, 8]
    runs, singles = batch_of(task, seeds), [task.start(seed) for seed in seeds]
    drive(runs, singles, LRS, 21, ALL)
    runs.reset([3, 1], [20, 21])
    singles[3], singles[1] = task.start(20), task.start(21)
    check_equal(runs, singles)
    drive(runs, singles, LRS, 39, ALL)


@pytest.mark.parametrize(("noise", "cap_kind", "update"), CAPPED)
def test_batched_caps_equal_those_of_single_runs(noise: str, cap_kind: str, update: str) -> None:
    task = padded_task(noise=noise, cap_kind=cap_kind, update=update)
    seeds = [5, 6, 7, 8]
    runs, singles = batch_of(task, seeds), [task.start(seed) for seed in seeds]
    for _ in range(20):
        eta, guarantee = runs.cap()
        for i, run in enumerate(singles):
            expected = run.cap()
            assert (float(eta[i]), guarantee) == (pytest.approx(expected[0], rel=1e-4), expected[1])
        drive(runs, singles, 0.3 * eta.double(), 1, ALL)


def test_inactive_rows_do_not_move() -> None:
    runs = batch_of(make_task(), [1, 2])
    before = runs.weights()
    runs.step(torch.full((2,), 0.01), torch.tensor([False, True]))

    assert torch.equal(runs.weights()[0], before[0])
    assert not torch.equal(runs.weights()[1], before[1])


def test_a_row_that_diverges_leaves_the_others_alone() -> None:
    task = make_task(noise="relative")
    runs, single = batch_of(task, [1, 2]), task.start(2)
    for _ in range(10):
        runs.step(torch.tensor([1e30, 0.01]), torch.ones(2, dtype=torch.bool))
        single.step(0.01)

    assert not math.isfinite(float(runs.privileged_losses()[0]))
    assert float(runs.privileged_losses()[1]) == pytest.approx(single.privileged_loss(), rel=1e-5)


@pytest.mark.parametrize("cap_kind", [None, "segment", "ball"])
def test_rows_can_be_reset_before_the_others_have_started(cap_kind: str | None) -> None:
    task = make_task(noise="gaussian", cap_kind=cap_kind)
    runs, single = BatchedNMFRuns(task, 3), task.start(0)
    runs.reset([1], [0])
    if cap_kind is not None:
        assert float(runs.cap()[0][1]) == pytest.approx(single.cap()[0], rel=1e-5)
    runs.step(torch.full((3,), 0.01), torch.tensor([False, True, False]))
    single.step(0.01)

    assert float(runs.privileged_losses()[1]) == pytest.approx(single.privileged_loss(), rel=1e-5)


def test_a_reset_of_no_rows_changes_nothing() -> None:
    runs = batch_of(make_task(), [1, 2])
    before = runs.weights()
    runs.reset([], [])

    assert torch.equal(runs.weights(), before)


def test_weights_and_gradients_are_those_of_the_single_run() -> None:
    task = make_task(noise="none")
    runs, single = batch_of(task, [3]), task.start(3)
    runs.step(torch.tensor([0.01]), torch.tensor([True]))
    single.step(0.01)
    weights = torch.cat([p.detach().flatten() for p in single.parameters])
    grads = torch.cat([g.float().flatten() for g in gradients(single)])

    torch.testing.assert_close(runs.weights()[0], weights, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(runs.gradients()[0], grads, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
@pytest.mark.parametrize("noise", NOISES)
def test_batched_state_through_a_file_continues_bit_identically(noise: str, update: str) -> None:
    task = padded_task(noise=noise, update=update)
    runs, resumed = batch_of(task, [5, 6, 7, 8]), batch_of(task, [1, 2, 3, 4])
    mask = torch.tensor([True, True, False, True])
    for step in range(21):
        runs.step(LRS, mask | (step % 3 == 0))
    resumed.load_state_dict(through_file(runs.state_dict()))

    assert torch.equal(resumed.gradients(), runs.gradients())
    for _ in range(30):
        assert torch.equal(resumed.step(LRS, mask), runs.step(LRS, mask))
    assert torch.equal(resumed.weights(), runs.weights())
    assert torch.equal(resumed.gradients(), runs.gradients())


def test_batched_state_continues_in_runs_that_were_never_reset() -> None:
    task = make_task()
    runs, fresh = batch_of(task, [5, 6, 7, 8]), BatchedNMFRuns(task, 4)
    runs.step(LRS, ALL[0])
    fresh.load_state_dict(runs.state_dict())

    assert torch.equal(fresh.step(LRS, ALL[0]), runs.step(LRS, ALL[0]))


def test_batched_state_is_not_changed_by_the_runs_it_was_taken_from() -> None:
    runs = batch_of(make_task(), [5, 6, 7, 8])
    runs.step(LRS, ALL[0])
    state = runs.state_dict()
    before = through_file(state)
    runs.step(LRS, ALL[0])
    runs.reset([0, 1], [9, 10])

    for name in ("w", "h"):
        assert torch.equal(state[name], before[name])
    for name, value in state["_instance"].items():
        assert torch.equal(value, before["_instance"][name])


def test_the_state_of_a_run_brings_its_cap_to_a_run_of_another_seed() -> None:
    task = make_task(noise="none", cap_kind="ball", scale_range=(0.01, 100.0))
    run, other = task.start(0), task.start(1)
    state = run.state_dict()
    other.cap()
    other.load_state_dict(state)

    assert other.cap() == run.cap()


# certificates


def capped_losses(task: NMFTask, num_steps: int) -> tuple[Tensor, Tensor]:
    """Float64 losses of 500 runs at their caps, (steps + 1, 500), and 1/2 ||V||^2."""
    runs = batch_of(task, list(range(500)))
    v = runs.state_dict()["_instance"]["matrix"].double()
    active = torch.ones(500, dtype=torch.bool)

    def loss(w: Tensor, h: Tensor) -> Tensor:
        return (w.double() @ h.double() - v).square().sum((-2, -1)) / 2

    losses = [loss(runs.w, runs.h)]
    for _ in range(num_steps):
        runs.step(runs.cap()[0], active)
        losses.append(loss(runs.w, runs.h))
    return torch.stack(losses), v.square().sum((-2, -1)) / 2


@pytest.mark.parametrize(
    ("cap_kind", "update"),
    [
        ("segment", "simultaneous"),
        ("segment", "alternating"),
        ("ball", "simultaneous"),
        ("ball", "alternating"),
        ("block", "alternating"),
    ],
)
def test_noise_free_steps_at_the_cap_never_raise_the_loss(cap_kind: str, update: str) -> None:
    task = make_task(**VARIED, noise="none", cap_kind=cap_kind, update=update)
    losses, largest = capped_losses(task, 60)

    # rounding of the iterates to float32 changes f by less than 1e-7 of 1/2 ||V||^2
    assert float((losses.diff(dim=0) / largest).max()) <= 1e-7
    assert bool((losses[-1] < losses[0]).all())


@pytest.mark.parametrize(
    ("noise", "cap_kind", "update"),
    [case for case in CAPPED if case[0] != "none"],
)
def test_no_run_at_its_cap_diverges(noise: str, cap_kind: str, update: str) -> None:
    task = make_task(**VARIED, noise=noise, cap_kind=cap_kind, update=update)
    losses, _ = capped_losses(task, 60)

    # NaN compares as false
    assert bool((losses <= 10 * losses[0]).all())


@pytest.mark.parametrize(
    ("noise", "cap_kind", "update", "guarantee"),
    [
        ("none", "segment", "simultaneous", "deterministic"),
        ("gaussian", "segment", "simultaneous", "stationary"),
        ("relative", "segment", "alternating", "stationary"),
        ("none", "ball", "simultaneous", "deterministic"),
        ("minibatch", "ball", "simultaneous", "stationary"),
        ("none", "block", "alternating", "deterministic"),
        ("minibatch", "block", "alternating", "stationary"),
    ],
)
def test_a_cap_names_its_guarantee(noise: str, cap_kind: str, update: str, guarantee: str) -> None:
    run = make_task(noise=noise, cap_kind=cap_kind, update=update).start(0)

    assert run.cap()[1] == guarantee


@pytest.mark.parametrize("noise", ADDED)
def test_noise_lowers_the_segment_cap(noise: str) -> None:
    noisy, plain = (
        make_task(noise=n, cap_kind="segment").start(0).cap()[0] for n in (noise, "none")
    )

    assert noisy < plain


@pytest.mark.parametrize("noise", ["gaussian", "relative", "none"])
def test_the_cap_does_not_depend_on_the_noise_of_the_step_that_it_bounds(noise: str) -> None:
    run = make_task(noise=noise, cap_kind="segment").start(0)
    before = run.cap()
    run.step(0.0)

    assert run.cap() == before


@pytest.mark.parametrize("cap_kind", ["segment", "ball"])
def test_asking_for_the_cap_does_not_change_what_follows(cap_kind: str) -> None:
    task = make_task(noise="gaussian", cap_kind=cap_kind)
    asked, plain = task.start(0), task.start(0)
    for _ in range(20):
        asked.cap()
        assert float(asked.step()) == float(plain.step())


# refused arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"rank": r}, f"`rank` must be in [1, min(m, n) = 8], got {r}") for r in (0, -1, 9)),
        (
            {"rank": 6, "smallest_shape": (7, 5)},
            "`rank` must be in [1, min(m, n) = 5], got 6",
        ),
        *(
            ({"batch_size": b}, f"`batch_size` must be in [1, min(m, n) = 8], got {b}")
            for b in (0, -1, 9)
        ),
        (
            {"batch_size": 6, "smallest_shape": (7, 5)},
            "`batch_size` must be in [1, min(m, n) = 5], got 6",
        ),
        *(
            ({"smallest_rank": r}, f"`smallest_rank` must be in [1, rank = 3], got {r}")
            for r in (-1, 0, 4)
        ),
        *(
            (
                {"smallest_shape": s},
                f"`smallest_shape` must not exceed `shape` = (12, 8), got {s}",
            )
            for s in ((13, 8), (12, 9))
        ),
        ({"scale_range": (2.0, 1.0)}, "`scale_range` must be 0 < low <= high, got (2.0, 1.0)"),
        ({"scale_range": (0.0, 1.0)}, "`scale_range` must be 0 < low <= high, got (0.0, 1.0)"),
        (
            {"scale_range": (1.0, math.inf)},
            "`scale_range` must be 0 < low <= high, got (1.0, inf)",
        ),
        (
            {"condition_range": (9.0, 3.0)},
            "`condition_range` must be 0 < low <= high, got (9.0, 3.0)",
        ),
        ({"noise_range": (1.0, 0.5)}, "`noise_range` must be 0 < low <= high, got (1.0, 0.5)"),
        (
            {"noise_range": (math.nan, 1.0)},
            "`noise_range` must be 0 < low <= high, got (nan, 1.0)",
        ),
        ({"sparsity_range": (0.5, 1.0)}, "`sparsity_range` must be in [0, 1), got (0.5, 1.0)"),
        ({"sparsity_range": (0.5, 0.4)}, "`sparsity_range` must be in [0, 1), got (0.5, 0.4)"),
        ({"sparsity_range": (-0.1, 0.4)}, "`sparsity_range` must be in [0, 1), got (-0.1, 0.4)"),
        ({"data_noise": -0.1}, "`data_noise` must not be negative, got -0.1"),
        ({"start_scale": 0.0}, "`start_scale` must be positive, got 0.0"),
        ({"data_noise": math.nan}, "`data_noise` must not be negative, got nan"),
        ({"noise": "white"}, f"`noise` must be one of {NOISES}, got 'white'"),
        (
            {"update": "block"},
            "`update` must be one of ('simultaneous', 'alternating'), got 'block'",
        ),
        (
            {"matrix": "faces"},
            "`matrix` must be one of ('olivetti', 'digits', 'shakespeare'), an array or a path "
            "that ends in one of ('.npy', '.npz', '.csv'), got 'faces'",
        ),
        *(
            (
                {"cap_kind": "ball", "cap_c": c},
                f"`cap_c` must be in (0, 2), got {c}",
            )
            for c in (0.0, 2.0, math.nan)
        ),
        (
            {"cap_kind": "block"},
            "`update` must be 'alternating' for block caps, got 'simultaneous'",
        ),
        ({"cap_kind": "segment"}, "`cap_kind` 'segment' needs a bounded gradient"),
    ],
)
def test_errors_name_argument_constraint_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_task(**changes)


def test_an_unknown_cap_kind_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"`cap_kind` must be one of .*, got 'line'"):
        make_task(noise="none", cap_kind="line")


def test_a_real_matrix_of_drawn_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="`smallest_shape`"):
        make_task(matrix="digits", smallest_shape=(30, 30))


@pytest.mark.parametrize("make", [lambda task: task.start(0), lambda task: batch_of(task, [0])])
def test_the_cap_of_a_task_without_one_is_refused(make: Any) -> None:
    message = "`cap_kind` must name a cap before it is asked for, got None"
    with pytest.raises(ValueError, match=message):
        make(make_task()).cap()


@pytest.mark.parametrize("num_runs", [0, -1])
def test_a_batch_of_no_runs_is_refused(num_runs: int) -> None:
    with pytest.raises(ValueError, match=f"`num_runs` must be at least 1, got {num_runs}"):
        make_task().start_batch(num_runs)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, functools.partial(torch.optim.SGD, momentum=0.9)]
)
def test_batched_runs_of_another_optimizer_are_refused(optimizer: Any) -> None:
    with pytest.raises(ValueError, match="`optimizer` of batched runs must be plain SGD, got"):
        make_task(optimizer=optimizer).start_batch(2)


@pytest.mark.parametrize("noise", ADDED)
def test_a_block_cap_under_added_noise_is_refused(noise: str) -> None:
    # it grows without limit as noise drives the other factor to zero
    with pytest.raises(ValueError, match="`cap_kind` 'block' bounds no iterates under added noise"):
        make_task(noise=noise, cap_kind="block", update="alternating")

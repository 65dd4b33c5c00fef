import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrpilot.tasks.nmf.caps import (
    BOUNDS,
    block_cap,
    joint_ball_cap,
    line_oracle,
    project_ball,
    segment_cap,
    squared_norm_bound,
)

SETTINGS = settings(deadline=None, max_examples=60)
SIZES = st.integers(1, 7)
SEEDS = st.integers(0, 2**32)
C = st.floats(0.01, 1.99)


def make(
    seed: int, *batch: int, m: int = 7, n: int = 6, r: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Random W, H, V >= 0; the scales of the factors vary by 0.1 to 10, a third of entries is 0."""
    rng = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> Tensor:
        x = torch.rand(*batch, *shape, generator=rng, dtype=torch.float64)
        scale = 10 ** (2 * torch.rand(*batch, 1, 1, generator=rng, dtype=torch.float64) - 1)
        return (scale * (1.5 * x - 0.5).clamp(min=0.0)).to(dtype)

    return factor(m, r), factor(r, n), factor(m, n)


@st.composite
def instances(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    return make(draw(SEEDS), m=draw(SIZES), n=draw(SIZES), r=draw(st.integers(1, 4)))


def loss(w: Tensor, h: Tensor, v: Tensor) -> Tensor:
    return (v - w @ h).square().sum((-2, -1)) / 2


def gradients(w: Tensor, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    residual = w @ h - v
    return residual @ h.mT, w.mT @ residual


def segment(w: Tensor, h: Tensor, v: Tensor, *, c: float = 1.0, bound: str = "frobenius") -> Tensor:
    """The cap without noise."""
    return segment_cap(w, h, gradients(w, h, v), loss(w, h, v), c=c, bound=bound)


def bounded_segment(w: Tensor, h: Tensor, v: Tensor, p: Tensor, q: Tensor, *, c: float) -> Tensor:
    """The cap if all that is known of the gradients is that they are no longer than p and q."""
    unknown = torch.zeros_like(w), torch.zeros_like(h)
    return segment_cap(w, h, unknown, loss(w, h, v), c=c, noise_lengths=(p, q))


def block(w: Tensor, h: Tensor, v: Tensor, *, bound: str) -> Tensor:
    return block_cap(h, bound=bound)


def norms(*parts: Tensor) -> list[Tensor]:
    return [torch.linalg.vector_norm(x, dim=(-2, -1)) for x in parts]


def squared_norm(x: Tensor) -> Tensor:
    return squared_norm_bound(x, bound="spectral")


def oracle(w: Tensor, h: Tensor, v: Tensor) -> Tensor:
    return line_oracle(w, h, v, gradients(w, h, v))


def tolerance(v: Tensor) -> Tensor:
    return 1e-28 * v.square().sum((-2, -1)) + 1e-300


def spread(eta: Tensor) -> Tensor:
    return eta[..., None, None]


def joint_step(w: Tensor, h: Tensor, v: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    g_w, g_h = gradients(w, h, v)
    return (w - spread(eta) * g_w).clamp(min=0.0), (h - spread(eta) * g_h).clamp(min=0.0)


def has_gradient(*gradient: Tensor) -> bool:
    return all(float(g.norm()) > 1e-6 for g in gradient)


# Bounds and gradients


@SETTINGS
@given(seed=SEEDS, p=SIZES, q=SIZES)
def test_every_bound_is_above_the_squared_spectral_norm(seed: int, p: int, q: int) -> None:
    x = torch.randn(3, p, q, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact = torch.linalg.matrix_norm(x, 2).square()
    torch.testing.assert_close(squared_norm(x), exact, rtol=1e-12, atol=0.0)
    for bound in BOUNDS:
        assert bool((squared_norm_bound(x, bound=bound) >= exact * (1 - 1e-12)).all())


@SETTINGS
@given(instance=instances(), seed=SEEDS)
def test_the_block_constant_is_a_lipschitz_constant(
    instance: tuple[Tensor, Tensor, Tensor], seed: int
) -> None:
    w, h, v = instance
    move = torch.randn(w.shape, generator=torch.Generator().manual_seed(seed), dtype=w.dtype)
    change = gradients(w + move, h, v)[0] - gradients(w, h, v)[0]
    assert change.norm() <= squared_norm(h) * move.norm() * (1 + 1e-12) + 1e-12


@SETTINGS
@given(instance=instances())
def test_the_block_constant_is_reached_along_the_top_eigenvector(
    instance: tuple[Tensor, Tensor, Tensor],
) -> None:
    w, h, v = instance
    move = torch.linalg.eigh(h @ h.mT).eigenvectors[:, -1].expand(w.shape)
    change = gradients(w + move, h, v)[0] - gradients(w, h, v)[0]
    scale = squared_norm(h) * move.norm()
    torch.testing.assert_close(change.norm(), scale, rtol=1e-9, atol=1e-9)


@SETTINGS
@given(instance=instances())
def test_no_joint_hessian_eigenvalue_exceeds_the_pointwise_bound(
    instance: tuple[Tensor, Tensor, Tensor],
) -> None:
    w, h, v = instance

    def flat_loss(x: Tensor) -> Tensor:
        return loss(x[: w.numel()].view_as(w), x[w.numel() :].view_as(h), v)

    hessian = torch.autograd.functional.hessian(flat_loss, torch.cat((w.flatten(), h.flatten())))
    top = torch.linalg.eigvalsh(hessian)[-1]
    bound = squared_norm(w) + squared_norm(h) + squared_norm(w @ h - v).sqrt()
    assert top <= bound * (1 + 1e-12) + 1e-12


# One block


@SETTINGS
@given(instance=instances(), c=C, bound=st.sampled_from(BOUNDS), projected=st.booleans())
def test_a_block_step_below_the_cap_decreases_by_the_certified_amount(
    instance: tuple[Tensor, Tensor, Tensor], c: float, bound: str, projected: bool
) -> None:
    w, h, v = instance
    eta = block_cap(h, c=c, bound=bound)
    stepped = w - eta.clamp(max=1e30) * gradients(w, h, v)[0]
    stepped = stepped.clamp(min=0.0) if projected else stepped
    decrease = (1 - c / 2) * (w - stepped).square().sum() / eta
    rounding = tolerance(v) + 1e-14 * (loss(w, h, v) + loss(w, h, v).sqrt() * v.norm())
    assert loss(stepped, h, v) <= loss(w, h, v) - decrease + rounding


@pytest.mark.parametrize(("c", "sign"), [(1.99, -1), (2.01, 1)])
@SETTINGS
@given(seed=SEEDS)
def test_the_block_cap_is_tight_along_the_top_eigenvector(c: float, sign: int, seed: int) -> None:
    w, h, _ = make(seed)
    h = h + 0.1
    solution = w @ h
    w = w + torch.linalg.eigh(h @ h.mT).eigenvectors[:, -1]
    eta = block_cap(h, c=1.0, bound="spectral") * c
    stepped = w - eta * gradients(w, h, solution)[0]
    assert torch.sign(loss(stepped, h, solution) - loss(w, h, solution)) == sign


def monte_carlo(
    seed: int, noise_std: float, eta: Tensor, *, projected: bool, num_samples: int = 40_000
) -> tuple[Tensor, Tensor, Tensor]:
    """W, H, V, and the losses after independent noisy steps of W."""
    w, h, v = make(seed)
    rng = torch.Generator().manual_seed(seed)
    noise = noise_std * torch.randn(num_samples, *w.shape, generator=rng, dtype=w.dtype)
    stepped = w - eta * (gradients(w, h, v)[0] + noise)
    return v, loss(w, h, v), loss(stepped.clamp(min=0.0) if projected else stepped, h, v)


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_of_noisy_steps_is_the_exact_one_step_formula(seed: int) -> None:
    w, h, v = make(seed)
    g = gradients(w, h, v)[0]
    noise_std = float(g.norm()) / 5
    eta = block_cap(h, bound="spectral")
    _, before, after = monte_carlo(seed, noise_std, eta, projected=False)
    noise = noise_std**2 * w.shape[0] * h.square().sum()
    exact = -eta * g.square().sum() + eta**2 / 2 * ((g @ h).square().sum() + noise)
    # five standard errors of the Monte-Carlo mean
    error = 5 * after.std() / math.sqrt(len(after))
    assert abs((after - before).mean() - exact) <= error


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_of_noisy_projected_steps_is_below_the_bound(seed: int) -> None:
    w, h, v = make(seed)
    g = gradients(w, h, v)[0]
    noise_std = float(g.norm()) / 5
    eta = block_cap(h, bound="spectral")
    _, before, after = monte_carlo(seed, noise_std, eta, projected=True)
    mapping = (w - (w - eta * g).clamp(min=0.0)) / eta
    noise = noise_std**2 * w.numel()
    # eta L = 1, so 1 - eta L / 2 = 1 / 2
    bound = before - eta / 4 * mapping.square().sum() + 1.5 * eta * noise
    assert after.mean() <= bound


@pytest.mark.parametrize(("factor", "sign"), [(0.9, -1), (1.1, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_the_mean_change_flips_its_sign_at_the_one_step_threshold(
    factor: float, sign: int, seed: int
) -> None:
    w, h, v = make(seed)
    g = gradients(w, h, v)[0]
    noise_std = float(g.norm()) / 5
    # E f+ - f = -eta ||G||^2 + eta^2/2 (||G H||^2 + s^2 m ||H||^2)
    noise = noise_std**2 * w.shape[0] * h.square().sum()
    eta = g.square().sum() / ((g @ h).square().sum() + noise)
    _, before, after = monte_carlo(seed, noise_std, 2 * factor * eta, projected=False)
    assert torch.sign(after.mean() - before) == sign


@SETTINGS
@given(instance=instances(), rho=st.floats(0.0, 10.0), c=C)
def test_a_cap_divided_by_one_plus_rho_keeps_the_expected_decrease_under_relative_noise(
    instance: tuple[Tensor, Tensor, Tensor], rho: float, c: float
) -> None:
    w, h, v = instance
    g = gradients(w, h, v)[0]
    lipschitz = squared_norm(h)
    eta = c / ((lipschitz + 1e-9) * (1 + rho))
    # the worst noise of this size: all of it along the top eigenvector of H H^T
    noise = rho * g.square().sum() * lipschitz
    change = -eta * g.square().sum() + eta**2 / 2 * ((g @ h).square().sum() + noise)
    assert change <= -eta * (1 - c / 2) * g.square().sum() * (1 - 1e-9) + 1e-12 * loss(w, h, v)


def test_a_projected_step_with_relative_noise_may_rise_in_expectation() -> None:
    w, h, v = torch.zeros(1, 1), torch.ones(1, 1), -torch.ones(1, 1)
    g = gradients(w, h, v)[0]
    eta = block_cap(h) / (1 + 4.0)
    # unbiased noise of +-2 at a KKT point with gradient 1: E||xi||^2 = 4 ||G||^2
    after = sum(loss((w - eta * (g + xi)).clamp(min=0.0), h, v) for xi in (-2.0, 2.0)) / 2
    assert after > loss(w, h, v)


@pytest.mark.parametrize("eta_l", [0.2, 1.0, 1.7])
def test_the_stationary_loss_is_the_predicted_one(eta_l: float) -> None:
    rng = torch.Generator().manual_seed(0)
    h = (
        torch.eye(3, 6, dtype=torch.float64)
        + torch.rand(3, 6, generator=rng, dtype=torch.float64) / 2
    )
    eta = block_cap(h, c=eta_l, bound="spectral")
    error = torch.zeros(5_000, 4, 3, dtype=torch.float64)
    for _ in range(int(8 / float(eta * torch.linalg.eigvalsh(h @ h.mT)[0]))):
        noise = torch.randn(error.shape, generator=rng, dtype=torch.float64)
        error = error - eta * (error @ (h @ h.mT) + noise)
    simulated = (error @ h).square().sum((-2, -1)).mean() / 2
    # (m s^2 eta / 2) sum_i 1 / (2 - eta lambda_i), m = 4 rows and noise of variance s^2 = 1
    predicted = 4 * eta / 2 * (1 / (2 - eta * torch.linalg.eigvalsh(h @ h.mT))).sum()
    torch.testing.assert_close(simulated, predicted, rtol=0.04, atol=0.0)


# Joint updates


@SETTINGS
@given(instance=instances(), c=C, bound=st.sampled_from(BOUNDS))
def test_a_step_below_the_segment_cap_decreases_by_the_certified_amount(
    instance: tuple[Tensor, Tensor, Tensor], c: float, bound: str
) -> None:
    w, h, v = instance
    eta = segment(w, h, v, c=c, bound=bound)
    stepped = joint_step(w, h, v, eta)
    moved = sum((x - y).square().sum() for x, y in zip((w, h), stepped, strict=True))
    rounding = tolerance(v) + 1e-14 * (loss(w, h, v) + loss(w, h, v).sqrt() * v.norm())
    assert loss(*stepped, v) <= loss(w, h, v) - (1 - c / 2) * moved / eta + rounding


def curvature_bound(
    eta: Tensor, w: Tensor, h: Tensor, v: Tensor, bound: str, p: Tensor, q: Tensor
) -> Any:
    a, b = (squared_norm_bound(x, bound=bound).sqrt() for x in (w, h))
    residual = (w @ h - v).norm()
    grown = (a + eta * p) ** 2 + (b + eta * q) ** 2
    return grown + residual + eta * (p * b + a * q) + eta**2 * p * q


@SETTINGS
@given(instance=instances(), c=C, bound=st.sampled_from(BOUNDS))
def test_the_segment_cap_solves_its_equation_from_below(
    instance: tuple[Tensor, Tensor, Tensor], c: float, bound: str
) -> None:
    w, h, v = instance
    eta = segment(w, h, v, c=c, bound=bound)
    p, q = (g.norm() for g in gradients(w, h, v))
    if eta < 1e30:
        assert eta * curvature_bound(eta, w, h, v, bound, p, q) <= c
        eta = eta * 1.0051 if bound != "spectral" else eta * 1.01
        assert eta * curvature_bound(eta, w, h, v, bound, p, q) > c


@SETTINGS
@given(instance=instances(), c=C, p=st.floats(0.0, 1e4), q=st.floats(0.0, 1e4))
def test_the_segment_cap_stays_certified_under_any_gradient_bounds(
    instance: tuple[Tensor, Tensor, Tensor], c: float, p: float, q: float
) -> None:
    w, h, v = instance
    v = v + 1e-3
    lengths = torch.tensor(p, dtype=w.dtype), torch.tensor(q, dtype=w.dtype)
    eta = bounded_segment(w, h, v, *lengths, c=c)
    if eta < 1e30:
        assert eta * curvature_bound(eta, w, h, v, "frobenius", *lengths) <= c


@SETTINGS
@given(seed=SEEDS)
def test_the_segment_cap_holds_for_every_noise_within_its_bounds(seed: int) -> None:
    w, h, v = make(seed, 16)
    rng = torch.Generator().manual_seed(seed)
    exact = gradients(w, h, v)
    noisy = [g * (1 + torch.randn(g.shape, generator=rng, dtype=g.dtype)) for g in exact]
    p, q = (1.5 * torch.linalg.vector_norm(g, dim=(-2, -1)) for g in noisy)
    eta = bounded_segment(w, h, v, p, q, c=1.9)
    stepped = [(x - spread(eta) * g).clamp(min=0.0) for x, g in zip((w, h), noisy, strict=True)]
    moves = [y - x for x, y in zip((w, h), stepped, strict=True)]
    linear = sum((g * d).sum((-2, -1)) for g, d in zip(exact, moves, strict=True))
    square = sum(d.square().sum((-2, -1)) for d in moves)
    before = loss(w, h, v)
    model = before + linear + 1.9 / (2 * eta) * square
    assert bool((loss(stepped[0], stepped[1], v) <= model + 1e-13 * before).all())


def count_rises(
    num_runs: int, num_steps: int, *, refresh_steps: int, scale: float = 1.0, seed: int = 0
) -> int:
    """Runs of projected noise-free steps (c = 1.9) in which the loss rises at least once."""
    w, h, v = make(seed, num_runs, m=8, n=7, r=3)
    w, h = scale * w, scale * h
    rises = torch.zeros(num_runs, dtype=torch.bool)
    before = loss(w, h, v)
    for step in range(num_steps):
        if step % refresh_steps == 0:
            eta = segment(w, h, v, c=1.9)
        w, h = joint_step(w, h, v, eta)
        after = loss(w, h, v)
        rises |= after > before + tolerance(v) + 1e-14 * before
        before = after
    return int(rises.sum())


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-2, 1.0, 3.0])
def test_a_refreshed_segment_cap_never_lets_the_loss_rise_in_2000_runs(scale: float) -> None:
    assert count_rises(2_000, 60, refresh_steps=1, scale=scale) == 0


@pytest.mark.slow
def test_a_refreshed_segment_cap_never_lets_the_loss_rise_in_10000_runs() -> None:
    assert count_rises(10_000, 200, refresh_steps=1, seed=1) == 0


def test_a_segment_cap_held_for_five_steps_lets_the_loss_rise() -> None:
    assert count_rises(400, 60, refresh_steps=5, scale=1e-2) > 0


def test_the_ball_cap_with_projection_needs_no_refresh() -> None:
    w, h, v = make(0, 500)
    radius_w, radius_h = (torch.linalg.vector_norm(x, dim=(-2, -1)) + 0.1 for x in (w, h))
    eta = joint_ball_cap(v, radius_w, radius_h, c=1.9)
    before = loss(w, h, v)
    for _ in range(60):
        g_w, g_h = gradients(w, h, v)
        w = project_ball(w - spread(eta) * g_w, radius_w)
        h = project_ball(h - spread(eta) * g_h, radius_h)
        after = loss(w, h, v)
        assert bool((after <= before + tolerance(v) + 1e-14 * before).all())
        before = after


@SETTINGS
@given(seed=SEEDS, p=SIZES, q=SIZES, radius=st.floats(0.1, 10.0))
def test_clip_then_scale_is_the_projection(seed: int, p: int, q: int, radius: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(p, q, generator=rng, dtype=torch.float64)
    nearest = project_ball(x, torch.tensor(radius, dtype=torch.float64))
    others = torch.randn(50, p, q, generator=rng, dtype=torch.float64).abs()
    length = torch.rand(50, 1, 1, generator=rng, dtype=torch.float64) * radius
    others = others / torch.linalg.vector_norm(others, dim=(-2, -1), keepdim=True) * length
    assert bool((nearest >= 0.0).all())
    assert nearest.norm() <= radius * (1 + 1e-15)
    # the variational inequality of a projection on a convex set
    assert bool((((x - nearest) * (others - nearest)).sum((-2, -1)) <= 1e-12).all())


def test_simultaneous_block_steps_raise_the_loss() -> None:
    w, h, v = make(0, 3_000)
    w, h = w + 1e-3, h + 1e-3
    g_w, g_h = gradients(w, h, v)
    eta_w = block_cap(h, bound="spectral")
    eta_h = block_cap(w, bound="spectral")
    stepped = (w - spread(eta_w) * g_w).clamp(min=0), (h - spread(eta_h) * g_h).clamp(min=0)
    assert int((loss(*stepped, v) > loss(w, h, v)).sum()) > 500


# The exact line search


@SETTINGS
@given(instance=instances(), eta=st.floats(0.0, 10.0))
def test_the_loss_along_the_step_is_the_quartic(
    instance: tuple[Tensor, Tensor, Tensor], eta: float
) -> None:
    w, h, v = instance
    residual, (g_w, g_h) = w @ h - v, gradients(w, h, v)
    a, b = g_w @ h + w @ g_h, g_w @ g_h
    terms = (
        loss(w, h, v),
        -eta * (residual * a).sum(),
        eta**2 * (a.square().sum() / 2 + (residual * b).sum()),
        -(eta**3) * (a * b).sum(),
        eta**4 * b.square().sum() / 2,
    )
    size = float(sum(term.abs() for term in terms))
    exact = loss(w - eta * g_w, h - eta * g_h, v)
    torch.testing.assert_close(sum(terms), exact, rtol=0.0, atol=1e-12 * size + 1e-300)


@SETTINGS
@given(seed=SEEDS, m=SIZES, n=SIZES, r=st.integers(1, 4))
def test_the_line_oracle_beats_a_dense_grid(seed: int, m: int, n: int, r: int) -> None:
    w, h, v = make(seed, 8, m=m, n=n, r=r)
    eta = oracle(w, h, v)
    g_w, g_h = gradients(w, h, v)
    reach = torch.where(eta > 0.0, eta, 1.0)
    grid = torch.cat((torch.zeros(1), torch.logspace(-3, 2, 1_000), torch.linspace(0, 3, 1_000)))
    steps = spread(grid.double()[:, None] * reach)
    on_grid = loss(w - steps * g_w, h - steps * g_h, v).amin(0)
    best = loss(w - spread(eta) * g_w, h - spread(eta) * g_h, v)
    assert bool((best <= on_grid + 1e-12 * loss(w, h, v)).all())


def test_the_line_oracle_finds_the_far_minimum() -> None:
    w, h = torch.tensor([[1.0]]), torch.tensor([[0.1]])
    for v in torch.linspace(-30.0, 30.0, 301):
        g_w, g_h = gradients(w, h, v.view(1, 1))
        eta = oracle(w, h, v.view(1, 1))
        grid = torch.linspace(0.0, 20.0, 20_001).double()[:, None, None]
        on_grid = loss(w - grid * g_w, h - grid * g_h, v.view(1, 1)).amin()
        best = loss(w - eta * g_w, h - eta * g_h, v.view(1, 1))
        assert best <= on_grid + 1e-5 * (1 + v * v)


def test_the_line_oracle_stays_where_the_gradient_vanishes() -> None:
    w, h, _ = make(0)
    w, h = w.round(), h.round()
    assert oracle(w, h, w @ h) == 0.0


# Batches, scales, errors

CAPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **{f"block, {bound}": partial(block, bound=bound) for bound in BOUNDS},
    "ball": lambda w, h, v: joint_ball_cap(v, *norms(w, h)),
    **{f"segment, {bound}": partial(segment, bound=bound) for bound in BOUNDS},
    "oracle": oracle,
}


@pytest.mark.parametrize("name", CAPS)
def test_a_batch_gives_what_a_loop_over_its_instances_gives(name: str) -> None:
    batch = make(3, 2, 5)
    together = CAPS[name](*batch)
    alone = [CAPS[name](*(x[i, j] for x in batch)) for i in range(2) for j in range(5)]
    assert together.shape == (2, 5)
    torch.testing.assert_close(together.flatten(), torch.stack(alone), rtol=1e-12, atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CAPS if name != "oracle"])
@pytest.mark.parametrize("k", [0.25, 0.5, 2.0, 4.0, 16.0])
def test_caps_scale_exactly_in_float32(name: str, k: float) -> None:
    w, h, v = make(4, 50, dtype=torch.float32)
    scaled = CAPS[name](k * w, k * h, k**2 * v)
    assert torch.equal(scaled * k**2, CAPS[name](w, h, v))


@pytest.mark.parametrize("name", CAPS)
@pytest.mark.parametrize("k", [0.3, 3.0])
def test_caps_scale_to_rounding_for_other_factors(name: str, k: float) -> None:
    w, h, v = make(4, 50, dtype=torch.float32)
    scaled = CAPS[name](k * w, k * h, k**2 * v)
    torch.testing.assert_close(scaled * k**2, CAPS[name](w, h, v), rtol=1e-4, atol=0.0)


def test_a_flat_loss_gets_a_finite_cap() -> None:
    zero = torch.zeros(2, 2)
    for eta in (block_cap(zero), segment(zero, zero, zero)):
        assert 1.0 < float(eta) < math.inf


def test_the_line_oracle_is_never_infinite() -> None:
    tiny = torch.full((2, 2), 1e-20)
    assert math.isfinite(oracle(tiny, tiny, torch.zeros(2, 2)))


ONE, NAN = torch.ones(2, 2), torch.full((2, 2), torch.nan)
NUMBER = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("`w` must be finite, got nan", lambda: segment(NAN, ONE, ONE)),
        ("`h` must be finite, got nan", lambda: segment(ONE, NAN, ONE)),
        (
            "`gradient_h` must be finite, got nan",
            lambda: segment_cap(ONE, ONE, (ONE, NAN), NUMBER),
        ),
        ("`loss` must be finite, got inf", lambda: segment_cap(ONE, ONE, (ONE, ONE), NUMBER / 0)),
        ("must have norms in the range", lambda: segment_cap(ONE * 1e30, ONE, (ONE, ONE), NUMBER)),
        ("`other` must be finite, got nan", lambda: block_cap(NAN)),
        ("`other` must have norms in the range", lambda: block_cap(ONE * 1e30)),
        ("`v` must be finite, got nan", lambda: joint_ball_cap(NAN, NUMBER, NUMBER)),
        (
            "`v`, `radius_w`, `radius_h` must have norms in the range",
            lambda: joint_ball_cap(ONE, 1e30 * NUMBER, NUMBER),
        ),
        ("`radius_w` must be finite", lambda: joint_ball_cap(ONE, NUMBER / 0, NUMBER)),
        ("`h` must be finite, got nan", lambda: oracle(ONE, NAN, ONE)),
        ("`bound` must be one of", lambda: block_cap(ONE, bound="power")),
    ],
)
def test_what_is_not_finite_or_overflows_is_named(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()

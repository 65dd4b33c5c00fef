import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrpilot.tasks.nmf.problem import NOISES
from lrpilot.tasks.nmf.task import NMFTask
from tests.running import through_file
from tests.tasks.nmf.builders import (
    ADDED,
    CAPPED,
    factors,
    make_task,
    padded_task,
    size_of,
)


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

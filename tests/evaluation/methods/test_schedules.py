import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LRScheduler

from lrpilot.evaluation.methods import schedules

Schedule = Callable[..., LRScheduler]
SCHEDULES: dict[str, Schedule] = {
    name: getattr(schedules, name)
    for name in (
        "constant",
        "step",
        "exponential",
        "linear",
        "cosine",
        "cosine_warmup",
        "cosine_restarts",
        "one_cycle",
        "wsd",
        "d2z",
        "polynomial",
    )
}
LR = 0.2


def lr_sequence(schedule: Schedule, total_steps: int, lr: float = LR) -> list[float]:
    """The learning rate of each of T steps, and the one after them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = schedule(optimizer, total_steps=total_steps)
    lrs = []
    for _ in range(total_steps):
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return [*lrs, float(optimizer.param_groups[0]["lr"])]


def cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def one_cycle_factor(t: int, total_steps: int, warmup_share: float) -> float:
    # torch's convention, on a schedule of T + 1 steps
    peak = warmup_share * (total_steps + 1) - 1
    if t <= peak:
        return cosine_between(1 / 25, 1.0, t / peak)
    return cosine_between(1.0, 1 / 250_000, (t - peak) / (total_steps - peak))


def wsd_factor(t: int, total_steps: int) -> float:
    if t + 1 < 0.05 * total_steps:
        return (t + 1) / (0.05 * total_steps)
    return min(1.0, (total_steps - t) / (0.2 * total_steps))


def cosine_warmup_factor(t: int, total_steps: int) -> float:
    if t + 1 < 0.1 * total_steps:
        return (t + 1) / (0.1 * total_steps)
    return cosine_between(1.0, 0.0, max(0.0, (t - 0.1 * total_steps) / (0.9 * total_steps)))


def d2z_factor(t: int, total_steps: int) -> float:
    if t + 1 < 0.1 * total_steps:
        return (t + 1) / (0.1 * total_steps)
    return min(1.0, (total_steps - t) / (0.9 * total_steps))


FACTORS: dict[str, Callable[[int, int], float]] = {
    "constant": lambda t, T: 1.0,
    "step": lambda t, T: 0.1 ** (t // math.ceil(T / 3)),
    "exponential": lambda t, T: 0.01 ** (t / T),
    "linear": lambda t, T: 1 - t / T,
    "cosine": lambda t, T: (1 + math.cos(math.pi * t / T)) / 2,
    "cosine_warmup": cosine_warmup_factor,
    "cosine_restarts": lambda t, T: cosine_between(
        1.0, 0.0, (t % math.ceil(T / 3)) / math.ceil(T / 3)
    ),
    "one_cycle": lambda t, T: one_cycle_factor(t, T, 0.3),
    "wsd": wsd_factor,
    "d2z": d2z_factor,
    "polynomial": lambda t, T: (1 - t / T) ** 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total_steps", [10, 60, 99, 300])
def test_lrs_follow_the_equation(name: str, total_steps: int) -> None:
    lrs = lr_sequence(SCHEDULES[name], total_steps)
    expected = [LR * FACTORS[name](t, total_steps) for t in range(total_steps)]

    # torch multiplies from step to step, which costs roundings
    np.testing.assert_allclose(lrs[:-1], expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "start", "middle", "end"),
    [
        ("constant", 1.0, 1.0, 1.0),
        ("step", 1.0, 0.1, 0.01),
        ("exponential", 1.0, 0.1, 0.01),
        ("linear", 1.0, 0.5, 0.0),
        ("cosine", 1.0, 0.5, 0.0),
        ("wsd", 1 / 15, 1.0, 0.0),
    ],
)
def test_factors_at_start_middle_and_after_the_end(
    name: str, start: float, middle: float, end: float
) -> None:
    lrs = lr_sequence(SCHEDULES[name], 300)
    # a step schedule drops to its last stretch at 200, and again only after the end
    last = lrs[299] if name == "step" else lrs[300]

    assert [lrs[0], lrs[150], last] == pytest.approx([LR * start, LR * middle, LR * end], abs=1e-12)


def test_cosine_restarts_restart_at_each_third() -> None:
    lrs = lr_sequence(schedules.cosine_restarts, 300)

    assert [lrs[t] for t in (0, 100, 200)] == [LR, LR, LR]
    assert [t for t in range(1, 300) if lrs[t] > lrs[t - 1]] == [100, 200]


def test_one_cycle_rises_to_its_peak_at_the_warmup_share_and_falls_after() -> None:
    # the peak of torch's schedule lies at the whole step 0.3 (T + 1) - 1 = 89
    lrs = lr_sequence(schedules.one_cycle, 299)

    assert lrs[0] == pytest.approx(LR / 25)
    assert lrs[89] == pytest.approx(LR)
    assert int(np.argmax(lrs)) == 89
    assert all(np.diff(lrs[:90]) > 0)
    assert all(np.diff(lrs[89:]) < 0)
    assert lrs[299] == pytest.approx(LR / 250_000)


def test_one_cycle_leaves_momentum_alone() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR, momentum=0.9)
    scheduler = schedules.one_cycle(optimizer, total_steps=5)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["momentum"] == 0.9


def test_step_takes_so_many_equal_drops() -> None:
    lrs = lr_sequence(partial(schedules.step, num_drops=3, gamma=0.5), 100)

    assert [t for t in range(1, 100) if lrs[t] < lrs[t - 1]] == [25, 50, 75]
    assert lrs[99] == pytest.approx(LR / 8)


def test_exponential_ends_at_the_final_factor() -> None:
    lrs = lr_sequence(partial(schedules.exponential, final_factor=0.5), 40)

    assert lrs[40] == pytest.approx(LR / 2)


@pytest.mark.parametrize("shares", [(0.0, 0.2), (0.05, 0.0), (0.0, 0.0)])
def test_wsd_can_do_without_warmup_or_decay(shares: tuple[float, float]) -> None:
    schedule = partial(schedules.wsd, warmup_share=shares[0], decay_share=shares[1])
    lrs = lr_sequence(schedule, 100)

    assert (lrs[0] == LR) == (shares[0] == 0.0)
    assert (lrs[99] == LR) == (shares[1] == 0.0)


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    total_steps=st.integers(1, 120),
    lr=st.floats(1e-6, 1e3),
)
def test_lrs_lie_between_zero_and_the_initial_lr_without_a_warning(
    name: str, total_steps: int, lr: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lrs = lr_sequence(SCHEDULES[name], total_steps, lr)

    assert all(0.0 <= value <= lr * (1 + 1e-12) for value in lrs)
    assert max(lrs[:-1]) > 0.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_single_step_trains_at_a_positive_lr(name: str) -> None:
    assert 0.0 < lr_sequence(SCHEDULES[name], 1)[0] <= LR


@pytest.mark.parametrize("name", SCHEDULES)
def test_parameter_groups_keep_their_ratio(name: str) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups: list[dict[str, Any]] = [
        {"params": [parameter], "lr": lr}
        for parameter, lr in zip(parameters, (0.1, 0.4), strict=True)
    ]
    optimizer = torch.optim.SGD(groups)
    scheduler = SCHEDULES[name](optimizer, total_steps=20)
    for _ in range(20):
        first, second = (float(group["lr"]) for group in optimizer.param_groups)
        assert second == pytest.approx(4 * first)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("total_steps", "share"), [(9, 0.1), (4, 0.2), (3, 0.25), (1, 0.5)])
def test_one_cycle_takes_a_warmup_of_a_single_step(total_steps: int, share: float) -> None:
    lrs = lr_sequence(partial(schedules.one_cycle, warmup_share=share), total_steps)

    assert all(0.0 < lr <= LR for lr in lrs)

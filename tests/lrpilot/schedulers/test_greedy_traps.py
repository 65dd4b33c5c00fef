"""The traps of Hugging Face's class: there in it and in "transformers", not in "robust"."""

import math
import random
from typing import Any

import pytest
from transformers.optimization import GreedyLR as HuggingFaceGreedyLR

from lrpilot.schedulers.base import idle_optimizer
from lrpilot.schedulers.greedy.scheduler import GreedyLR

NAN = math.nan
TRAPPED = ["Hugging Face", "transformers"]


def lrs_of(kind: str, losses: list[float], *, initial_lr: float = 0.1, **arguments: Any) -> Any:
    if kind != "Hugging Face":
        return GreedyLR.simulate(losses, initial_lr=initial_lr, semantics=kind, **arguments)
    optimizer = idle_optimizer(initial_lr)
    scheduler = HuggingFaceGreedyLR(optimizer, **arguments)
    lrs = [initial_lr]
    for loss in losses:
        scheduler.step(loss)
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


def noisy(num: int, *, start: float = 0.0, slope: float = 0.0, noise: float) -> list[float]:
    rng = random.Random(0)
    return [start + slope * step + rng.gauss(0.0, noise) for step in range(num)]


# ---- A: the lower bound is absolute and may lie above the learning rate

STUCK = [1.0] * 600


@pytest.mark.parametrize("kind", TRAPPED)
def test_a_small_lr_can_never_decrease(kind: str) -> None:
    assert lrs_of(kind, STUCK, initial_lr=5e-5) == [5e-5] * 601


def test_a_small_lr_decreases_in_robust() -> None:
    assert lrs_of("robust", STUCK, initial_lr=5e-5)[-1] < 0.5 * 5e-5


# ---- B: the upper bound is absolute, too

IMPROVING = [1000.0 - step for step in range(1000)]


@pytest.mark.parametrize("kind", TRAPPED)
def test_an_improving_loss_drives_any_lr_to_one(kind: str) -> None:
    assert lrs_of(kind, IMPROVING, initial_lr=1e-3)[-1] == pytest.approx(0.102, rel=0.01)
    assert lrs_of(kind, IMPROVING * 3, initial_lr=0.05)[1000] == 1.0


def test_an_improving_loss_stays_within_the_factor_in_robust() -> None:
    lrs = lrs_of("robust", [1e5 - step for step in range(5000)], initial_lr=1e-3)
    assert max(lrs) == lrs[-1] == 1e-3 * 10.0


# ---- C: eps swallows the changes of small learning rates


@pytest.mark.parametrize("kind", TRAPPED)
def test_a_tiny_lr_never_shrinks(kind: str) -> None:
    assert lrs_of(kind, STUCK, initial_lr=1e-7, min_lr=0.0) == [1e-7] * 601


def test_a_tiny_lr_shrinks_in_robust() -> None:
    assert lrs_of("robust", STUCK, initial_lr=1e-7)[-1] < 0.5e-7


# ---- D: one lucky loss is the best for ever

LUCKY = [8.0, 0.0, *(5.0 - 0.01 * step for step in range(400))]


@pytest.mark.parametrize("kind", TRAPPED)
def test_after_one_low_spike_a_steady_fall_counts_as_bad(kind: str) -> None:
    lrs = lrs_of(kind, LUCKY)
    assert lrs[-1] < 0.2 * 0.1
    assert max(lrs) == 0.1


@pytest.mark.parametrize("spike", [0.0, -1e30, 1e30])
def test_after_one_spike_a_steady_fall_raises_in_robust(spike: float) -> None:
    lrs = lrs_of("robust", [8.0, spike, *LUCKY[2:]])
    assert lrs == sorted(lrs)
    assert lrs[-1] > 0.2


# ---- E: NaN is one more bad call


@pytest.mark.parametrize("kind", TRAPPED)
def test_ten_nans_change_nothing(kind: str) -> None:
    assert lrs_of(kind, [NAN] * 10) == [0.1] * 11


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_one_loss_that_is_not_finite_lowers_at_once_in_robust(value: float) -> None:
    assert lrs_of("robust", [1.0, value, 1.0]) == [0.1, 0.1, 0.1 * 0.9, 0.1 * 0.9]


# ---- F: a relative threshold turns around below zero

FLAT = [-1.0] * 300


@pytest.mark.parametrize("kind", TRAPPED)
def test_a_flat_negative_metric_counts_as_improving(kind: str) -> None:
    lrs = lrs_of(kind, FLAT, threshold_mode="rel", threshold=1e-3)
    assert lrs[-1] > 0.3


@pytest.mark.parametrize("kind", ["robust", "paper"])
@pytest.mark.parametrize("value", [-1.0, 1.0, 0.0])
def test_a_flat_metric_lowers_whatever_its_sign(kind: str, value: float) -> None:
    lrs = lrs_of(kind, [value] * 300, threshold_mode="rel", threshold=1e-3)
    assert lrs == sorted(lrs, reverse=True)
    assert lrs[-1] < 0.07


# ---- G: a plateau lowers, down to where

NOISE = noisy(6000, start=1.0, noise=0.3)


@pytest.mark.parametrize("kind", TRAPPED)
def test_stationary_noise_sends_the_lr_to_its_absolute_floor(kind: str) -> None:
    assert lrs_of(kind, NOISE)[-1] == pytest.approx(1e-3)


def test_stationary_noise_ends_at_the_relative_floor_in_robust() -> None:
    lrs = lrs_of("robust", NOISE)
    assert lrs == sorted(lrs, reverse=True)
    assert lrs[-1] == 0.1 * 0.01


def test_after_the_floor_a_fall_raises_again_in_robust() -> None:
    lrs = lrs_of("robust", [*NOISE, *noisy(1000, start=1.0, slope=-0.02, noise=0.3)])
    assert lrs[-1] > 5.0 * lrs[6000]


# ---- H: the direction depends on the noise

SLOPE = {"start": 20.0, "slope": -0.02}


@pytest.mark.parametrize("kind", TRAPPED)
def test_the_direction_turns_around_with_the_noise(kind: str) -> None:
    bounds = {"min_lr": 1e-6, "max_lr": 1e3}
    assert lrs_of(kind, noisy(800, **SLOPE, noise=0.001), **bounds)[-1] > 1.0
    assert lrs_of(kind, noisy(800, **SLOPE, noise=0.2), **bounds)[-1] < 0.05


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.01, 0.1, 0.2, 0.3])
def test_the_direction_is_the_same_at_every_noise_in_robust(noise: float) -> None:
    lrs = lrs_of("robust", noisy(800, **SLOPE, noise=noise))
    assert lrs == sorted(lrs)
    assert lrs[-1] > 0.5


# ---- I: settings under which nothing can change


@pytest.mark.parametrize("kind", TRAPPED)
@pytest.mark.parametrize("metric", [1.0, -1.0], ids=["flat", "improving"])
def test_ten_evaluations_can_never_change_the_lr(kind: str, metric: float) -> None:
    losses = [5.0 + (metric - 1.0) * step for step in range(10)]
    assert lrs_of(kind, losses) == [0.1] * 11


@pytest.mark.parametrize("kind", ["transformers", "paper", "robust"])
def test_settings_that_can_change_nothing_are_refused_before_training(kind: str) -> None:
    scheduler = GreedyLR(idle_optimizer(0.1), semantics=kind)
    with pytest.raises(ValueError, match=r"`total_steps` must be at least \d+00 .* lower `"):
        scheduler.check_reachable(1000, eval_interval=100)


def test_ten_evaluations_change_the_lr_after_the_cure_in_robust() -> None:
    losses = [5.0 - step for step in range(10)]
    assert lrs_of("robust", losses, window_size=10)[-1] == 0.1 / 0.9


# ---- J: NaN in a running sum stays there

FALL_AFTER_NAN = [1000.0, NAN, *(999.0 - step for step in range(300))]


@pytest.mark.parametrize("kind", TRAPPED)
def test_one_nan_poisons_the_smoothing_for_good(kind: str) -> None:
    lrs = lrs_of(kind, FALL_AFTER_NAN, smooth=True, window_size=5)
    assert lrs[-1] < 0.03


@pytest.mark.parametrize(("kind", "arguments"), [("robust", {}), ("paper", {"smooth": True})])
def test_after_a_nan_a_fall_still_raises(kind: str, arguments: dict[str, Any]) -> None:
    lrs = lrs_of(kind, FALL_AFTER_NAN, **arguments)
    assert lrs[3:] == sorted(lrs[3:])
    assert lrs[-1] > 0.15

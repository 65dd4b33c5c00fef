"""Features that depend on the steps of a run alone, whenever its policy decides."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lrpilot import ActionSpec, ClockSpec, Controller, ObservationSpec, PolicyLR
from lrpilot.policy.parameter_sample import ParameterSample
from tests.observing import named, observer_of
from tests.policies import random_policy
from tests.running import through_file

RECENT = ("recent_loss", "recent_lr", "recent_movement")
STILL = ActionSpec(anchor="constant", start_factor=1.0)


class Training:
    """Noisy gradient descent on a quadratic at a constant learning rate."""

    def __init__(self, *, interval_steps: int, clock: ClockSpec | None = None) -> None:
        self.weights = torch.linspace(1.0, 2.0, 50)
        self.generator = torch.Generator().manual_seed(0)
        self.controller = Controller(
            ObservationSpec(RECENT),
            STILL,
            ParameterSample([self.weights], 50),
            interval_steps=interval_steps,
            clock=clock,
        )
        self.observed: dict[int, NDArray[np.float32]] = {}

    def train(self, num_steps: int) -> "Training":
        for _ in range(num_steps):
            loss = self.weights.square().mean() + 0.5
            self.weights *= 0.999
            self.weights += 0.01 * torch.randn(50, generator=self.generator)
            if self.controller.step(float(loss)):
                self.observed[self.controller.num_steps] = self.controller.close_interval()
                self.controller.act(0.0)
        return self


@pytest.mark.parametrize("feature", range(len(ObservationSpec(RECENT).names)))
def test_a_feature_is_the_same_whenever_decisions_are_due(feature: int) -> None:
    """At step 1200 of one training, decisions every 5, 20 and 300 steps see the same number."""
    values = {
        interval: Training(interval_steps=interval).train(1200).observed[1200][feature]
        for interval in (5, 20, 300)
    }
    assert values[5] == pytest.approx(values[300], abs=1e-6)
    assert values[20] == pytest.approx(values[300], abs=1e-6)


def test_the_features_of_a_training_differ_from_zero() -> None:
    observed = dict(
        zip(
            ObservationSpec(RECENT).names,
            Training(interval_steps=20).train(1200).observed[1200].tolist(),
            strict=True,
        )
    )
    assert [name for name, value in observed.items() if value == 0.0] == ["log_lr", "lr_trend"]


def of_losses(losses: list[float]) -> dict[str, float]:
    observer = observer_of(ObservationSpec(("recent_loss",)), [])
    for loss in losses:
        observer.add_loss(loss)
    return named(observer)


def test_the_level_is_the_bias_corrected_average_of_sixteen_steps() -> None:
    losses = [4.0, 2.0, 1.0]
    weights = [(15 / 16) ** k for k in (2, 1, 0)]
    mean = sum(w * x / 4.0 for w, x in zip(weights, losses, strict=True)) / sum(weights)
    assert of_losses(losses)["recent_log_loss"] == pytest.approx(math.log(mean) / 2, rel=1e-6)


def test_the_fast_change_compares_averages_of_four_and_sixteen_steps() -> None:
    losses = [4.0, 2.0, 1.0]

    def average(decay: float) -> float:
        weights = [decay**k for k in (2, 1, 0)]
        return sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)

    change = math.log(average(3 / 4) / average(15 / 16))
    assert of_losses(losses)["fast_change"] == pytest.approx(math.asinh(10 * change) / 2, rel=1e-6)


@pytest.mark.parametrize("power", [0.1, 0.5])
def test_the_slow_change_of_a_power_law_is_the_same_at_any_step(power: float) -> None:
    def slow_change(num_steps: int) -> float:
        return of_losses([t**-power for t in range(1, num_steps + 1)])["slow_change"]

    # the mean of t^-p weighted by t is t^-p / (1 - p / 2)
    expected = math.asinh(10 * math.log(1 - power / 2)) / 2
    assert slow_change(1000) == pytest.approx(expected, abs=0.05)
    assert slow_change(10_000) == pytest.approx(expected, abs=0.01)


def test_the_noise_is_that_of_the_losses_whatever_their_trend() -> None:
    rng = np.random.default_rng(0)
    losses = [10.0, *(10.0 - 0.005 * t + rng.normal(0.0, 0.5) for t in range(1000))]
    values = np.array([of_losses(losses[: 500 + 20 * k])["recent_noise"] for k in range(25)])
    level = np.array([10.0 - 0.005 * (500 + 20 * k) for k in range(25)])
    noise = 10 ** (2 * (values - 1)) * level
    assert noise.mean() == pytest.approx(0.5, rel=0.1)


def test_significance_of_independent_losses_has_a_standard_deviation_of_about_one() -> None:
    rng = np.random.default_rng(0)
    rows = [of_losses([1.0, *rng.normal(1.0, 0.1, 200)]) for _ in range(300)]
    for name in ("fast_significance", "slow_significance"):
        z = np.sinh([2 * row[name] for row in rows])
        assert 0.7 < z.std() < 1.3  # the noise is estimated from the same losses


def test_the_trend_of_the_learning_rate_is_over_its_mean_weighted_by_the_step() -> None:
    training = Training(interval_steps=5)
    training.train(5)
    training.controller.act(1.0)
    training.train(5)
    weights = np.arange(1, 11)
    factors = np.repeat([1.0, math.e], 5)
    mean = np.average(np.log10(factors), weights=weights)
    index = ObservationSpec(RECENT).names.index("lr_trend")
    assert training.observed[10][index] == pytest.approx(np.log10(math.e) - mean, rel=1e-6)


def test_movement_is_that_of_the_last_four_steps() -> None:
    training = Training(interval_steps=20)
    training.train(16)
    before = training.weights.clone()
    training.train(4)
    moved = (training.weights - before).norm() / training.weights.norm()
    index = ObservationSpec(RECENT).names.index("recent_displacement")
    assert training.observed[20][index] == pytest.approx(2 + math.log10(moved), rel=1e-5)


def test_the_cosine_is_that_of_both_halves() -> None:
    training = Training(interval_steps=20)
    marks = []
    for num_steps in (16, 2, 2):
        training.train(num_steps)
        marks.append(training.weights.clone())
    cosine = torch.cosine_similarity(marks[1] - marks[0], marks[2] - marks[1], dim=0)
    index = ObservationSpec(RECENT).names.index("recent_cosine")
    assert training.observed[20][index] == pytest.approx(float(cosine), rel=1e-4)


def test_intervals_shorter_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`interval_steps` must be at least 5 .*, got 4"):
        Training(interval_steps=4)


def test_decisions_come_as_early_in_a_long_run_as_in_a_short_one() -> None:
    clock = ClockSpec(num_decisions=40, growth=0.25, least_interval=5)
    early = [5, 10, 15, 20, 25, 31, 38]
    assert clock.decision_steps(2000)[:7] == clock.decision_steps(10_000)[:7] == early
    assert clock.decision_steps(100) == list(range(5, 100, 5))


def test_a_controller_decides_when_the_clock_says() -> None:
    clock = ClockSpec(num_decisions=40, growth=0.25, least_interval=5)
    training = Training(interval_steps=clock.interval_steps(1000), clock=clock).train(999)
    assert list(training.observed) == clock.decision_steps(1000)


def _spiked(loss: float) -> float:
    return math.nan if loss < 0.9 else loss


@pytest.mark.parametrize("spoil", [_spiked, lambda loss: loss * 1e30], ids=["nan", "huge"])
def test_features_of_a_broken_run_are_finite(spoil: Callable[[float], float]) -> None:
    observer = observer_of(ObservationSpec(("recent_loss",)), [])
    values = named(observer)
    for loss in np.linspace(1.0, 0.5, 40):
        observer.add_loss(spoil(float(loss)))
        values = named(observer)
        assert all(abs(value) <= 5.0 for value in values.values())


def test_a_scheduler_goes_on_from_a_state_in_the_middle_of_a_window() -> None:
    def scheduler() -> tuple[torch.nn.Parameter, Any, PolicyLR]:
        weight = torch.nn.Parameter(torch.linspace(1.0, 2.0, 30))
        optimizer = torch.optim.SGD([weight], lr=0.05)
        clock = ClockSpec(num_decisions=10, growth=0.25, least_interval=5)
        policy = random_policy(groups=("progress", *RECENT), clock=clock)
        return weight, optimizer, PolicyLR(optimizer, policy, total_steps=60)

    def train(weight: torch.nn.Parameter, optimizer: Any, lr: PolicyLR, num: int) -> list[float]:
        lrs = []
        for _ in range(num):
            optimizer.zero_grad()
            loss = weight.square().mean()
            loss.backward()
            optimizer.step()
            lr.step(loss)
            lrs.append(optimizer.param_groups[0]["lr"])
        return lrs

    expected = train(*scheduler(), 60)
    assert len(set(expected)) > 5
    for num_steps in (7, 8, 9):
        broken = scheduler()
        train(*broken, num_steps)
        resumed = scheduler()
        resumed[0].data.copy_(broken[0].data)
        resumed[1].load_state_dict(broken[1].state_dict())
        resumed[2].load_state_dict(through_file(broken[2].state_dict()))
        assert train(*resumed, 60 - num_steps) == expected[num_steps:]

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lrpilot.schedulers.guard.spike_detector import SpikeDetector
from tests.lrpilot.schedulers.guards import noise

NOISES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "normal 5 %": lambda rng, n: 1.0 + 0.05 * rng.normal(size=n),
    "normal 30 %": lambda rng, n: 1.0 + 0.3 * rng.normal(size=n),
    "normal around 0": lambda rng, n: rng.normal(size=n),
    "negative": lambda rng, n: -100.0 + 5.0 * rng.normal(size=n),
    "lognormal 30 %": lambda rng, n: np.exp(0.3 * rng.normal(size=n)),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "falling": lambda rng, n: np.exp(0.2 * rng.normal(size=n) - np.arange(n) / 1000.0),
    "wave": lambda rng, n: 2.0 + np.sin(np.arange(n) / 50.0) + 0.1 * rng.normal(size=n),
    "sometimes 0": lambda rng, n: rng.exponential(size=n) * (rng.random(n) < 0.3),
    "zero": lambda rng, n: np.zeros(n),
}


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", NOISES)
def test_pure_noise_is_no_spike(name: str, scale: float) -> None:
    losses = NOISES[name](np.random.default_rng(1), 10_000) * scale
    detector = SpikeDetector()
    # the first losses of heavy noise may look like a spike
    assert sum([detector.is_spike(loss) for loss in losses.tolist()]) <= 1


@pytest.mark.parametrize(("deviation", "most"), [(0.1, 0), (0.3, 2), (0.5, 10)])
def test_beginnings_of_pure_noise_are_rarely_spikes(deviation: float, most: int) -> None:
    num_alarms = 0
    for seed in range(1000):
        detector = SpikeDetector()
        num_alarms += any([detector.is_spike(x) for x in noise(50, deviation=deviation, seed=seed)])
    assert num_alarms <= most


@pytest.mark.parametrize(("deviation", "ratio"), [(0.02, 1.6), (0.1, 2.5), (0.3, 8.0)])
@pytest.mark.parametrize("level", [1.0, 1e-5, 1e5])
def test_a_loss_that_stands_out_of_the_noise_is_a_spike(
    deviation: float, ratio: float, level: float
) -> None:
    detector = SpikeDetector()
    assert not any([detector.is_spike(level * x) for x in noise(500, deviation=deviation)])
    assert detector.is_spike(2.0 * ratio * level)


@pytest.mark.parametrize("growth", [1.3, 2.0, 10.0, 1e3])
def test_a_loss_that_explodes_from_the_first_step_is_a_spike(growth: float) -> None:
    detector = SpikeDetector()
    assert any([detector.is_spike(growth**step) for step in range(40)])


def test_a_negative_loss_that_jumps_up_is_a_spike() -> None:
    detector = SpikeDetector()
    assert not any([detector.is_spike(-10.0 + 0.1 * x) for x in noise(200)])
    assert detector.is_spike(0.0)


@pytest.mark.parametrize("ratio", [2.0, 10.0])
def test_a_new_level_of_the_loss_becomes_the_usual_one(ratio: float) -> None:
    detector = SpikeDetector()
    for loss in noise(200, deviation=0.05):
        detector.is_spike(loss)
    spikes = [detector.is_spike(ratio * loss) for loss in noise(500, deviation=0.05)]
    assert spikes[0]
    assert not any(spikes[300:])


@pytest.mark.parametrize("loss", [1e30, -1e30, 1.7e308, -1.7e308, 5e-324, 0.0])
def test_a_detector_survives_extreme_losses(loss: float) -> None:
    detector = SpikeDetector()
    for value in [*noise(20), loss, *noise(20), loss, loss, *noise(20)]:
        detector.is_spike(value)
    assert all(map(math.isfinite, (detector.mean, detector.scale, detector.deviation)))

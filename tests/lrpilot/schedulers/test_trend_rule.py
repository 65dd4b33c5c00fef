import math
import random
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrpilot.schedulers.greedy.arguments import DEFAULTS
from lrpilot.schedulers.greedy.trend import TrendRule, largest_z, standard_error

NAMES = (
    "mode",
    "patience",
    "threshold",
    "threshold_mode",
    "cooldown",
    "warmup",
    "window_size",
    "significance",
)


def rule_of(**arguments: Any) -> TrendRule:
    return TrendRule(DEFAULTS["robust"] | arguments)


def verdicts(rule: TrendRule, losses: list[float]) -> list[tuple[int, int, str]]:
    """(call, direction, rule) of every move."""
    found = []
    for call, loss in enumerate(losses, 1):
        direction = rule.decide(loss)
        if direction:
            found.append((call, direction, rule.reason[0]))
    return found


def noise(kind: str, seed: int) -> Iterator[float]:
    rng = random.Random(seed)
    draw: dict[str, Callable[[], float]] = {
        "gauss": lambda: rng.gauss(0.0, 1.0),
        "laplace": lambda: rng.expovariate(1.0) - rng.expovariate(1.0),
        "uniform": lambda: rng.uniform(-1.0, 1.0),
        "cauchy": lambda: math.tan(math.pi * (rng.random() - 0.5)),
    }
    while True:
        yield draw[kind]()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gauss", "laplace", "uniform", "cauchy"])
@pytest.mark.parametrize("level", [1e-3, 1.0, 1e3])
def test_pure_noise_raises_at_most_once_in_ten_thousand_calls(kind: str, level: float) -> None:
    for seed in range(8):
        source = noise(kind, seed)
        rule = rule_of()
        losses = [1.0 + level * next(source) for _ in range(10_000)]
        assert sum(direction > 0 for _, direction, _ in verdicts(rule, losses)) <= 1


def test_noise_that_resembles_its_neighbour_raises_at_most_twice_in_ten_thousand_calls() -> None:
    for seed in range(20):
        source, value, losses = noise("gauss", seed), 0.0, []
        for _ in range(10_000):
            value = 0.5 * value + next(source)
            losses.append(value)
        assert sum(direction > 0 for _, direction, _ in verdicts(rule_of(), losses)) <= 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=12, max_size=25))
def test_the_score_is_mann_kendalls_on_all_pairs(values: list[int]) -> None:
    rule = rule_of(window_size=12, patience=100, threshold=1e9)
    verdicts(rule, [float(value) for value in values])
    expected = sum((b > a) - (b < a) for a, b in combinations(values, 2))
    assert rule.state_dict()["score"] == expected


def test_the_standard_error_is_that_of_all_orders() -> None:
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    scores = [sum((b > a) - (b < a) for a, b in combinations(order, 2)) for order in orders]
    assert standard_error(3) == pytest.approx(math.sqrt(sum(s * s for s in scores) / 6))


def test_a_single_loss_has_no_slope() -> None:
    assert largest_z(1) == 0.0


def test_a_fall_raises_as_soon_as_a_window_is_there() -> None:
    falling = [100.0 - step for step in range(95)]
    assert verdicts(rule_of(), falling) == [(40, 1, "fall"), (80, 1, "fall")]


def test_a_rise_lowers_without_patience() -> None:
    rising = [float(step) for step in range(45)]
    assert verdicts(rule_of(patience=1000), rising) == [(40, -1, "rise")]


def test_a_plateau_lowers_after_window_and_patience() -> None:
    assert verdicts(rule_of(), [1.0] * 125) == [(60, -1, "plateau"), (120, -1, "plateau")]


def test_in_max_mode_a_rise_raises() -> None:
    rising = [float(step) for step in range(45)]
    assert verdicts(rule_of(mode="max"), rising) == [(40, 1, "fall")]


def test_the_window_of_twenty_calls_or_more_is_averaged_in_blocks() -> None:
    rule = rule_of(window_size=60)
    verdicts(rule, [1.0, 2.0, 6.0, 1.0])
    assert rule.state_dict()["block_means"] == [3.0]


@pytest.mark.parametrize("window_size", [10, 19, 20, 39, 40, 41, 59, 60, 99, 1000])
def test_the_first_verdict_comes_at_the_end_of_the_window(window_size: int) -> None:
    rule = rule_of(window_size=window_size)
    ((call, *_),) = verdicts(rule, [-float(step) for step in range(rule.calls_per_move)])
    assert window_size <= call < window_size + max(1, window_size // 20)


@pytest.mark.parametrize(
    ("threshold_mode", "threshold", "moves"),
    [
        ("rel", 0.01, "fall"),
        ("rel", 0.05, "plateau"),
        ("abs", 2.0, "fall"),
        ("abs", 4.0, "plateau"),
    ],
)
def test_a_fall_below_the_threshold_is_a_plateau(
    threshold_mode: str, threshold: float, moves: str
) -> None:
    rule = rule_of(threshold_mode=threshold_mode, threshold=threshold)
    losses = [100.0 - 0.1 * step for step in range(60)]
    assert verdicts(rule, losses)[0][2] == moves


def test_rounding_of_a_constant_loss_is_no_trend() -> None:
    losses = [1.0 + 1e-9 * step for step in range(60)]
    assert verdicts(rule_of(), losses) == [(60, -1, "plateau")]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_starts_a_new_window(bad: float) -> None:
    losses = [10.0 + step for step in range(30)] + [bad] + [100.0 - step for step in range(40)]
    assert verdicts(rule_of(), losses) == [(31, -1, "not finite"), (71, 1, "fall")]


@pytest.mark.slow
@pytest.mark.parametrize("spike", [1e30, -1e30, 1.7e308, 0.0])
@pytest.mark.parametrize("position", [0, 20, 39])
def test_a_spike_anywhere_does_not_hide_a_fall(spike: float, position: int) -> None:
    losses = [100.0 - step for step in range(40)]
    losses[position] = spike
    assert verdicts(rule_of(), losses) == [(40, 1, "fall")]


def test_huge_losses_are_judged_like_others() -> None:
    losses = [1.7e308 - 1e306 * step for step in range(80)]
    assert verdicts(rule_of(threshold=0.0), losses)[-1][1:] == (1, "fall")


def test_warmup_keeps_raising_whatever_the_losses() -> None:
    rule = rule_of(warmup=3)
    losses = [100.0 - step for step in range(40)] + [1e6] * 10
    assert verdicts(rule, losses) == [(40, 1, "fall"), *[(k, 1, "warmup") for k in (41, 42, 43)]]


def test_cooldown_keeps_lowering_whatever_the_losses() -> None:
    rule = rule_of(cooldown=2)
    losses = [float(step) for step in range(40)] + [-1e6, -2e6, -3e6]
    assert verdicts(rule, losses) == [(40, -1, "rise"), *[(k, -1, "cooldown") for k in (41, 42)]]


def test_a_nan_ends_the_warmup() -> None:
    rule = rule_of(warmup=3)
    losses = [100.0 - step for step in range(40)] + [1.0, math.nan, 1.0, 1.0]
    assert verdicts(rule, losses)[1:] == [(41, 1, "warmup"), (42, -1, "not finite")]


@pytest.mark.parametrize("cut", [1, 39, 40, 41, 75])
def test_a_loaded_state_continues_exactly(cut: int) -> None:
    source = noise("gauss", 1)
    losses = [5.0 - 0.02 * step + next(source) for step in range(500)]
    whole, resumed = rule_of(warmup=2), rule_of(warmup=2)
    verdicts(whole, losses[:cut])
    resumed.load_state_dict(whole.state_dict())
    assert verdicts(resumed, losses[cut:]) == verdicts(whole, losses[cut:])
    assert resumed.state_dict() == whole.state_dict()

import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrpilot import ControlSettings
from lrpilot.loss import DIVERGENCE_FACTOR
from lrpilot.policy.brake import Brake
from tests.running import through_file

LARGEST = 1.7e308


def alarms(losses: list[float], brake: Brake | None = None) -> dict[int, str]:
    """The rule of each alarm by its step."""
    brake = brake or Brake()
    rules = {step: brake.update(loss) for step, loss in enumerate(losses)}
    return {step: rule for step, rule in rules.items() if rule}


def noisy(num: int, spread: float, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [math.exp(rng.gauss(0.0, spread)) for _ in range(num)]


# ---- alarms


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e3])
@pytest.mark.parametrize("growth", [1.1, 1.5, 10.0, 1e6])
def test_an_exploding_loss_raises_an_alarm_on_every_scale(scale: float, growth: float) -> None:
    losses = [scale * (1.0 + 0.1 * math.sin(step)) for step in range(150)]
    losses += [scale * growth**step for step in range(1, 50)]
    assert 150 <= min(alarms(losses)) <= 150 + max(4.0, math.log(60.0) / math.log(growth))


def test_a_run_that_explodes_from_its_first_step_is_no_scale_of_its_own() -> None:
    assert alarms([1.0, 1e3, 1e6, 1e9])[3] == "divergence"
    assert "divergence" in alarms([1.0] + [100.0] * 8).values()


def test_a_slow_rise_to_ten_times_the_first_losses_is_a_divergence() -> None:
    found = alarms([2.0 * 1.001**step for step in range(3000)])
    first = min(found)
    assert found[first] == "divergence"
    assert 2.0 * 1.001**first == pytest.approx(2.0 * DIVERGENCE_FACTOR, rel=0.02)


def test_a_sudden_rise_over_the_recent_past_is_an_explosion_though_the_first_losses_were_high() -> (
    None
):
    losses = [10.0 * 0.99**step for step in range(600)] + [12.0] * 20
    found = alarms(losses)
    assert found[min(found)] == "explosion"
    assert min(found) >= 600


def test_a_jump_to_three_times_the_recent_losses_and_twice_the_first_is_an_alarm_at_the_fifth() -> (
    None
):
    falling = [2.3 * 0.99**step for step in range(100)]
    assert alarms([*falling, *[4.8] * 4]) == {}
    assert alarms([*falling, *[4.8] * 5]) == {104: "jump"}
    # below twice the first losses, or three times the recent ones
    assert alarms([*falling, *[4.2] * 50]) == {}
    assert alarms([2.3] * 100 + [6.0] * 8) == {}


def test_a_jump_holds_the_weights_until_five_losses_agree() -> None:
    brake = Brake()
    alarms([2.3 * 0.99**step for step in range(100)], brake)
    reliefs = []
    for loss in [6.0, 6.0, 6.0, 6.0, 6.0, 1.5, 6.0, 1.5]:
        brake.update(loss)
        reliefs.append(brake.relief)
    assert reliefs[:4] == [0.0] * 4
    assert 0.5 < reliefs[4] < 1.0
    assert brake.num_alarms == 1
    # a single one, among others
    assert reliefs[6] == 0.0
    assert reliefs[7] == 1.0


def test_a_jump_that_stays_raises_one_alarm() -> None:
    falling = [2.3 * 0.99**step for step in range(100)]
    assert list(alarms([*falling, *[5.0] * 500]).values()) == ["jump"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_an_alarm_at_once(value: float) -> None:
    assert alarms([value]) == {0: "nan"}
    assert alarms([1.0] * 5 + [value, 1.0]) == {5: "nan"}


def test_a_loss_that_stays_high_raises_one_alarm() -> None:
    assert len(alarms([1.0] * 50 + [30.0] * 500)) == 1


def test_a_loss_that_goes_on_rising_raises_further_alarms() -> None:
    assert len(alarms([1.0] * 50 + [30.0 * 1.2**step for step in range(60)])) > 5


def test_an_explosion_after_a_recovery_is_another_alarm() -> None:
    found = alarms([1.0] * 50 + [100.0] * 10 + [1.0] * 50 + [100.0] * 10)
    assert len(found) == 2
    assert max(found) > 110


# ---- what blinds it


@pytest.mark.parametrize("first", [1e300, LARGEST, -LARGEST])
@pytest.mark.parametrize("num_first", [1, 2])
def test_a_huge_first_loss_does_not_blind_it(first: float, num_first: int) -> None:
    assert alarms([first] * num_first + [1.0] * 50) == {}
    assert alarms([first] * num_first + [1.0] * 50 + [100.0] * 5)


@pytest.mark.parametrize("value", [LARGEST, -LARGEST])
def test_a_single_huge_loss_neither_raises_an_alarm_nor_blinds_it(value: float) -> None:
    calm = [1.0] * 50
    assert alarms([*calm, value, *calm]) == {}
    assert alarms([*calm, value, *calm, *[100.0] * 5])
    assert alarms([*calm, value, LARGEST, *calm, *[100.0] * 5])


@pytest.mark.parametrize("value", [LARGEST, -LARGEST])
def test_its_numbers_stay_finite(value: float) -> None:
    brake = Brake()
    for loss in [1.0, *[value, -value] * 20, value, value]:
        brake.update(loss)
        assert math.isfinite(brake.mean)


def test_losses_of_zero_are_no_scale() -> None:
    assert alarms([0.0] * 10 + [2.0, 1.0, 1.5] * 20) == {}


# ---- what is no divergence


@pytest.mark.parametrize("spread", [0.1, 0.5, 0.8])
def test_noise_raises_no_alarm(spread: float) -> None:
    assert all(alarms(noisy(5000, spread, seed)) == {} for seed in range(10))


def test_fluctuations_near_zero_are_no_explosion() -> None:
    losses = [2.0 * 0.9**step for step in range(200)]
    assert alarms(losses + [1e-2, 1e-6] * 50) == {}


@settings(deadline=None, max_examples=100)
@given(
    scale=st.floats(1e-200, 1e200),
    losses=st.lists(st.floats(0.1, 0.99), min_size=1, max_size=200),
)
def test_a_loss_below_its_start_raises_no_alarm(scale: float, losses: list[float]) -> None:
    assert alarms([scale, *(scale * loss for loss in losses)]) == {}


def test_a_likelihood_that_falls_through_zero_raises_no_alarm_and_its_explosion_does() -> None:
    losses = [5.0 - 0.5 * step for step in range(200)]
    assert alarms(losses) == {}
    assert alarms(losses + [100.0] * 30)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), exponent=st.integers(-300, 300))
def test_alarms_do_not_depend_on_the_scale(seed: int, exponent: int) -> None:
    losses = noisy(100, 2.0, seed)
    assert alarms([math.ldexp(loss, exponent) for loss in losses]) == alarms(losses)


# ---- the rest


@pytest.mark.parametrize("num_losses", [0, 3, 51, 53, 61, 67, 90])
def test_a_brake_goes_on_from_its_state(num_losses: int) -> None:
    losses = [
        *noisy(50, 0.5, 0),
        *[4.0] * 4,
        *noisy(6, 0.5, 2),
        *(3.0**step for step in range(10)),
        *noisy(60, 2.0, 1),
    ]
    whole, resumed = Brake(), Brake()
    alarms(losses[:num_losses], whole)
    resumed.load_state_dict(through_file(whole.state_dict()))
    assert alarms(losses[num_losses:], resumed) == alarms(losses[num_losses:], whole)


@pytest.mark.parametrize("num_losses", [0, 3, 50])
def test_a_state_of_a_time_before_jumps_is_read(num_losses: int) -> None:
    losses = [2.3 * 0.99**step for step in range(100)] + [6.0] * 8
    whole, resumed = Brake(), Brake()
    alarms(losses[:num_losses], whole)
    state = whole.state_dict()
    del state["num_jumped"], state["least_jump"]
    resumed.load_state_dict(through_file(state))
    assert alarms(losses[num_losses:], resumed) == alarms(losses[num_losses:], whole)


def test_after_a_rewind_the_next_explosion_is_an_alarm_at_once() -> None:
    brake = Brake()
    explosion = [1.0] * 50 + [100.0] * 5
    assert len(alarms(explosion, brake)) == 1
    brake.rewind()
    assert alarms([1.0] * 3, brake) == {}
    assert alarms([100.0] * 5, brake)


def test_the_environments_use_the_same_factor() -> None:
    assert ControlSettings().divergence_factor == DIVERGENCE_FACTOR


def test_a_loss_costs_at_most_a_microsecond_or_two() -> None:
    brake, losses = Brake(), noisy(2000, 0.3, 0)
    costs = []
    for _ in range(20):
        start = time.process_time()
        for loss in losses:
            brake.update(loss)
        costs.append((time.process_time() - start) / len(losses))
    assert min(costs) < 2e-6

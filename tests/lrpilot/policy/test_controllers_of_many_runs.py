"""Batched decision loops compute what single ones compute; observations agree to the last bit."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrpilot import ObservationSpec
from lrpilot.envs import LRControlEnv, LRControlVecEnv
from lrpilot.policy.controller import Controller
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.tasks.nmf.task import NMFTask
from tests.scheduling import plain_action

GROUPS = ("progress", "loss", "lr")
SPEC = ObservationSpec(groups=GROUPS, num_entries=4)
INF, NAN = math.inf, math.nan
LOSSES = {
    "falling": [2.0, 1.5, 1.7, 1.2, 0.9, 0.8, 0.85, 0.6],
    "zero first": [0.0, 0.0, 3.0, 1.0, 2.0, -1.0, 0.5, 0.5],
    "negative later": [1.0, -0.5, -2.0, 0.0, -3.0, -3.0, -1.0, -2.0],
    "nan": [NAN, 1.0, NAN, 2.0, NAN, NAN, 0.5, 1.0],
    "infinite": [1.0, INF, -INF, 1.0, 1e300, -1e300, 1.0, 2.0],
    "tiny first": [1e-300, 1.0, 2.0, 1e-300, 0.5, 0.1, 0.2, 0.3],
}
NAMES = tuple(LOSSES)


class StillWeights:
    """What B runs without parameters show."""

    def __init__(self, num_runs: int) -> None:
        self._zeros = torch.zeros(num_runs, 1)

    def weights(self) -> Tensor:
        return self._zeros.clone()

    def gradients(self) -> Tensor:
        return self._zeros


def controller_of_runs(num_runs: int, spec: ObservationSpec = SPEC) -> Controller:
    return Controller(
        spec, plain_action(start_factor=0.1), StillWeights(num_runs), num_runs=num_runs
    )


def controllers(num_runs: int, total_steps: list[int], interval_steps: int) -> list[Controller]:
    return [
        Controller(
            SPEC,
            plain_action(start_factor=0.1),
            ParameterSample([torch.zeros(1)], 4),
            interval_steps=interval_steps,
            total_steps=total_steps[i],
        )
        for i in range(num_runs)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("interval_steps", [1, 2, 3, 5, 8, 9, 20])
@pytest.mark.parametrize("total_steps", [1, 2, 5, 8])
def test_observations_and_factors_are_equal_through_two_intervals_past_the_end(
    interval_steps: int, total_steps: int
) -> None:
    # every run has a horizon of its own, so that some idle while others train
    horizons = [min(8, total_steps + i % 3) for i in range(len(NAMES))]
    batch = controller_of_runs(len(NAMES))
    everyone = np.ones(len(NAMES), np.bool_)
    batch.reset(
        list(range(len(NAMES))),
        total_steps=horizons,
        interval_steps=[interval_steps] * len(NAMES),
    )
    singles = controllers(len(NAMES), horizons, interval_steps)
    for k in range(8 // interval_steps + 3):
        steps = batch.steps_to_decision()
        for step in range(int(steps.max())):
            active = steps > step
            values = [
                LOSSES[name][min(7, c.num_steps)] for name, c in zip(NAMES, singles, strict=True)
            ]
            batch.step(torch.tensor(values, dtype=torch.float64), active)
            for i in active.nonzero()[0]:
                singles[i].step(values[i])
        assert batch.observer.interval_loss.tolist() == [c.observer.interval_loss for c in singles]
        assert batch.observer.num_nonfinite.tolist() == [c.observer.num_nonfinite for c in singles]
        expected = [controller.close_interval() for controller in singles]
        np.testing.assert_array_equal(batch.close_interval(everyone), expected)
        action = np.float32(0.3 * math.cos(k))
        batch.act(np.full(len(NAMES), float(action)))
        # NumPy's exp and Python's differ by a last digit in some versions
        factors = [controller.act(float(action)) for controller in singles]
        np.testing.assert_allclose(batch.factor, factors, rtol=1e-15)


@pytest.mark.parametrize("before", [[], [0.0], [NAN, 0.0]])
def test_a_negative_loss_before_any_positive_one_is_refused_alike(before: list[float]) -> None:
    batch = controller_of_runs(2)
    single = controllers(1, [9], 9)[0]
    for value in before:
        batch.step(torch.tensor([1.0, value]), np.ones(2, np.bool_))
        single.observe(value)
    batch.step(torch.tensor([1.0, -2.0]), np.ones(2, np.bool_))

    with pytest.raises(ValueError, match=r"`loss` must be positive .*, got -2\.0$"):
        single.observe(-2.0)
    with pytest.raises(ValueError, match=r"`loss` must be positive .*, got -2\.0 in run 1$"):
        _ = batch.observer.interval_loss


def test_a_negative_first_loss_is_taken_alike_where_losses_are_not_observed() -> None:
    batch = controller_of_runs(1, ObservationSpec(groups=("progress",)))
    batch.step(torch.tensor([-2.0]), np.ones(1, np.bool_))

    assert batch.observer.interval_loss.tolist() == [1.0]


@pytest.mark.parametrize("interval_steps", [1, 3, 23, 24, 25, 50])
def test_last_observations_of_environments_agree_at_every_interval(interval_steps: int) -> None:
    task = NMFTask(
        name="nmf",
        optimizer=torch.optim.SGD,
        base_lr=0.003,
        total_steps=24,
        shape=(12, 8),
        rank=3,
        batch_size=4,
    )
    arguments: dict[str, Any] = {
        "interval_steps": interval_steps,
        "initial_lr_factors": (1.0, 1.0),
    }
    batch = LRControlVecEnv(task, 1, **arguments)
    single = LRControlEnv(task, **arguments)
    batch.seed(0)
    np.testing.assert_allclose(batch.reset()[0], single.reset(seed=0)[0], atol=1e-3)
    is_done = False
    while not is_done:
        found = batch.step(np.array([[0.3]], np.float32))
        observation, reward, is_done, _, _ = single.step(np.array([0.3], np.float32))
        assert bool(found[2][0]) == is_done
        assert found[1][0] == pytest.approx(reward, abs=2e-3)
    np.testing.assert_allclose(found[3][0]["terminal_observation"], observation, atol=1e-3)

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lrpilot import Policy, PolicyLR
from lrpilot.evaluation.methods.placebos import (
    Recording,
    best_static,
    mean_schedule,
    placebos_of,
    random_walk,
    recording_of,
    replay,
    static,
    untrained,
)
from lrpilot.evaluation.runs.cell import grid_of
from lrpilot.evaluation.runs.grid import Method, Result, deployed, train
from lrpilot.tasks.quadratic import QuadraticTask

FACTORS = (0.1, 1.0)
SEEDS = (7, 8)


@pytest.fixture(scope="module")
def recording(task: QuadraticTask, policy: Policy) -> Recording:
    recording = recording_of(recorded(task, policy, FACTORS, SEEDS), task.total_steps)
    return replace(recording, multipliers={0.001: 3.0, 0.01: 0.3})


def recorded(
    task: QuadraticTask, policy: Policy, factors: Sequence[float], seeds: Sequence[int]
) -> list[Result]:
    method = Method("policy", partial(deployed, policy=policy))
    cells = grid_of(task, [method], initial_lr_factors=factors, seeds=seeds)
    return [cell.train() for cell in cells]


def lrs_of(make: Callable[..., Any], lr: float, **arguments: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer, total_steps=40, **arguments)
    lrs = []
    for _ in range(40):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


def test_replay_is_the_geometric_mean_of_the_policys_learning_rates(
    recording: Recording, task: QuadraticTask, policy: Policy
) -> None:
    method = Method("policy", partial(PolicyLR, policy=policy))
    trained = [train(task, method, initial_lr_factor=0.1, seed=s).lrs for s in SEEDS]
    replayed = lrs_of(partial(replay, curves=recording.curves), 0.001)
    assert replayed == pytest.approx(np.exp(np.log(trained).mean(0)).tolist(), rel=1e-12)


def test_replay_of_an_unknown_initial_lr_is_refused(recording: Recording) -> None:
    with pytest.raises(ValueError, match=r"`curves` must hold one for lr 0.5, got"):
        lrs_of(partial(replay, curves=recording.curves), 0.5)


def test_mean_schedule_has_one_shape_at_every_initial_lr(recording: Recording) -> None:
    make = partial(mean_schedule, curves=recording.curves)
    assert lrs_of(make, 1.0) == pytest.approx([x / 0.001 for x in lrs_of(make, 0.001)], rel=1e-12)


def test_recording_holds_every_action_of_every_run(recording: Recording) -> None:
    num_actions = 10  # none before the first interval, and one after the last
    assert len(recording.actions) == num_actions * len(FACTORS) * len(SEEDS)


def test_run_that_broke_off_is_replayed_with_its_last_learning_rate(
    task: QuadraticTask, policy: Policy
) -> None:
    broken = recording_of(recorded(task, policy, [1e38], SEEDS[:1]), task.total_steps)
    result = train(
        task,
        Method("policy", partial(PolicyLR, policy=policy)),
        initial_lr_factor=1e38,
        seed=SEEDS[0],
    )
    (curve,) = broken.curves.values()
    assert len(result.lrs) < len(curve) == 40
    assert curve[-1] == pytest.approx(result.lrs[-1] / result.row["initial_lr"])


def test_random_walk_moves_at_every_decision_and_at_no_other_step(
    task: QuadraticTask, policy: Policy
) -> None:
    make = partial(random_walk, policy=policy, actions=[-0.1, 0.1])
    factors = np.array(lrs_of(make, 1.0, run=task.start(3)))
    assert (np.flatnonzero(np.diff(factors)) + 1).tolist() == list(range(4, 40, 4))


@pytest.mark.parametrize(("action", "limit"), [(-1.0, 0.01), (1.0, 10.0)])
def test_random_walk_ends_at_the_policys_limits(
    task: QuadraticTask, policy: Policy, action: float, limit: float
) -> None:
    make = partial(random_walk, policy=policy, actions=[action])
    assert lrs_of(make, 1.0, run=task.start(3))[-1] == pytest.approx(limit)


def test_random_walk_is_another_one_for_another_seed(policy: Policy) -> None:
    make = partial(random_walk, policy=policy, actions=[-1.0, 0.3, 1.0])
    runs = [SimpleNamespace(generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    first, again, other = (lrs_of(make, 1.0, run=run) for run in runs)
    assert first == again != other


def test_untrained_policy_keeps_the_specifications_and_loses_the_weights(policy: Policy) -> None:
    fresh = untrained(policy, 0)
    assert (fresh.observation, fresh.action) == (policy.observation, policy.action)
    assert not np.allclose(fresh.layers[0][0], policy.layers[0][0])


def test_untrained_policy_loses_the_weights_of_its_memory_too(policy: Policy) -> None:
    layers = [(np.ones((3, 1), np.float32), np.zeros(1, np.float32))]
    lstm = np.ones((12 + 3, 12), np.float32), np.ones(12, np.float32)
    fresh = untrained(replace(policy, layers=layers, lstm=lstm), 0)
    assert fresh.lstm is not None
    assert not np.allclose(fresh.lstm[0], 1.0)


def test_every_placebo_trains_at_its_own_learning_rates(
    recording: Recording, task: QuadraticTask, policy: Policy
) -> None:
    found = {
        name: train(task, Method(name, make), initial_lr_factor=1.0, seed=1).lrs
        for name, make in placebos_of(policy, recording).items()
    }
    curves, actions = recording.curves, recording.actions
    expected: dict[str, Callable[..., Any]] = {
        "placebo: replay": partial(replay, curves=curves),
        "placebo: mean schedule": partial(mean_schedule, curves=curves),
        "placebo: static best multiplier": partial(static, multiplier=0.3, anchor="constant"),
        "placebo: untrained": partial(PolicyLR, policy=untrained(policy, 0)),
        "placebo: random walk": partial(
            random_walk, run=task.start(1), policy=policy, actions=actions
        ),
    }
    method = Method("untrained", expected.pop("placebo: untrained"))
    untrained_lrs = train(task, method, initial_lr_factor=1.0, seed=1).lrs
    assert found.pop("placebo: untrained") == untrained_lrs
    assert found == {name: lrs_of(make, task.base_lr) for name, make in expected.items()}
    assert len({tuple(lrs) for lrs in (*found.values(), untrained_lrs)}) == 5


def test_static_multiplies_the_anchor() -> None:
    lrs = lrs_of(partial(static, multiplier=3.0, anchor="linear"), 0.1)
    assert lrs == pytest.approx([0.3 * (1 - t / 40) for t in range(40)], rel=1e-12)


def test_best_static_takes_the_multiplier_of_its_initial_lr() -> None:
    make = partial(best_static, multipliers={0.1: 3.0, 1.0: 0.3}, anchor="constant")
    assert [lrs_of(make, lr)[7] for lr in (0.1, 1.0)] == pytest.approx([0.3, 0.3])


def test_best_static_of_an_unknown_initial_lr_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`multipliers` must hold one for lr 0.5, got \[0.1\]"):
        lrs_of(partial(best_static, multipliers={0.1: 3.0}, anchor="constant"), 0.5)

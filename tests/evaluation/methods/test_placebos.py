import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lrpilot import PolicyLR
from lrpilot.evaluation.grid import Method, train
from lrpilot.evaluation.methods.placebos import (
    mean_schedule,
    placebos_of,
    random_walk,
    record_policy,
    replay,
    untrained,
)

FACTORS = (0.1, 1.0)
SEEDS = (7, 8)


@pytest.fixture(scope="module")
def recording(task, policy):
    return record_policy(task, policy, initial_lr_factors=FACTORS, seeds=SEEDS)


def lrs_of(make, lr, total_steps=40, **arguments):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer, total_steps=total_steps, **arguments)
    lrs = []
    for _ in range(total_steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


def test_replay_is_the_geometric_mean_of_the_policys_learning_rates(recording, task, policy):
    method = Method("policy", partial(PolicyLR, policy=policy))
    trained = [train(task, method, initial_lr_factor=0.1, seed=s).lrs for s in SEEDS]
    replayed = lrs_of(partial(replay, curves=recording.curves), 0.001)
    assert replayed == pytest.approx(np.exp(np.log(trained).mean(0)).tolist(), rel=1e-12)


def test_replay_of_an_unknown_initial_lr_is_refused(recording):
    with pytest.raises(ValueError, match=r"`curves` must hold 40 steps at lr 0.5"):
        lrs_of(partial(replay, curves=recording.curves), 0.5)


def test_mean_schedule_has_one_shape_at_every_initial_lr(recording):
    make = partial(mean_schedule, curves=recording.curves)
    assert lrs_of(make, 1.0) == pytest.approx([x / 0.001 for x in lrs_of(make, 0.001)], rel=1e-12)


def test_recording_holds_every_action_of_every_run(recording):
    num_actions = 10  # none before the first interval, and one after the last
    assert len(recording.actions) == num_actions * len(FACTORS) * len(SEEDS)


def test_run_that_broke_off_is_replayed_with_its_last_learning_rate(task, policy):
    recorded = record_policy(task, policy, initial_lr_factors=[1e38], seeds=SEEDS[:1])
    result = train(
        task,
        Method("policy", partial(PolicyLR, policy=policy)),
        initial_lr_factor=1e38,
        seed=SEEDS[0],
    )
    (curve,) = recorded.curves.values()
    assert len(result.lrs) < len(curve) == 40
    assert curve[-1] == pytest.approx(result.lrs[-1] / result.row["initial_lr"])


def test_random_walk_moves_at_every_decision_and_at_no_other_step(task, policy):
    make = partial(random_walk, policy=policy, actions=[-0.1, 0.1])
    factors = np.array(lrs_of(make, 1.0, run=task.start(3)))
    assert (np.flatnonzero(np.diff(factors)) + 1).tolist() == list(range(4, 40, 4))


@pytest.mark.parametrize(("action", "limit"), [(-1.0, 0.01), (1.0, 10.0)])
def test_random_walk_ends_at_the_policys_limits(task, policy, action, limit):
    make = partial(random_walk, policy=policy, actions=[action])
    assert lrs_of(make, 1.0, run=task.start(3))[-1] == pytest.approx(limit)


def test_random_walk_is_another_one_for_another_seed(policy):
    make = partial(random_walk, policy=policy, actions=[-1.0, 0.3, 1.0])
    runs = [SimpleNamespace(generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    first, again, other = (lrs_of(make, 1.0, run=run) for run in runs)
    assert first == again != other


def test_untrained_policy_keeps_the_specifications_and_loses_the_weights(policy):
    fresh = untrained(policy, 0)
    assert (fresh.observation, fresh.action) == (policy.observation, policy.action)
    assert not np.allclose(fresh.layers[0][0], policy.layers[0][0])


def test_untrained_policy_loses_the_weights_of_its_memory_too(policy):
    layers = [(np.ones((3, 1), np.float32), np.zeros(1, np.float32))]
    lstm = np.ones((12 + 3, 12), np.float32), np.ones(12, np.float32)
    fresh = untrained(replace(policy, layers=layers, lstm=lstm), 0)
    assert not np.allclose(fresh.lstm[0], 1.0)


@pytest.mark.parametrize("name", ["replay", "mean schedule", "untrained", "random walk"])
def test_every_placebo_trains(recording, name, task, policy):
    make = placebos_of(policy, recording)[f"placebo: {name}"]
    result = train(task, Method(name, make), initial_lr_factor=1.0, seed=1)
    assert math.isfinite(result.row["held_out_loss"])

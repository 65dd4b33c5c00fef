from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrpilot import ActionSpec, ObservationSpec, Policy, PolicyLR
from lrpilot.envs import LRControlEnv
from lrpilot.envs.lr_control import FIRST_EVALUATION_SEED
from lrpilot.evaluation.runs.grid import Method, Result, train
from tests.environments import OPTIMIZERS, TASKS, drive, episode, make_env, make_task, random_policy
from tests.scheduling import plain_action


def deploy(env: LRControlEnv, policy: Policy, *, seed: int, factor: float, steps: int) -> Result:
    method = Method("policy", partial(PolicyLR, policy=policy))
    return train(env.task, method, initial_lr_factor=factor, seed=seed, total_steps=steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "action",
    [
        plain_action(max_log_change=0.3),
        plain_action(anchor="linear", start_factor=0.03, min_factor=1e-4, max_factor=100.0),
        plain_action(kind="residual", anchor="cosine", max_log_change=0.5),
    ],
    ids=lambda action: f"{action.kind}-{action.anchor}",
)
def test_the_env_and_the_scheduler_give_identical_lrs_and_losses(
    name: str, optimizer: str, action: ActionSpec
) -> None:
    env = LRControlEnv(
        make_task(name, optimizer), action=action, num_decisions=8, horizon_factors=(0.5, 2.0)
    )
    policy = random_policy(env, seed=1)
    # 8 decisions in 37 steps: the last interval is shorter
    seed, factor, steps = FIRST_EVALUATION_SEED + 3, 0.7, 37
    options = {
        "task_seed": seed,
        "initial_lr": env.task.base_lr * factor,
        "total_steps": steps,
    }
    lrs, losses, actions = drive(env, policy, options)
    deployed = deploy(env, policy, seed=seed, factor=factor, steps=steps)

    assert len(set(actions)) > 3
    assert len(lrs) == steps
    assert deployed.lrs == lrs
    assert deployed.losses == losses


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`total_steps` = .* is outside")
@settings(deadline=None, max_examples=40)
@given(
    policy_seed=st.integers(0, 1000),
    steps=st.integers(1, 40),
    num_decisions=st.integers(1, 50),
    factor=st.floats(0.01, 1.0),  # above, runs diverge, and the scheduler brakes
    num_entries=st.sampled_from([10, 10_000]),
)
def test_the_env_equals_the_scheduler_for_any_clock_and_policy(
    policy_seed: int, steps: int, num_decisions: int, factor: float, num_entries: int
) -> None:
    env = LRControlEnv(
        make_task("nmf", "momentum"),
        observation=ObservationSpec(num_entries=num_entries),
        action=plain_action(max_log_change=0.2, max_factor=2.0),
        num_decisions=num_decisions,
        divergence_factor=1e6,
    )
    policy = random_policy(env, policy_seed)
    options = {"task_seed": 5, "initial_lr": env.task.base_lr * factor, "total_steps": steps}
    lrs, losses, _ = drive(env, policy, options)
    deployed = deploy(env, policy, seed=5, factor=factor, steps=steps)

    assert deployed.lrs == lrs
    assert deployed.losses == losses


@pytest.mark.parametrize("interval_steps", [1, 5, 9, 15])
def test_the_env_with_interval_steps_equals_the_scheduler(interval_steps: int) -> None:
    env = make_env(interval_steps=interval_steps)
    policy = random_policy(env, seed=1)
    options = {"task_seed": 5, "initial_lr": env.task.base_lr, "total_steps": 23}
    lrs, _, _ = drive(env, policy, options)

    assert deploy(env, policy, seed=5, factor=1.0, steps=23).lrs == lrs


def test_the_env_with_interval_steps_equals_the_scheduler_at_another_horizon() -> None:
    env = make_env(interval_steps=5, horizon_factors=(0.5, 2.0))
    policy = random_policy(env, seed=1)
    options = {"task_seed": 5, "initial_lr": env.task.base_lr, "total_steps": 46}
    lrs, _, _ = drive(env, policy, options)

    assert deploy(env, policy, seed=5, factor=1.0, steps=46).lrs == lrs


def test_a_saved_and_loaded_policy_equals_the_env(tmp_path: Any) -> None:
    env = make_env("digits", num_decisions=8)
    policy = random_policy(env, seed=2)
    lrs, losses, _ = drive(
        env, policy, {"task_seed": 5, "initial_lr": env.task.base_lr, "total_steps": 23}
    )
    loaded = Policy.load(policy.save(tmp_path / "policy.safetensors"))
    deployed = deploy(env, loaded, seed=5, factor=1.0, steps=23)

    assert (deployed.lrs, deployed.losses) == (lrs, losses)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), spread=st.floats(1.0, 100.0))
def test_learning_rates_stay_in_the_box(seed: int, spread: float) -> None:
    action = plain_action(
        anchor="linear", max_log_change=3.0, min_factor=1 / spread, max_factor=spread
    )
    env = make_env(num_decisions=12, action=action)
    steps = episode(env, np.random.default_rng(seed), seed=seed, options={"initial_lr": 0.01})

    low, high = 0.01 * action.min_factor, 0.01 * action.max_factor
    assert all(low <= step[-1]["lr"] <= high for step in steps)

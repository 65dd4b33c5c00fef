"""What many tests do with runs."""

import io
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from lrpilot.envs import LRControlEnv, LRControlVecEnv
from lrpilot.tasks.runs import Run
from lrpilot.tasks.task import Task


def advance(run: Run, num_steps: int) -> list[float]:
    """The losses of so many steps at the optimizer's learning rate."""
    return [float(run.step()) for _ in range(num_steps)]


def through_file(state: dict[str, Any]) -> Any:
    """The state as a checkpoint gives it back; a value that is no plain data is refused."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def check_environment(task: Task) -> None:
    """Assert that Gymnasium's and SB3's checkers pass without a warning."""
    env = gymnasium.make("lrpilot/LRControl-v0", task=task, num_decisions=5).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        check_env_for_sb3(env)


def check_batched_environments(task: Task, num_envs: int, *, use_cap: bool = False) -> None:
    """Assert that batched environments equal single ones, through about two resets of each."""
    arguments: dict[str, Any] = {
        "num_decisions": 6,
        "horizon_factors": (0.4, 1.0),
        "initial_lr_factors": (0.1, 10.0),
        "use_cap": use_cap,
    }
    batch = LRControlVecEnv(task, num_envs, **arguments)
    singles = [LRControlEnv(task, **arguments) for _ in range(num_envs)]
    batch.seed(3)
    expected = [env.reset(seed=3 + i)[0] for i, env in enumerate(singles)]
    np.testing.assert_allclose(batch.reset(), expected, atol=1e-4)
    num_ended = 0
    for step in range(14):
        actions = np.random.default_rng(step).uniform(-1, 1, size=(num_envs, 1)).astype(np.float32)
        observations, rewards, dones, infos = batch.step(actions)
        for i, env in enumerate(singles):
            observation, reward, done, _, info = env.step(actions[i])
            assert done == dones[i]
            assert infos[i]["lr"] == pytest.approx(info["lr"], rel=1e-9)
            assert reward == pytest.approx(float(rewards[i]), abs=1e-5)
            if done:
                num_ended += 1
                np.testing.assert_allclose(infos[i]["terminal_observation"], observation, atol=1e-4)
                observation, _ = env.reset()
            np.testing.assert_allclose(observations[i], observation, atol=1e-4)
    assert num_ended >= 2 * num_envs

"""What many tests do with runs."""

import io
import warnings
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from lrpilot.envs import LRControlEnv, LRControlVecEnv
from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.parameter_sample import ParameterSample
from lrpilot.tasks.runs import Run
from lrpilot.tasks.task import Task


def advance(run: Run, num_steps: int) -> list[float]:
    """The losses of so many steps at the optimizer's learning rate."""
    return [float(run.step()) for _ in range(num_steps)]


def through_file(state: Any) -> Any:
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
    observations: Any
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


ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5}
"""How far batched runs may be from single ones, absolutely and relatively: they sum in another
order, which the steps of a test amplify a thousandfold. Adam divides by the root of tiny second
moments: in float32 its tests state a tolerance of 5e-3."""


def check_batched_runs(
    task: Task, seeds: list[int], *, num_steps: int = 30, tolerance: float | None = None
) -> None:
    """Assert that batched runs equal single ones in all that is read of them.

    All runs step ten times, then some wait at every step, and in the middle two start anew.
    """
    runs, singles = task.start_batch(len(seeds)), [task.start(seed) for seed in seeds]
    runs.reset(list(range(len(seeds))), seeds)
    tolerance = tolerance or ROUNDING[singles[0].parameters[0].dtype]
    close = partial(pytest.approx, rel=tolerance, abs=tolerance)
    lrs = task.base_lr * torch.linspace(0.5, 1.5, len(seeds), dtype=torch.float64)
    lrs = lrs.to(runs.device)
    for step in range(num_steps):
        if step == num_steps // 2:
            runs.reset([len(seeds) - 1, 0], [101, 102])
            singles[-1], singles[0] = task.start(101), task.start(102)
        active = torch.tensor([step < 10 or (step + i) % 3 > 0 for i in range(len(seeds))])
        losses = runs.step(lrs, active.to(runs.device)).cpu()
        expected = [float(singles[i].step(float(lrs[i]))) for i in active.nonzero()[:, 0].tolist()]
        assert losses[active].tolist() == close(expected)
    privileged = [single.privileged_loss() for single in singles]
    assert runs.privileged_losses().tolist() == close(privileged)
    for i, single in enumerate(singles):
        for parameter in single.parameters:
            if parameter.grad is None:  # of an alternating update
                parameter.grad = torch.zeros_like(parameter)
        sample = ParameterSample(single.parameters, ObservationSpec().num_entries)
        found = {"weights": runs.weights()[i], "gradients": runs.gradients()[i]}
        for name, values in (("weights", sample.weights()), ("gradients", sample.gradients())):
            if name == "gradients" and not active[i]:
                continue
            # read in float32; smaller networks' entries are followed by zeros
            padded = torch.nn.functional.pad(values, (0, len(found[name]) - len(values)))
            torch.testing.assert_close(
                found[name], padded, rtol=max(1e-6, tolerance), atol=tolerance
            )

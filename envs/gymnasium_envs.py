"""What `gymnasium.make` and `gymnasium.make_vec` return for the environment's name."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from lrpilot.envs.episodes import settings_for
from lrpilot.envs.lr_control import LRControlEnv
from lrpilot.envs.vec_lr_control import LRControlVecEnv
from lrpilot.policy.settings import ControlSettings
from lrpilot.tasks.shipped import load_task
from lrpilot.tasks.task import Task

__all__ = ["LRControlEnv", "LRControlVectorEnv", "make_vector_env"]

Array = NDArray[np.float32]

# keys of an SB3 info that Gymnasium's vector environments hand out otherwise, or not at all
_NOT_GATHERED = ("episode_return", "episode_length", "terminal_observation", "TimeLimit.truncated")

logger = logging.getLogger(__name__)


class LRControlVectorEnv(VectorEnv[Any, Any, Any]):
    """An `LRControlVecEnv` behind Gymnasium's vector interface, resetting in the same step.

    Args:
        env: the environments.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (Gymnasium's convention)

    def __init__(self, env: LRControlVecEnv) -> None:
        self._env = env
        self.num_envs = env.num_envs
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start all episodes; instance i gets seed + i, or the i-th of a list."""
        if options:
            raise ValueError(f"`options` must be empty, got {options}")
        if isinstance(seed, list):
            self._env.seed_each(seed)
        elif seed is not None:
            self._env.seed(seed)
        return self._env.reset(), {}

    def step(
        self, actions: Array
    ) -> tuple[Array, Array, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Apply actions of shape (B, 1)."""
        self._env.step_async(actions)
        observations, rewards, dones, infos = self._env.step_wait()
        gathered: dict[str, Any] = {
            key: np.array([info[key] for info in infos])
            for key in infos[0]
            if key not in _NOT_GATHERED
        }
        if dones.any():
            final = np.full(self.num_envs, None, dtype=object)
            for i in dones.nonzero()[0]:
                final[i] = infos[i]["terminal_observation"]
            gathered |= {"final_obs": final, "_final_obs": dones}
            for key in ("episode_return", "episode_length"):
                gathered |= {key: np.array([info.get(key, 0) for info in infos]), f"_{key}": dones}
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        return observations, rewards, dones & ~truncated, truncated, gathered


def make_vector_env(
    task: Task | str, num_envs: int = 1, settings: ControlSettings | None = None, **arguments: Any
) -> VectorEnv[Any, Any, Any]:
    """Many environments behind Gymnasium's vector interface, resetting in the same step.

    They are batched where the task can be (`LRControlVectorEnv`), else one steps after the other
    (Gymnasium's `SyncVectorEnv`), and the log says why.

    Args:
        task: the inner training problem, or the name of a shipped one.
        num_envs: how many, at least 1.
        settings: as those of `LRControlEnv`.
        **arguments: as those of `LRControlEnv`.

    Raises:
        ValueError: if an argument is out of range.
    """
    if num_envs < 1:
        raise ValueError(f"`num_envs` must be at least 1, got {num_envs}")
    task = load_task(task)
    # a wrong argument is named here, and is no reason for a loop
    settings = settings_for(task, replace(settings or ControlSettings(), **arguments))
    try:
        return LRControlVectorEnv(LRControlVecEnv(task, num_envs, settings))
    except ValueError as error:
        logger.info("the environments of %s are not batched: %s", task.name, error)
        make_env = partial(LRControlEnv, task, settings)
        return SyncVectorEnv([make_env] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

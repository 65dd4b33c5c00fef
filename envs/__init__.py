"""Gymnasium environments that wrap inner training runs."""

from typing import Any

import gymnasium
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from envs.lr_control import LRControlEnv
from envs.vec_lr_control import LRControlVecEnv, LRControlVectorEnv
from tasks.runs import Task

__all__ = ["LRControlEnv", "LRControlVecEnv", "LRControlVectorEnv", "make_vec_env"]


def make_vec_env(task: Task, num_envs: int, *, batched: bool = False, **arguments: Any) -> VecEnv:
    """Environments of one task for Stable-Baselines3.

    Args:
        task: the inner training problem.
        num_envs: how many.
        batched: one tensor computation (`LRControlVecEnv`) instead of one run after the other.
        **arguments: those of `LRControlEnv`.
    """
    if batched:
        return LRControlVecEnv(task, num_envs, **arguments)
    return DummyVecEnv([lambda: LRControlEnv(task, **arguments) for _ in range(num_envs)])


if "lrpilot/LRControl-v0" not in gymnasium.registry:
    gymnasium.register(id="lrpilot/LRControl-v0", entry_point="envs.lr_control:LRControlEnv")

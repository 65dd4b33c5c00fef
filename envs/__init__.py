"""Gymnasium environments that wrap inner training runs."""

import gymnasium

from envs.lr_control import LRControlEnv
from envs.runners import make_vec_env, runner_of
from envs.vec_lr_control import LRControlVecEnv, LRControlVectorEnv
from envs.worker_vec_env import WorkerVecEnv

__all__ = [
    "LRControlEnv",
    "LRControlVecEnv",
    "LRControlVectorEnv",
    "WorkerVecEnv",
    "make_vec_env",
    "runner_of",
]

if "lrpilot/LRControl-v0" not in gymnasium.registry:
    gymnasium.register(id="lrpilot/LRControl-v0", entry_point="envs.lr_control:LRControlEnv")

"""Gymnasium environments that wrap inner training runs."""

from envs.gymnasium_envs import LRControlVectorEnv, make_vector_env
from envs.lr_control import LRControlEnv
from envs.runners import make_vec_env, runner_of
from envs.vec_lr_control import LRControlVecEnv
from envs.worker_vec_env import WorkerError, WorkerVecEnv
from lrpilot import environment

__all__ = [
    "LRControlEnv",
    "LRControlVecEnv",
    "LRControlVectorEnv",
    "WorkerError",
    "WorkerVecEnv",
    "make_vec_env",
    "make_vector_env",
    "runner_of",
]

environment.register()

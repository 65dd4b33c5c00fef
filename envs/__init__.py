"""Gymnasium environments that wrap inner training runs."""

from lrpilot import environment
from lrpilot.envs.episodes import settings_for
from lrpilot.envs.gymnasium_envs import LRControlVectorEnv, make_vector_env
from lrpilot.envs.lr_control import LRControlEnv
from lrpilot.envs.runners import make_vec_env
from lrpilot.envs.vec_lr_control import LRControlVecEnv
from lrpilot.envs.worker_vec_env import WorkerVecEnv, looped
from lrpilot.envs.workers import WorkerError

__all__ = [
    "LRControlEnv",
    "LRControlVecEnv",
    "LRControlVectorEnv",
    "WorkerError",
    "WorkerVecEnv",
    "looped",
    "make_vec_env",
    "make_vector_env",
    "settings_for",
]

environment.register()

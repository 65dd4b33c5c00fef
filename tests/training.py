"""Trainings of agents that take a fraction of a second."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from lrpilot.agents import train
from lrpilot.envs import LRControlEnv
from lrpilot.tasks.quadratic import QuadraticTask


def quadratic() -> QuadraticTask:
    return QuadraticTask(
        name="quadratic", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=20, dimension=10
    )


PPO_TINY = partial(
    PPO,
    "MlpPolicy",
    n_steps=12,
    batch_size=12,
    n_epochs=2,
    gamma=1.0,
    policy_kwargs={"net_arch": [8]},
)
RECURRENT_TINY = partial(
    RecurrentPPO,
    "MlpLstmPolicy",
    n_steps=12,
    batch_size=12,
    n_epochs=2,
    gamma=1.0,
    policy_kwargs={"net_arch": [8], "lstm_hidden_size": 4},
)
SAC_TINY = partial(
    SAC,
    "MlpPolicy",
    buffer_size=160,
    learning_starts=30,
    batch_size=8,
    train_freq=12,
    gradient_steps=3,
    gamma=1.0,
    action_noise=NormalActionNoise(np.zeros(1), np.full(1, 0.1)),
    policy_kwargs={"net_arch": [8], "activation_fn": torch.nn.Tanh},
)
ALGORITHMS = [PPO_TINY, RECURRENT_TINY, SAC_TINY]


def run(folder: Path, *, total_steps: int, **changes: Any) -> dict[str, Any]:
    """Train in a folder; `task`, `env`, `first_env` and the arguments of `train` may change."""
    task = changes.pop("task", quadratic)()
    make_env = partial(LRControlEnv, task, num_decisions=5)
    first_env = changes.pop("first_env", make_env)
    env = changes.pop("env", None) or DummyVecEnv([first_env, make_env])
    arguments: dict[str, Any] = {
        "settings": make_env().settings,
        "algorithm": PPO_TINY,
        "num_envs": env.num_envs,
        "show_progress": False,
        "make_env": lambda *_, **__: env,
    }
    return train(task, total_steps=total_steps, run_dir=folder, **{**arguments, **changes})


def policy_file(folder: Path) -> bytes:
    """The bytes of a run folder's policy."""
    return (folder / "policy.safetensors").read_bytes()

"""Environments on three small tasks, and how an episode of one is played."""

import itertools
import math
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch

from lrpilot import Policy
from lrpilot.envs import LRControlEnv
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.nmf.task import NMFTask
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.runs import OptimizerFactory
from lrpilot.tasks.task import Task

TASKS = ("quadratic", "nmf", "digits")
OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
# of the environment's documented return: y lies in [1e-8, divergence_factor]
LEVEL_FLOOR = 1e-8


def make_task(name: str, optimizer: str = "sgd", total_steps: int = 23) -> Task:
    common: dict[str, Any] = {
        "name": name,
        "optimizer": OPTIMIZERS[optimizer],
        "total_steps": total_steps,
        "base_lr": 0.001 if "adam" in optimizer else 0.02,
    }
    if name == "quadratic":
        return QuadraticTask(**common)
    if name == "nmf":
        return NMFTask(**common, shape=(12, 8), rank=3, batch_size=4)
    return ImageTask(**common, data="digits", batch_size=32, num_privileged=32)


def make_env(name: str = "quadratic", **arguments: Any) -> LRControlEnv:
    env = gymnasium.make("lrpilot/LRControl-v0", task=make_task(name), **arguments)
    assert isinstance(env.unwrapped, LRControlEnv)
    return env.unwrapped


def random_policy(env: LRControlEnv, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    sizes = [len(env.settings.observation.names), 16, 1]
    layers = [
        (
            rng.normal(0, 1 / math.sqrt(a), (a, b)).astype(np.float32),
            rng.normal(0, 0.3, b).astype(np.float32),
        )
        for a, b in itertools.pairwise(sizes)
    ]
    return Policy(layers, env.settings.observation, env.settings.action, env.settings.clock)


def lr_of(env: LRControlEnv) -> float:
    return float(env.run.optimizer.param_groups[0]["lr"])


def drive(env: LRControlEnv, policy: Policy, options: dict[str, Any]) -> tuple[list[Any], ...]:
    """LRs (of the optimizer itself) and losses of every step, and the actions."""
    observation, info = env.reset(seed=0, options=options)
    lrs, losses, actions = [lr_of(env)] * len(info["losses"]), [*info["losses"]], []
    terminated = False
    while not terminated:
        actions.append(policy.act(observation))
        observation, _, terminated, _, info = env.step(np.array([actions[-1]]))
        assert not info["losses"] or info["lr"] == lr_of(env)
        lrs += [lr_of(env)] * len(info["losses"])
        losses += info["losses"]
    return lrs, losses, actions


def episode(env: LRControlEnv, rng: np.random.Generator, **reset: Any) -> list[tuple[Any, ...]]:
    """The first step of an episode holds reward 0."""
    observation, info = env.reset(**reset)
    steps: list[tuple[Any, ...]] = [(observation, 0.0, False, False, info)]
    while not steps[-1][2]:
        steps.append(env.step(rng.uniform(-1, 1, 1).astype(np.float32)))
    return steps


def parameters(env: LRControlEnv) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in env.run.parameters]

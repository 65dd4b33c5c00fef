"""Throughput over the number of workers: `python benchmarks/worker_scaling.py`.

A decision of E environments in W workers, and what the agent makes of it, take

    ceil(E / W) d + c_0 + c_1 W + E u   seconds,

where d is the time of one environment's decision (its part of the next episode's start included),
c_0 + c_1 W what messages cost, and u the agent's time per env step, its action and its part of the
update. The parts are measured one by one, and the rate of whole trainings, E over that time, is
compared with what they predict. So that more workers than this machine has cores can be tried, an
inner step waits instead of computing, as if each worker had a core of its own.

With one environment per worker the rate is W / (d + c_0 + W (c_1 + u)): from (d + c_0) / (c_1 + u)
workers on the learner has more than half of the time, and no number of workers makes more than
1 / (c_1 + u) env steps per second.
"""

import argparse
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import ray
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from benchmarks.problems import available
from benchmarks.side_by_side import print_origin, read_options
from lrpilot.envs import make_vec_env
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.quadratic import QuadraticRun, QuadraticTask
from lrpilot.tasks.shipped import load_task
from lrpilot.tasks.task import Task

INTERVAL_STEPS = 5
NUM_DECISIONS = 30
REAL_TASKS = ("nmf", "digits_mlp", "digits", "cifar", "shakespeare")


@dataclass(frozen=True, kw_only=True)
class WaitingTask(QuadraticTask):
    """The noisy quadratic, whose step waits so many seconds."""

    seconds_per_step: float = 0.0

    def start(self, seed: int) -> "WaitingRun":
        """A new run."""
        return WaitingRun(self, seed)


class WaitingRun(QuadraticRun):
    """A descent that takes time and no processor."""

    def __init__(self, task: WaitingTask, seed: int) -> None:
        super().__init__(task, seed)
        self._seconds_per_step = task.seconds_per_step

    def _set_gradients(self) -> Tensor:
        if self._seconds_per_step:
            time.sleep(self._seconds_per_step)
        return super()._set_gradients()


def waiting_task(seconds_per_step: float) -> WaitingTask:
    """Trainings of `NUM_DECISIONS` decisions."""
    return WaitingTask(
        name="waiting",
        optimizer=torch.optim.SGD,
        base_lr=0.1,
        total_steps=INTERVAL_STEPS * NUM_DECISIONS,
        seconds_per_step=seconds_per_step,
    )


def seconds_per_decision(env: VecEnv, num_episodes: int) -> float:
    """Of all environments together, at the median of whole episodes, by the clock on the wall."""
    actions = np.zeros((env.num_envs, 1), np.float32)
    env.seed(0)
    env.reset()
    seconds = []
    for _ in range(num_episodes):
        begin = time.perf_counter()
        num_steps = 0
        is_over = False
        while not is_over:
            is_over = bool(env.step(actions)[2][0])
            num_steps += 1
        seconds.append((time.perf_counter() - begin) / num_steps)
    return statistics.median(seconds)


def seconds_per_env_step(env: VecEnv, *, num_epochs: int, num_rollouts: int) -> float:
    """Of a training by PPO of the default size (`conf/agent/ppo.yaml`), after its first rollout."""
    n_steps = 2 * (NUM_DECISIONS - 1)
    agent = PPO(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        n_steps=n_steps,
        batch_size=232,
        n_epochs=num_epochs,
        gamma=1.0,
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
        device="cpu",
    )
    agent.learn(env.num_envs * n_steps)
    begin = time.perf_counter()
    agent.learn(env.num_envs * n_steps * num_rollouts)
    return (time.perf_counter() - begin) / (env.num_envs * n_steps * num_rollouts)


def make_envs(task: Task, num_envs: int, **arguments: Any) -> VecEnv:
    """Environments with decisions `INTERVAL_STEPS` apart."""
    return make_vec_env(task, num_envs, interval_steps=INTERVAL_STEPS, **arguments)


def compare(
    options: argparse.Namespace, *, milliseconds_per_step: float, num_epochs: int
) -> tuple[float, float, float]:
    """Measure the parts, predict, measure the whole; returns u and the costs of messages."""
    at_once, waiting = waiting_task(0.0), waiting_task(milliseconds_per_step / 1e3)
    num_envs, num_rounds = options.num_envs, options.num_rounds
    training = partial(
        seconds_per_env_step, num_epochs=num_epochs, num_rollouts=options.num_rollouts
    )
    d = seconds_per_decision(make_envs(waiting, 1, runner="looped"), num_rounds)
    env = make_envs(at_once, num_envs, runner="looped")
    own = seconds_per_decision(env, num_rounds) / num_envs
    u = training(env) - own

    messages, measured = [], []
    for num_workers in options.num_workers:
        on_ray = partial(make_envs, num_envs=num_envs, runner="ray", num_workers=num_workers)
        env = on_ray(at_once)
        # what is computed is not shared by more workers than there are cores
        shared = own * num_envs / min(num_workers, os.cpu_count() or 1)
        messages.append(seconds_per_decision(env, num_rounds) - shared)
        env.close()
        env = on_ray(waiting)
        measured.append(1.0 / training(env))
        env.close()
    c_1, c_0 = map(float, np.polyfit(options.num_workers, messages, 1))

    print_origin(
        f"{num_envs} environments, {milliseconds_per_step} ms per inner step, {num_epochs} epochs; "
        f"d = {d * 1e3:.1f}, c = {c_0 * 1e3:.2f} + {c_1 * 1e3:.2f} W, u = {u * 1e3:.2f} ms"
    )
    rows = []
    for num_workers, rate in zip(options.num_workers, measured, strict=True):
        rollout = math.ceil(num_envs / num_workers) * d + c_0 + c_1 * num_workers
        whole = rollout + num_envs * u
        cells = [f"{num_envs / whole:.1f}", f"{rate:.1f}", f"{rate * whole / num_envs:.2f}"]
        rows.append([f"{num_workers}", *cells, f"{num_envs * u / whole:.0%}"])
    header = ["workers", "model: env steps/s", "measured", "ratio", "agent's share"]
    print(format_table(header, rows) + "\n", flush=True)
    return u, c_0, c_1


def main() -> None:
    """Compare, and say what the parts mean for the tasks of this repository."""
    options = read_options(
        __doc__,
        num_envs=16,
        num_workers=[1, 2, 4, 8, 16],
        milliseconds_per_step=[5.0, 1.0],
        num_epochs=[8, 80],
        num_rounds=3,
        num_rollouts=2,
    )
    ray.init(
        "local",
        num_cpus=1 + max(options.num_workers),
        include_dashboard=False,
        log_to_driver=False,
        # as `make_vec_env` starts it
        _system_config={"worker_niceness": 0},
    )
    pairs = zip(options.milliseconds_per_step, options.num_epochs, strict=True)
    found = [compare(options, milliseconds_per_step=a, num_epochs=b) for a, b in pairs]
    ray.shutdown()

    u, c_0, c_1 = found[0]
    rows = []
    for task in available(map(load_task, REAL_TASKS)):
        d = seconds_per_decision(make_vec_env(task, 1, runner="looped"), 1)
        rows.append([task.name, f"{d * 1e3:.1f}", f"{(d + c_0) / (c_1 + u):.0f}"])
    print(format_table(["task", "d in ms", "workers at half of the time"], rows))
    print(
        f"\nat most {1 / (c_1 + u):.0f} env steps per second, with {options.num_epochs[0]} epochs"
    )


if __name__ == "__main__":
    main()

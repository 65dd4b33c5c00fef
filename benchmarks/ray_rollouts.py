"""Rollouts on Ray: what a second worker is worth, and a training whose workers are killed.

`python benchmarks/ray_rollouts.py` measures one worker and two in turns, on inner steps of some
milliseconds, and then trains an agent on two workers, one of which is killed every ten seconds.
"""

import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import ray
import torch
from stable_baselines3 import PPO

from benchmarks.side_by_side import print_origin, read_options
from lrpilot.agents import train
from lrpilot.envs import WorkerVecEnv, make_vec_env
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask

NUM_ENVS = 4
NUM_WORKERS = 2


def digits(*, width: int, num_decisions: int) -> ImageTask:
    """A training whose step grows with the square of a width; decisions are five steps apart."""
    return ImageTask(
        name="digits",
        data="digits",
        model=partial(mlp, width=width),
        optimizer=torch.optim.SGD,
        base_lr=0.05,
        total_steps=5 * num_decisions,
        batch_size=256,
    )


def milliseconds_per_step(task: ImageTask) -> float:
    """Of an inner step in this process, at the median."""
    run = task.start(0)
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        run.step()
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds)


def decisions_per_second(env: WorkerVecEnv, num_decisions: int) -> float:
    """Of all environments together, as the clock on the wall has it."""
    actions = np.zeros((env.num_envs, 1), np.float32)
    begin = time.perf_counter()
    for _ in range(num_decisions):
        env.step(actions)
    return env.num_envs * num_decisions / (time.perf_counter() - begin)


def compare(*, width: int, num_rounds: int, num_decisions: int) -> None:
    """Print the decisions per second of one worker and of two, measured in turns."""
    task = digits(width=width, num_decisions=40)
    print_origin(f"{milliseconds_per_step(task):.1f} ms per inner step")
    envs: dict[int, WorkerVecEnv] = {}
    for num_workers in (1, NUM_WORKERS):
        env = make_vec_env(task, NUM_ENVS, runner="ray", num_workers=num_workers, num_decisions=40)
        assert isinstance(env, WorkerVecEnv)
        env.seed(0)
        env.reset()
        decisions_per_second(env, 2)
        envs[num_workers] = env
    rates: dict[int, list[float]] = {num_workers: [] for num_workers in envs}
    for _ in range(num_rounds):
        for num_workers, env in envs.items():
            rates[num_workers].append(decisions_per_second(env, num_decisions))
    for env in envs.values():
        env.close()
    ratios = [two / one for one, two in zip(*rates.values(), strict=True)]
    rows = [
        [f"{num_workers}", f"{statistics.median(of_one):.1f}"]
        for num_workers, of_one in rates.items()
    ]
    print(format_table(["workers", "decisions per second"], rows))
    print(
        f"\nratio {statistics.median(ratios):.2f} at the median of {num_rounds} rounds, "
        f"{min(ratios):.2f} to {max(ratios):.2f}; load {os.getloadavg()[0]:.1f} at the end\n"
    )


def train_under_fire(*, total_steps: int, seconds_between_kills: float) -> None:
    """Train while a worker is killed every so often; raises what ends the training."""
    made: list[WorkerVecEnv] = []
    kills = 0
    is_over = threading.Event()

    def make(*args: Any, **kwargs: Any) -> WorkerVecEnv:
        env = make_vec_env(*args, **kwargs, num_workers=NUM_WORKERS)
        assert isinstance(env, WorkerVecEnv)
        made.append(env)
        thread.start()
        return env

    def kill() -> None:
        nonlocal kills
        rng = random.Random(0)
        while not is_over.wait(seconds_between_kills):
            # not one that is being started
            with suppress(ProcessLookupError):
                os.kill(rng.choice(made[-1].pids), signal.SIGKILL)
                kills += 1

    thread = threading.Thread(target=kill, daemon=True)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        try:
            summary = train(
                digits(width=64, num_decisions=30),
                algorithm=partial(PPO, "MlpPolicy", n_steps=29, batch_size=58, gamma=1.0),
                total_steps=total_steps,
                num_envs=NUM_ENVS,
                runner="ray",
                run_dir=Path(folder),
                show_progress=False,
                make_env=make,
            )
        finally:
            is_over.set()
    print(
        f"a worker killed every {seconds_between_kills:.0f} s, {kills} in all: training ended "
        f"after {summary['num_env_steps']} env steps and {time.monotonic() - begin:.0f} s, with "
        f"{summary['num_lost_episodes']} lost episodes"
    )


def main() -> None:
    """Measure, and train."""
    options = read_options(
        __doc__,
        width=256,
        num_rounds=7,
        num_decisions=8,
        total_steps=5800,
        seconds_between_kills=10.0,
    )
    # for one worker and for two at the same time
    ray.init(
        "local",
        num_cpus=1 + NUM_WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        # as `make_vec_env` starts it
        _system_config={"worker_niceness": 0},
    )
    compare(width=options.width, num_rounds=options.num_rounds, num_decisions=options.num_decisions)
    train_under_fire(
        total_steps=options.total_steps, seconds_between_kills=options.seconds_between_kills
    )
    ray.shutdown()


if __name__ == "__main__":
    main()

"""What each group of features and the held-out reward cost, over the bare training steps.

`python benchmarks/feature_cost.py` (set LRPILOT_DATA to a folder with CIFAR-10; without it that
line is left out, and the output says so). One environment per column is stepped in turn with a
plain PyTorch loop on the same model, batch size, optimizer and in-memory data; the ratios, of
processor time, are medians over these turns. A second table does so for batched environments,
beside the bare steps of as many batched runs.
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.env_cost import seconds_of
from benchmarks.plain_loops import bare_steps
from benchmarks.policy_cost import LOSS_GROUPS
from lrpilot import ObservationSpec
from lrpilot.envs import LRControlEnv, LRControlVecEnv
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask

CONTENDERS: dict[str, dict[str, Any]] = {
    "loss": {"observation": ObservationSpec(LOSS_GROUPS), "reward": "training"},
    "+ movement": {
        "observation": ObservationSpec((*LOSS_GROUPS, "movement")),
        "reward": "training",
    },
    "+ gradient": {
        "observation": ObservationSpec((*LOSS_GROUPS, "gradient")),
        "reward": "training",
    },
    "+ curvature": {
        "observation": ObservationSpec((*LOSS_GROUPS, "curvature")),
        "reward": "training",
    },
    "held-out reward": {"observation": ObservationSpec(LOSS_GROUPS)},
    "every 5th": {"observation": ObservationSpec(LOSS_GROUPS), "reward_interval": 5},
}


def decisions(task: ImageTask, name: str, interval_steps: int) -> Iterator[None]:
    """An endless environment; one decision per `next`."""
    env = LRControlEnv(
        task, interval_steps=interval_steps, initial_lr_factors=(1.0, 1.0), **CONTENDERS[name]
    )
    env.reset(seed=0)
    action = np.zeros(1, np.float32)
    while True:
        env.step(action)
        yield


def batched_decisions(
    task: ImageTask, name: str, interval_steps: int, num_runs: int
) -> Iterator[None]:
    """Endless batched environments; one decision of all per `next`."""
    env = LRControlVecEnv(
        task,
        num_runs,
        interval_steps=interval_steps,
        initial_lr_factors=(1.0, 1.0),
        **CONTENDERS[name],
    )
    env.seed(0)
    env.reset()
    actions = np.zeros((num_runs, 1), np.float32)
    while True:
        env.step(actions)
        yield


def batched_steps(task: ImageTask, num_runs: int) -> Iterator[None]:
    """Batched runs; one step of all per `next`."""
    runs = task.start_batch(num_runs)
    runs.reset(list(range(num_runs)), list(range(num_runs)))
    lrs, everyone = torch.full((num_runs,), task.base_lr), torch.ones(num_runs, dtype=torch.bool)
    while True:
        runs.step(lrs, everyone)
        yield


def measure(
    bare: Iterator[None],
    envs: dict[str, Iterator[None]],
    *,
    interval_steps: int,
    repetitions: int,
) -> list[str]:
    """The cells of a row: milliseconds of a bare step, and the ratios."""
    # a multiple of the reward's interval
    intervals = 10
    count = intervals * interval_steps
    for iterator in (bare, *envs.values()):
        seconds_of(iterator, 10)
    bare_times: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in envs}
    for _ in range(repetitions):
        # each beside its own bare steps: the load of a shared machine changes within seconds
        for name, iterator in envs.items():
            before = seconds_of(bare, count // 2)
            seconds = seconds_of(iterator, intervals)
            after = seconds_of(bare, count // 2)
            bare_times.append((before + after) / count)
            ratios[name].append(seconds / (before + after))
    cells = [f"{statistics.median(values):.3f}" for values in ratios.values()]
    return [f"{statistics.median(bare_times) * 1e3:.3f}", *cells]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--interval-steps", type=int, nargs="+", default=[20])
    parser.add_argument("--num-runs", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--num-threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    make = partial(
        ImageTask,
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        base_lr=0.01,
        total_steps=10**9,
    )
    tasks = [
        ("digits, CNN 14k", make(name="digits", data="digits")),
        ("CIFAR-10, CNN 15k", make(name="cifar", data="cifar10", num_train=10_000)),
    ]
    lines = []
    for name, task in tasks:
        try:
            for steps in arguments.interval_steps:
                envs = {column: decisions(task, column, steps) for column in CONTENDERS}
                cells = measure(
                    bare_steps(task),
                    envs,
                    interval_steps=steps,
                    repetitions=arguments.repetitions,
                )
                lines.append([name, str(steps), *cells])
        except DataError as error:
            print(f"{name}: left out, since {str(error).splitlines()[0]}\n")
    network = make(name="digits_mlp", data="digits", model=partial(mlp, width=32))
    batched_lines = []
    for num_runs in arguments.num_runs:
        for steps in arguments.interval_steps:
            envs = {
                column: batched_decisions(network, column, steps, num_runs)
                for column in CONTENDERS
                if column != "+ curvature"
            }
            cells = measure(
                batched_steps(network, num_runs),
                envs,
                interval_steps=steps,
                repetitions=arguments.repetitions,
            )
            batched_lines.append([f"digits, MLP 2 x 32, {num_runs} runs", str(steps), *cells])
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), load "
        f"{os.getloadavg()[0]:.1f}, torch {torch.__version__}; batch 64, SGD with momentum, "
        f"{arguments.repetitions} repetitions; held-out reward on 256 images; processor time "
        "over that of the bare steps"
    )
    print(format_table(["task", "interval", "bare ms/step", *CONTENDERS], lines))
    print("\nBatched environments over bare batched steps (which have no curvature)")
    print(format_table(["task", "interval", "bare ms/step", *envs], batched_lines))


if __name__ == "__main__":
    main()

"""What an environment costs on the language tasks, beside their bare steps, from one run.

`python benchmarks/language_step_cost.py` (set LRPILOT_DATA to a folder with Tiny Shakespeare and
SST-2). Ratios compare interleaved repetitions of the same number of inner steps; all features are
on. The adapters sit on a network that is not pretrained, which changes no time.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from envs import LRControlEnv
from evaluation.report import format_table
from tasks.data import DataError
from tasks.gpt import GPTTask
from tasks.lora import LoRATask
from tasks.runs import Task
from tasks.sentences import SentenceTask

INTERVAL_STEPS = 10
NUM_INTERVALS = 5


def bare_intervals(task: Task) -> Iterator[None]:
    """A run that is driven by its `step` alone; `INTERVAL_STEPS` steps per `next`."""
    run = task.start(0)
    while True:
        losses = [run.step(task.base_lr) for _ in range(INTERVAL_STEPS)]
        torch.stack(losses).tolist()
        yield


def env_intervals(task: Task, reward: str) -> Iterator[None]:
    """An endless environment; one decision of `INTERVAL_STEPS` inner steps per `next`."""
    env = LRControlEnv(
        task, interval_steps=INTERVAL_STEPS, reward=reward, initial_lr_factors=(1.0, 1.0)
    )
    env.reset(seed=0)
    action = np.zeros(1, np.float32)
    while True:
        env.step(action)
        yield


def seconds_of(action: Callable[[], object], count: int) -> float:
    """Wall seconds of `count` calls."""
    start = time.perf_counter()
    for _ in range(count):
        action()
    return time.perf_counter() - start


def measure(task: Task, repetitions: int) -> list[str]:
    """Median cost of `NUM_INTERVALS` intervals, relative to the bare steps before and after."""
    bare = bare_intervals(task)
    contenders = {reward: env_intervals(task, reward) for reward in ("training", "privileged")}
    ratios: dict[str, list[float]] = {reward: [] for reward in contenders}
    bare_seconds = []
    for iterator in (bare, *contenders.values()):
        seconds_of(partial(next, iterator), 2)
    for _ in range(repetitions):
        for reward, iterator in contenders.items():
            before = seconds_of(partial(next, bare), NUM_INTERVALS)
            seconds = seconds_of(partial(next, iterator), NUM_INTERVALS)
            after = seconds_of(partial(next, bare), NUM_INTERVALS)
            ratios[reward].append(2.0 * seconds / (before + after))
            bare_seconds.append((before + after) / 2.0)
    step_seconds = statistics.median(bare_seconds) / (NUM_INTERVALS * INTERVAL_STEPS)
    cells = [f"{statistics.median(values):.3f}" for values in ratios.values()]
    return [task.name, f"{step_seconds * 1e3:.2f}", *cells]


def main() -> None:
    """Measure the three tasks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--num-threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}; "
        f"medians of {arguments.repetitions} interleaved repetitions, seed 0\n"
    )
    tasks: list[Task] = [
        GPTTask(name="shakespeare", optimizer=torch.optim.AdamW, base_lr=1e-3, total_steps=10**9),
        SentenceTask(name="sst2", optimizer=torch.optim.AdamW, base_lr=1e-3, total_steps=10**9),
        LoRATask(
            name="lora",
            optimizer=torch.optim.AdamW,
            base_lr=1e-3,
            total_steps=10**9,
            pretraining_steps=1,
        ),
    ]
    try:
        lines = [measure(task, arguments.repetitions) for task in tasks]
    except DataError as error:
        raise SystemExit(f"{error}") from None
    header = ["task", "bare ms/step", "env, training reward", "env, held-out reward"]
    print(f"Environment over the bare steps, interval {INTERVAL_STEPS}")
    print(format_table(header, lines))


if __name__ == "__main__":
    main()

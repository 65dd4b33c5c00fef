"""Trainings per second of networks, batched against one after the other.

`python benchmarks/network_batch.py --num-threads 2`. Both sides make the same optimizer steps on
the same minibatches, and take turns; the fastest of some turns counts. Starting a run is not
counted, but printed. Ratios below 1 mean that batching loses.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from evaluation.report import format_table
from tasks.cnn import ImageTask
from tasks.image_models import mlp, small_cnn
from tasks.network_batch import BatchedImageRuns
from tasks.runs import BatchedRuns, Task
from tasks.small_networks import SmallNetworkTask

TOTAL_STEPS = 300
LR = 0.01
NUM_LOOPED = 16


def digits(model: Callable[..., torch.nn.Module], batch_size: int) -> ImageTask:
    """The digits under SGD with momentum."""
    return ImageTask(
        name="digits",
        data="digits",
        model=model,
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        base_lr=LR,
        total_steps=TOTAL_STEPS,
        batch_size=batch_size,
    )


def batch_of(task: Task, num_runs: int) -> BatchedRuns:
    """Batched runs of the task."""
    if isinstance(task, ImageTask):
        return BatchedImageRuns(task, num_runs)
    return task.start_batch(num_runs)


def seconds_per_step(step: Callable[[], Any], num_steps: int) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    return (time.perf_counter() - start) / num_steps


def measure(task: Task, num_runs: int, *, num_turns: int) -> tuple[float, float, float]:
    """Steps per second batched and looped, counted per run, and milliseconds to start a run."""
    runs = batch_of(task, num_runs)
    start = time.perf_counter()
    runs.reset(list(range(num_runs)), list(range(num_runs)))
    start_ms = (time.perf_counter() - start) / num_runs * 1e3
    singles = [task.start(seed) for seed in range(NUM_LOOPED)]
    lrs = torch.full((num_runs,), LR)
    everyone = torch.ones(num_runs, dtype=torch.bool)

    def step_batched() -> None:
        runs.step(lrs, everyone)

    def step_looped() -> None:
        for single in singles:
            single.step(LR)

    times = [
        (seconds_per_step(step_batched, 5), seconds_per_step(step_looped, 5))
        for _ in range(num_turns)
    ]
    batched, looped = (min(column) for column in zip(*times, strict=True))
    return num_runs / batched, NUM_LOOPED / looped, start_ms


def main() -> None:
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--num-turns", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    print(
        f"{platform.machine()}, {arguments.num_threads} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}; {TOTAL_STEPS} steps a run\n"
    )
    small = SmallNetworkTask(name="small_networks", base_lr=LR, total_steps=TOTAL_STEPS)
    cases: list[tuple[str, Task, int]] = [
        *(
            (
                f"digits MLP, 2 x {width}, batch {batch_size}",
                digits(partial(mlp, width=width), batch_size),
                num_runs,
            )
            for width, batch_size, num_runs in (
                (16, 16, 512),
                (32, 16, 512),
                (32, 64, 256),
                (256, 64, 64),
            )
        ),
        ("digits, small CNN, batch 64", digits(small_cnn, 64), 64),
        ("small_networks", small, 128),
        ("small_networks", small, 512),
        ("small_networks", small, 2048),
    ]
    lines = []
    for name, task, num_runs in cases:
        batched, looped, start_ms = measure(task, num_runs, num_turns=arguments.num_turns)
        lines.append(
            [
                name,
                f"{num_runs}",
                f"{batched / TOTAL_STEPS:.1f}",
                f"{looped / TOTAL_STEPS:.1f}",
                f"{batched / looped:.2f}",
                f"{start_ms:.2f}",
            ]
        )
    header = ["network", "runs at once", "runs/s batched", "looped", "ratio", "ms to start a run"]
    print(format_table(header, lines))


if __name__ == "__main__":
    main()

"""What an environment costs beside the bare training steps: time, memory, and shared data.

`python benchmarks/env_cost.py` (set LRPILOT_DATA to a folder with CIFAR-10, Fashion-MNIST and the
texts; what is not there is left out, and the output says so). The bare steps are a plain PyTorch
loop on the same model, batch size, optimizer and in-memory data; beside the ratio to it stands that
to the steps of the task's own `Run`, which clears gradients in a cheaper way. Ratios compare
processor time between interleaved repetitions of the same number of inner steps, which another
process on the machine disturbs little. The adapters of `lora` sit on a network that is not
pretrained.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain_loops import bare_steps
from lrpilot.envs import LRControlEnv, WorkerVecEnv, make_vec_env
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.images.models import lenet, mlp, resnet9, resnet18, small_cnn
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.language.gpt import GPTTask
from lrpilot.tasks.language.lora import LoRATask
from lrpilot.tasks.language.sentences import SentenceTask
from lrpilot.tasks.small_networks.task import SmallNetworkTask
from lrpilot.tasks.task import Task
from lrpilot.tasks.theory.lazy import LazyTask
from lrpilot.tasks.theory.width import WidthTask

INTERVAL_STEPS = 10
REWARDS = ("training", "privileged")
# processor time of one side of a repetition
SIDE_SECONDS = 0.15
MEMORY_STEPS = 30

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
IMAGES = partial(ImageTask, optimizer=MOMENTUM, base_lr=0.01, total_steps=10**9)
CIFAR = partial(IMAGES, data="cifar10", num_train=10_000)
ADAMW: dict[str, Any] = {
    "optimizer": torch.optim.AdamW,
    "base_lr": 1e-3,
    "total_steps": 10**9,
}
TASKS: list[Task] = [
    IMAGES(name="digits_mlp", data="digits", model=partial(mlp, width=32)),
    SmallNetworkTask(name="small_networks", optimizer=MOMENTUM, base_lr=0.01, total_steps=10**9),
    IMAGES(name="digits", data="digits", model=small_cnn),
    IMAGES(name="fashion_mnist", data="fashion_mnist", model=small_cnn, num_train=10_000),
    CIFAR(name="cifar", model=small_cnn),
    CIFAR(name="cifar, lenet", model=lenet),
    CIFAR(name="cifar, resnet9 / 4", model=partial(resnet9, widths=(16, 32, 64, 128))),
    CIFAR(name="cifar, resnet18 / 8", model=partial(resnet18, widths=(8, 16, 32, 64))),
    GPTTask(name="shakespeare", **ADAMW),
    SentenceTask(name="sst2", batch_size=32, num_layers=2, width=64, **ADAMW),
    LoRATask(name="lora", pretraining_steps=1, **ADAMW),
    WidthTask(name="width", optimizer=MOMENTUM, base_lr=0.3, total_steps=10**9, width=64),
    LazyTask(name="lazy", optimizer=torch.optim.SGD, base_lr=1.0, total_steps=10**9),
]


def own_steps(task: Task) -> Iterator[None]:
    """The steps of the task's own run; one per `next`."""
    run = task.start(0)
    while True:
        run.step(task.base_lr)
        yield


def env_decisions(task: Task, reward: str, interval_steps: int = INTERVAL_STEPS) -> Iterator[None]:
    """An endless environment; one decision of so many inner steps per `next`."""
    env = LRControlEnv(
        task, interval_steps=interval_steps, reward=reward, initial_lr_factors=(1.0, 1.0)
    )
    env.reset(seed=0, options={"task_seed": 0})
    action = np.zeros(1, np.float32)
    while True:
        env.step(action)
        yield


def seconds_of(iterator: Iterator[None], count: int) -> float:
    """Seconds of processor time of so many items."""
    start = time.process_time()
    for _ in range(count):
        next(iterator)
    return time.process_time() - start


def measure_time(task: Task, repetitions: int, interval_steps: int) -> list[str]:
    """The cells of a row: the bare step, and the median ratios."""
    bare = bare_steps(task)
    pairs = {
        "training": (env_decisions(task, "training", interval_steps), bare),
        "training over own": (env_decisions(task, "training", interval_steps), own_steps(task)),
        "privileged": (env_decisions(task, "privileged", interval_steps), bare),
    }
    for iterator, base in pairs.values():
        seconds_of(base, 2 * interval_steps)
        seconds_of(iterator, 2)
    num_decisions = max(1, round(SIDE_SECONDS / seconds_of(pairs["training"][0], 1)))
    num_steps = num_decisions * interval_steps
    ratios: dict[str, list[float]] = {name: [] for name in pairs}
    bare_seconds = []
    for _ in range(repetitions):
        for name, (iterator, base) in pairs.items():
            before = seconds_of(base, num_steps)
            seconds = seconds_of(iterator, num_decisions)
            after = seconds_of(base, num_steps)
            ratios[name].append(2 * seconds / (before + after))
            if base is bare:
                bare_seconds += [before, after]
    step_ms = statistics.median(bare_seconds) / num_steps * 1e3
    cells = [f"{statistics.median(values):.3f}" for values in ratios.values()]
    return [task.name, f"{step_ms:.3f}", *cells]


def private_mebibytes(process_id: int | str = "self") -> float:
    """Memory that no other process has a share in (unique set size)."""
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def print_memory(task: Task, what: str) -> None:
    """MiB of this process after `MEMORY_STEPS` steps, and at the peak."""
    if what == "bare":
        iterator, count = bare_steps(task), MEMORY_STEPS
    else:
        iterator, count = env_decisions(task, what), MEMORY_STEPS // INTERVAL_STEPS
    seconds_of(iterator, count)
    # not `ru_maxrss`, which begins at that of the process that started this one
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(private_mebibytes(), peak / 1024)


def measure_memory(task: Task) -> list[str]:
    """The cells of a row: memory settled and at the peak, each in a process of its own."""
    found = {}
    for what in ("bare", "training", "privileged"):
        command = [sys.executable, __file__, "--memory-of", task.name, what]
        found[what] = [float(x) for x in subprocess.check_output(command, text=True).split()]
    bare = found["bare"]
    cells = [f"{bare[0]:.0f}"]
    for reward in REWARDS:
        settled, peak = found[reward]
        cells += [f"{settled / bare[0]:.3f}", f"{peak / bare[1]:.3f}"]
    return [task.name, *cells]


def measure_sharing(task: ImageTask) -> list[str]:
    """The cells of a row: MiB of the data, and of what each further environment adds."""
    data = task.load()
    tensors = [value for value in vars(data).values() if isinstance(value, Tensor)]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    # all of it is in memory now, and no environment is charged for having touched it first
    for tensor in tensors:
        tensor.sum()
    looped = []
    for num_envs in (1, 9):
        env = make_vec_env(task, num_envs, runner="looped", interval_steps=INTERVAL_STEPS)
        env.reset()
        looped.append(private_mebibytes())
        del env
    workers = []
    for num_envs in (2, 10):
        make_env = partial(LRControlEnv, task, interval_steps=INTERVAL_STEPS)
        env = WorkerVecEnv(make_env, num_envs, num_workers=2)
        env.reset()
        workers.append([private_mebibytes(process.pid or 0) for process in env.processes])
        env.close()
    worker = statistics.mean(workers[0])
    return [
        task.name,
        f"{num_bytes / 2**20:.0f}",
        f"{(looped[1] - looped[0]) / 8:.1f}",
        f"{(sum(workers[1]) - sum(workers[0])) / 8:.1f}",
        f"{worker:.0f}",
    ]


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--interval-steps", type=int, default=INTERVAL_STEPS)
    parser.add_argument("--tasks", nargs="+", default=[task.name for task in TASKS])
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        name, what = arguments.memory_of
        print_memory(next(task for task in TASKS if task.name == name), what)
        return
    print(
        f"{platform.machine()}, 1 thread, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, torch {torch.__version__}; medians of "
        f"{arguments.repetitions} interleaved repetitions, interval {arguments.interval_steps}, "
        "all features, seed 0\n"
    )
    tasks = []
    for task in (task for task in TASKS if task.name in arguments.tasks):
        try:
            task.start(0)
            tasks.append(task)
        except DataError as error:
            print(f"{task.name}: left out, since {str(error).splitlines()[0]}\n")
    print("Environment over the bare steps, by what is rewarded")
    lines = [measure_time(task, arguments.repetitions, arguments.interval_steps) for task in tasks]
    header = ["task", "bare ms/step", "training loss", "over own steps", "held-out loss"]
    print(format_table(header, lines))
    print(f"\nMemory of the process after {MEMORY_STEPS} steps, and its peak, over the bare steps'")
    header = ["task", "bare MiB", "training loss", "peak", "held-out loss", "peak"]
    print(format_table(header, [measure_memory(task) for task in tasks]))
    print("\nMiB of private memory that one more environment adds, of 9 looped or 10 in 2 workers")
    header = ["task", "data", "looped", "in a worker", "a worker with one"]
    shared = [task for task in tasks if isinstance(task, ImageTask)]
    print(format_table(header, [measure_sharing(task) for task in shared]))


if __name__ == "__main__":
    main()

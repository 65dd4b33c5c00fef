"""What control costs: environment and scheduler beside the bare training steps, from one run.

`python benchmarks/step_cost.py` (set LRPILOT_DATA to a folder with CIFAR-10; without it the CIFAR
lines are left out, and the output says so). Ratios compare interleaved repetitions of the same
number of inner steps on the same model, batch size, optimizer and in-memory data.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.nn import functional

from envs import LRControlEnv
from evaluation.report import format_table
from lrpilot import ActionSpec, ClockSpec, ObservationSpec, Policy, PolicyLR
from lrpilot.observation import FEATURES
from tasks.cnn import ImageTask, lenet, small_cnn
from tasks.data import DataError

INTERVAL_STEPS = 10
DEPLOYED_INTERVAL_STEPS = (20, 333)  # 30 decisions in 600 (the CIFAR-10 task) and in 10,000 steps
LOSS_GROUPS = ("progress", "loss", "lr")


def constant_policy(groups: tuple[str, ...]) -> Policy:
    """A policy of the default size whose action is always 0."""
    rng = np.random.default_rng(0)
    observation = ObservationSpec(groups=groups)
    sizes = [len(observation.names), 64, 64, 1]
    layers = [
        (
            rng.normal(size=(a, b)).astype(np.float32) / np.float32(np.sqrt(a)),
            np.zeros(b, np.float32),
        )
        for a, b in pairwise(sizes)
    ]
    layers[-1][0].fill(0.0)
    clock = ClockSpec(horizon_range=(1, 10**9))
    return Policy(layers, observation, ActionSpec(), clock)


def bare_steps(task: ImageTask) -> Iterator[None]:
    """A plain PyTorch loop on the task's model, data and optimizer; one interval per `next`."""
    data = task.load()
    model = task.model(data.train_x.shape[1], data.num_classes)
    optimizer = task.optimizer(model.parameters(), lr=task.base_lr)
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(data.train_x), generator=generator)
        for index in order.split(task.batch_size)[:-1]:
            loss = functional.cross_entropy(model(data.train_x[index]), data.train_y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def env_decisions(task: ImageTask, reward: str) -> Iterator[None]:
    """An endless environment; one decision of `INTERVAL_STEPS` inner steps per `next`."""
    env = LRControlEnv(
        task,
        interval_steps=INTERVAL_STEPS,
        reward=reward,
        initial_lr_factors=(1.0, 1.0),
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


def measure_env(task: ImageTask, name: str, repetitions: int) -> list[str]:
    """Median cost of 20 intervals, relative to the bare steps beside it."""
    bare = bare_steps(task)
    contenders = {reward: env_decisions(task, reward) for reward in ("training", "privileged")}
    intervals = 20
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    bare_times = []
    for iterator in (bare, *contenders.values()):
        seconds_of(partial(next, iterator), 20)
    for _ in range(repetitions):
        before = seconds_of(partial(next, bare), intervals * INTERVAL_STEPS)
        times = {
            reward: seconds_of(partial(next, iterator), intervals)
            for reward, iterator in contenders.items()
        }
        after = seconds_of(partial(next, bare), intervals * INTERVAL_STEPS)
        base = (before + after) / 2
        bare_times.append(base)
        for key, value in times.items():
            ratios[key].append(value / base)
    bare_step = statistics.median(bare_times) / (intervals * INTERVAL_STEPS)
    shares = [scheduler_seconds(task, steps) / bare_step for steps in DEPLOYED_INTERVAL_STEPS]
    cells = [f"{statistics.median(values):.3f}" for values in ratios.values()]
    return [name, f"{bare_step * 1e3:.3f}", *cells, *(f"{share:.2%}" for share in shares)]


def scheduler_seconds(task: ImageTask, interval_steps: int) -> float:
    """Mean seconds of one `PolicyLR.step` with all features, inside a real training."""
    count = interval_steps * max(3, 1000 // interval_steps)
    run = task.start(0)
    scheduler = PolicyLR(
        run.optimizer,
        constant_policy(tuple(FEATURES)),
        total_steps=10**9,
        interval_steps=interval_steps,
    )
    seconds = 0.0
    for _ in range(count):
        loss = run.step()
        start = time.perf_counter()
        scheduler.step(loss)
        seconds += time.perf_counter() - start
    return seconds / count


def measure_scheduler(groups: tuple[str, ...], num_parameters: int) -> tuple[float, float]:
    """Microseconds per `PolicyLR.step`, averaged over an interval, and per decision."""
    parameters = [torch.nn.Parameter(torch.randn(num_parameters // 8)) for _ in range(8)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    loss = torch.tensor(1.5)
    costs = []
    for interval_steps in (INTERVAL_STEPS, 1):
        scheduler = PolicyLR(
            optimizer, constant_policy(groups), total_steps=10**9, interval_steps=interval_steps
        )
        optimizer.step()
        seconds_of(partial(scheduler.step, loss), 1000)
        costs.append(
            statistics.median(
                seconds_of(partial(scheduler.step, loss), 2000) / 2000 for _ in range(5)
            )
        )
    return costs[0] * 1e6, costs[1] * 1e6


def measure_cosine() -> float:
    """Microseconds per step of torch's cosine schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10**9)
    optimizer.step()
    return statistics.median(seconds_of(scheduler.step, 2000) / 2000 for _ in range(5)) * 1e6


def measure_import(repetitions: int) -> float:
    """Milliseconds that `import lrpilot` adds to `import torch`, in fresh processes."""
    code = (
        "import torch, time; t = time.perf_counter(); import lrpilot;"
        "print((time.perf_counter() - t) * 1e3)"
    )
    root = Path(__file__).resolve().parents[1]
    times = [
        float(subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True))
        for _ in range(repetitions)
    ]
    return statistics.median(times)


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--num-threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), Python "
        f"{platform.python_version()}, torch {torch.__version__}; medians of "
        f"{arguments.repetitions} interleaved repetitions, seed 0\n"
    )
    optimizer = partial(torch.optim.SGD, momentum=0.9)
    digits = ImageTask(
        name="digits", data="digits", optimizer=optimizer, base_lr=0.01, total_steps=10**9
    )
    cifar = partial(
        ImageTask,
        data="cifar10",
        optimizer=optimizer,
        base_lr=0.01,
        total_steps=10**9,
        num_train=10_000,
    )
    cases = [
        ("digits, CNN 14k", digits),
        ("CIFAR-10, CNN 15k", cifar(name="cifar", model=small_cnn)),
        ("CIFAR-10, LeNet 62k", cifar(name="cifar_lenet", model=lenet)),
    ]
    lines = []
    for name, task in cases:
        try:
            lines.append(measure_env(task, name, arguments.repetitions))
        except DataError as error:
            print(f"{name}: left out, since {str(error).splitlines()[0]}\n")
    print(
        f"Environment over the bare steps (batch 64, interval {INTERVAL_STEPS}, all features; "
        "held-out reward: 256 images per decision), and PolicyLR's share of a step"
    )
    header = ["task", "bare ms/step", "env, training reward", "env, held-out reward"]
    header += [f"PolicyLR, interval {steps}" for steps in DEPLOYED_INTERVAL_STEPS]
    print(format_table(header, lines) + "\n")
    print(f"PolicyLR.step in microseconds (interval {INTERVAL_STEPS}, 0-d tensor loss)")
    lines = []
    for name, groups in (
        ("loss features", LOSS_GROUPS),
        ("with movement", (*LOSS_GROUPS, "movement")),
        ("all features", tuple(FEATURES)),
    ):
        mean, decision = measure_scheduler(groups, num_parameters=80_000)
        lines.append([name, f"{mean:.2f}", f"{decision:.1f}"])
    lines.append(["torch cosine", f"{measure_cosine():.2f}", "-"])
    print(format_table(["scheduler", "mean per step", "one decision"], lines) + "\n")
    print(f"import lrpilot after torch: {measure_import(5):.0f} ms")


if __name__ == "__main__":
    main()

"""What `PolicyLR` costs in a training: `python benchmarks/policy_cost.py`.

Its share of the steps of a CNN on CIFAR-10 (set LRPILOT_DATA to a folder with it; else the digits
alone), microseconds per call beside torch's cosine, and what `import lrpilot` adds.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from lrpilot import ActionSpec, ClockSpec, ObservationSpec, Policy, PolicyLR
from lrpilot.evaluation.report import format_table
from lrpilot.policy.observation import FEATURES
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.images.task import ImageTask

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


def seconds_of(action: Callable[[], object], count: int) -> float:
    """Seconds of processor time of `count` calls."""
    start = time.process_time()
    for _ in range(count):
        action()
    return time.process_time() - start


def measure_share(task: ImageTask, interval_steps: int) -> float:
    """Share of a training's time that `PolicyLR.step` with all features takes."""
    count = interval_steps * max(3, 1000 // interval_steps)
    run = task.start(0)
    scheduler = PolicyLR(
        run.optimizer,
        constant_policy(tuple(FEATURES)),
        total_steps=10**9,
        interval_steps=interval_steps,
    )
    in_step = in_scheduler = 0.0
    for _ in range(count):
        start = time.process_time()
        loss = run.step()
        between = time.process_time()
        scheduler.step(loss)
        in_step += between - start
        in_scheduler += time.process_time() - between
    return in_scheduler / in_step


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
        "import torch, time; t = time.process_time(); import lrpilot;"
        "print((time.process_time() - t) * 1e3)"
    )
    root = Path(__file__).resolve().parents[1]
    times = [
        float(subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True))
        for _ in range(repetitions)
    ]
    return statistics.median(times)


def main() -> None:
    """Measure everything and print it."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, 1 thread, Python {platform.python_version()}, torch "
        f"{torch.__version__}; processor time\n"
    )
    task = partial(
        ImageTask,
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        base_lr=0.01,
        total_steps=10**9,
    )
    cases = (
        ("digits, CNN 14k", task(name="digits", data="digits")),
        ("CIFAR-10, CNN 15k", task(name="cifar", data="cifar10", num_train=10_000)),
    )
    lines = []
    for name, case in cases:
        try:
            shares = [measure_share(case, steps) for steps in DEPLOYED_INTERVAL_STEPS]
            lines.append([name, *(f"{share:.2%}" for share in shares)])
        except DataError as error:
            print(f"{name}: left out, since {str(error).splitlines()[0]}\n")
    print("PolicyLR with all features over the steps of a training (batch 64)")
    header = ["task", *(f"interval {steps}" for steps in DEPLOYED_INTERVAL_STEPS)]
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

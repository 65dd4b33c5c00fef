"""Does a process that trains and deploys for hours grow? `python benchmarks/soak.py --minutes 30`.

One process trains agents (each runner and algorithm in turn), resumes one from its checkpoint,
exports and loads the policy, and trains networks under it, in folders that are removed. After every
cycle it reads the memory that it holds and its open files (of Linux, from /proc). The bar: after
five minutes less than 1 MB per hour, and as many open files as before.
"""

import ctypes
import gc
import os
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from matplotlib import pyplot as plt
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC
from torch import nn

from benchmarks.side_by_side import print_origin, read_options
from lrpilot import ControlSettings, Policy
from lrpilot.agents import train as train_agent
from lrpilot.evaluation.report import format_table, write_figure
from lrpilot.evaluation.runs.grid import Method, deployed
from lrpilot.evaluation.runs.grid import train as train_run
from lrpilot.tasks.shipped import load_task

WARM_UP_SECONDS = 300.0
MOST_MB_PER_HOUR = 1.0
NUM_DECISIONS = 9
NUM_STEPS = 27
ROLLOUT: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "n_epochs": 2}
ALGORITHMS: dict[str, Any] = {
    "PPO": partial(PPO, "MlpPolicy", **ROLLOUT),
    "RecurrentPPO": partial(RecurrentPPO, "MlpLstmPolicy", **ROLLOUT),
    "SAC": partial(
        SAC,
        "MlpPolicy",
        buffer_size=400,
        learning_starts=16,
        policy_kwargs={"activation_fn": nn.Tanh},
    ),
}
TRAININGS = (
    ("digits_mlp", "batched", "PPO"),
    ("nmf", "batched", "SAC"),
    ("quadratic", "looped", "RecurrentPPO"),
    ("small_networks", "batched", "RecurrentPPO"),
    ("digits_mlp", "subprocess", "PPO"),
    ("quadratic", "looped", "SAC"),
)


class Sample(NamedTuple):
    """What the process holds after a cycle."""

    seconds: float
    megabytes: float
    num_files: int
    num_threads: int


def read_sample(start: float) -> Sample:
    """Resident memory, open files and threads of this process, and the seconds since the start."""
    gc.collect()
    # what is free, but kept by the allocator, is no growth
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        time.monotonic() - start,
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    )


def cycle(index: int) -> None:
    """Train an agent, go on from its checkpoint, and deploy its policy."""
    # every round does the same
    seed = index % len(TRAININGS)
    name, runner, algorithm = TRAININGS[seed]
    task = replace(load_task(name), total_steps=NUM_STEPS)
    settings = ControlSettings(num_decisions=NUM_DECISIONS)
    with tempfile.TemporaryDirectory(prefix="lrpilot-soak-") as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        for total_steps, run_dir, resumed in ((64, first, None), (128, second, first)):
            train_agent(
                task,
                settings,
                algorithm=ALGORITHMS[algorithm],
                total_steps=total_steps,
                num_envs=2,
                run_dir=run_dir,
                runner=runner,
                seed=seed,
                resume_from=resumed,
                show_progress=False,
            )
        policy = Policy.load(second)
        method = Method("policy", partial(deployed, policy=policy))
        train_run(task, method, initial_lr_factor=1.0, seed=seed)


def slope(samples: list[Sample]) -> tuple[float, float]:
    """Megabytes per hour by least squares, and their standard error, over whole rounds.

    The cycles of a round hold different amounts: each has a level of its own.
    """
    shape = -1, len(TRAININGS)
    hours = np.array([sample.seconds / 3600 for sample in samples]).reshape(shape)
    megabytes = np.array([sample.megabytes for sample in samples]).reshape(shape)
    hours, megabytes = hours - hours.mean(0), megabytes - megabytes.mean(0)
    per_hour = (hours * megabytes).sum() / (hours * hours).sum()
    rest = megabytes - per_hour * hours
    num_free = max(1, rest.size - len(TRAININGS) - 1)
    variance = (rest * rest).sum() / num_free / (hours * hours).sum()
    return float(per_hour), float(np.sqrt(variance))


def draw(samples: list[Sample], path: Path) -> None:
    """Memory and open files over the minutes."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(6, 4), sharex=True)
    minutes = [sample.seconds / 60 for sample in samples]
    upper.plot(minutes, [sample.megabytes for sample in samples], linewidth=0.8)
    upper.axvline(WARM_UP_SECONDS / 60, color="tab:gray", linestyle=":")
    upper.set_ylabel("resident MB")
    lower.plot(minutes, [sample.num_files for sample in samples], linewidth=0.8)
    lower.set(ylabel="open files", xlabel="minutes")
    figure.tight_layout()
    write_figure(figure, path)


def main() -> None:
    """Soak, print the table, draw the figure; fails where the bar is not met."""
    options = read_options(__doc__, minutes=30.0, out="outputs/soak.png")
    print_origin(f"{options.minutes:g} minutes, warm after {WARM_UP_SECONDS / 60:g}")
    start = time.monotonic()
    samples: list[Sample] = []
    while not samples or samples[-1].seconds < 60 * options.minutes:
        cycle(len(samples))
        samples.append(read_sample(start))
    draw(samples, Path(options.out))
    warm = [sample for sample in samples if sample.seconds >= WARM_UP_SECONDS]
    if len(warm) < 2 * len(TRAININGS):
        raise SystemExit(f"`minutes` must be enough to be warm, got {options.minutes:g}")
    # cycles differ in what they hold: whole rounds of them are compared
    warm = warm[: len(warm) // len(TRAININGS) * len(TRAININGS)]
    per_hour, error = slope(warm)
    ends = warm[: len(TRAININGS)], warm[-len(TRAININGS) :]
    rows = [
        [name, *(f"{max(getattr(sample, field) for sample in end):.1f}" for end in ends)]
        for name, field in (
            ("resident MB", "megabytes"),
            ("open files", "num_files"),
            ("threads", "num_threads"),
        )
    ]
    print(format_table(["most in a round of cycles", "first warm", "last"], rows))
    print(f"\n{len(samples)} cycles; {per_hour:+.2f} ({error:.2f}) MB per hour when warm")
    print(options.out)
    first, last = (max(sample.num_files for sample in end) for end in ends)
    if per_hour >= MOST_MB_PER_HOUR or last > first:
        raise SystemExit("the bar is not met")


if __name__ == "__main__":
    main()

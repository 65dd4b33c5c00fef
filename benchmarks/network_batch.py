"""Trainings per second of networks, batched against one after the other.

`python benchmarks/network_batch.py --num-threads 2`. Both sides make the same optimizer steps on
the same minibatches, and take turns; the fastest of some turns counts. One after the other, runs
are measured with as many threads and with one, and the ratio is that to the faster of both, since
a second thread slows small networks down. Starting a run is not counted, but printed. Ratios below
1 mean that batching loses. `--only GPT` measures the cases with
that in their name. The "smallest GPT" is what an agent could be trained on: one layer, two heads,
width 16, context 16, batch 4, in all 4,416 parameters; "GPT" alone is task=shakespeare.

With a CUDA device, 64 CNNs on CIFAR-10 are measured there too, with the largest memory that the
batched runs took.
"""

import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.problems import CIFAR, IMAGES, batched_step
from benchmarks.side_by_side import Action, print_origin, read_options
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.images.models import mlp, small_cnn
from lrpilot.tasks.language.gpt import GPTTask
from lrpilot.tasks.language.sentences import SentenceTask
from lrpilot.tasks.small_networks.task import SmallNetworkTask
from lrpilot.tasks.task import Task

TOTAL_STEPS = 300
NUM_LOOPED = 16
TURN_SECONDS = 0.25
BATCH_NORM_CNN = partial(small_cnn, normalization="batch")
ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.1)


class Case(NamedTuple):
    """What is trained, and how many at once."""

    name: str
    task: Task
    num_runs: int
    device: str = "cpu"


class Measured(NamedTuple):
    """Runs per second; milliseconds to start a run; peak bytes on a GPU."""

    batched: float
    looped: float
    looped_on_one_thread: float
    start_ms: float
    num_bytes: int


def gpt(**sizes: Any) -> GPTTask:
    """Shakespeare under AdamW."""
    return GPTTask(
        name="shakespeare", optimizer=ADAMW, base_lr=1e-3, total_steps=TOTAL_STEPS, **sizes
    )


def cpu_cases() -> list[Case]:
    """What is measured on the processor."""
    digits = partial(IMAGES, name="digits", data="digits")
    mlps = [
        Case(
            f"digits MLP, 2 x {width}, batch {batch_size}",
            digits(model=partial(mlp, width=width), batch_size=batch_size),
            num_runs,
        )
        for width, batch_size, num_runs in (
            (16, 16, 512),
            (32, 16, 512),
            (32, 64, 256),
            (32, 64, 1024),
            (256, 64, 64),
        )
    ]
    smallest = gpt(num_layers=1, num_heads=2, width=16, context=16, batch_size=4)
    tiny = gpt(num_layers=1, num_heads=2, width=32, context=32)
    two_layers = gpt(num_layers=2, num_heads=2, width=32, context=32, batch_size=8)
    sst2 = SentenceTask(name="sst2", optimizer=ADAMW, base_lr=1e-3, total_steps=TOTAL_STEPS)
    small = SmallNetworkTask(name="small_networks", base_lr=0.01, total_steps=TOTAL_STEPS)
    return [
        *mlps,
        Case("digits, small CNN, batch 64", digits(model=small_cnn), 64),
        Case("digits, the same with BatchNorm", digits(model=BATCH_NORM_CNN), 64),
        *(Case("smallest GPT, 1 x 16, batch 4 x 16", smallest, count) for count in (16, 64, 256)),
        Case("tiny GPT, 1 x 32, batch 12 x 32", tiny, 64),
        Case("two-layer GPT, 2 x 32, batch 8 x 32", two_layers, 64),
        Case("GPT, 4 x 128, batch 12 x 64", gpt(), 8),
        Case("sst2, 2 x 64, batch 32", sst2, 8),
        *(Case("small_networks", small, count) for count in (128, 512, 2048)),
    ]


def gpu_cases(device: str = "cuda") -> list[Case]:
    """What is measured on a CUDA device; on "cpu" they run, too."""
    return [
        Case(
            f"CUDA: CIFAR-10, small CNN{name}, batch 64, {precision}",
            CIFAR(name="cifar10", model=model, device=device, precision=precision),
            64,
            device,
        )
        for name, model in (("", small_cnn), (" with BatchNorm", BATCH_NORM_CNN))
        for precision in ("float32", "bfloat16")
    ]


def seconds_per_step(step: Action, count: int, device: str) -> float:
    """Mean time of so many calls."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def measure(case: Case, *, num_turns: int) -> Measured:
    """Both sides, in turns."""
    task, num_runs, device = case.task, case.num_runs, case.device
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step_batched = batched_step(task, num_runs, device)
    start_ms = (time.perf_counter() - start) / num_runs * 1e3
    step_batched()
    num_bytes = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    singles = [task.start(seed) for seed in range(min(NUM_LOOPED, num_runs))]

    def step_looped() -> None:
        for single in singles:
            single.step(task.base_lr)

    num_threads = torch.get_num_threads()
    contenders = [(step_batched, num_threads), (step_looped, num_threads), (step_looped, 1)]
    seconds = [math.inf] * len(contenders)
    for _ in range(num_turns):
        for i, (step, threads) in enumerate(contenders):
            torch.set_num_threads(threads)
            # caches are warm, and threads awake, as in a whole run
            count = math.ceil(TURN_SECONDS / seconds_per_step(step, 1, device))
            seconds[i] = min(seconds[i], seconds_per_step(step, count, device))
    torch.set_num_threads(num_threads)
    batched, looped, on_one_thread = (TOTAL_STEPS * value for value in seconds)
    return Measured(
        num_runs / batched,
        len(singles) / looped,
        len(singles) / on_one_thread,
        start_ms,
        num_bytes,
    )


def main() -> None:
    """Measure all and print the table."""
    options = read_options(__doc__, num_threads=2, num_turns=8, only="")
    print_origin(f"{TOTAL_STEPS} steps a run, seeds from 0 on")
    cases = cpu_cases()
    if torch.cuda.is_available():
        print(f"CUDA device: {torch.cuda.get_device_name()}\n")
        cases += gpu_cases()
    else:
        print("CUDA: no device\n")
    lines = []
    for case in cases:
        if options.only not in case.name:
            continue
        *rates, start_ms, num_bytes = measure(case, num_turns=options.num_turns)
        lines.append(
            [
                case.name,
                f"{case.num_runs}",
                *(f"{rate:.2f}" for rate in (*rates, rates[0] / max(rates[1:]))),
                f"{start_ms:.2f}",
                f"{num_bytes / 2**20:.0f} MiB" if num_bytes else "",
            ]
        )
    header = ["network", "runs at once", "runs/s batched", "looped", "on one thread", "ratio"]
    print(format_table([*header, "ms to start a run", "GPU memory"], lines))


if __name__ == "__main__":
    main()

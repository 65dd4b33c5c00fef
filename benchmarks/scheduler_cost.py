"""What one `step` of a scheduler costs: `python benchmarks/scheduler_cost.py`.

Microseconds per call with losses that are floats, without the optimizer's own step: the medians of
interleaved repetitions, for a noisy loss that falls and then stays.
"""

import argparse
import math
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers.optimization import GreedyLR as HuggingFaceGreedyLR

from lrpilot.evaluation.report import format_table
from lrpilot.schedulers.base import idle_optimizer
from lrpilot.schedulers.greedy.scheduler import GreedyLR

Contender = tuple[Callable[[Optimizer], Any], bool]

CONTENDERS: dict[str, Contender] = {
    "torch CosineAnnealingLR": (partial(CosineAnnealingLR, T_max=10**9), False),
    "transformers GreedyLR": (HuggingFaceGreedyLR, True),
    "GreedyLR, transformers": (partial(GreedyLR, semantics="transformers"), True),
    "GreedyLR, paper": (partial(GreedyLR, semantics="paper"), True),
    "GreedyLR, robust": (GreedyLR, True),
}
"""By name: how it is made, and whether its `step` takes the loss."""


def noisy_losses(num: int) -> list[float]:
    """A loss that falls from 3 to 1 over the first third, with noise."""
    rng = random.Random(0)
    return [1.0 + 2.0 * math.exp(-9.0 * t / num) + rng.gauss(0.0, 0.1) for t in range(num)]


def microseconds_per_step(contender: Contender, losses: list[float]) -> float:
    """Mean over all losses, on a new optimizer with one group."""
    make, takes_loss = contender
    optimizer = idle_optimizer(0.1)
    scheduler = make(optimizer)
    optimizer.step()
    step = scheduler.step
    start = time.perf_counter()
    if takes_loss:
        for loss in losses:
            step(loss)
    else:
        for _ in losses:
            step()
    return (time.perf_counter() - start) / len(losses) * 1e6


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--num-steps", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    losses = noisy_losses(arguments.num_steps)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(arguments.repetitions):
        for name, contender in CONTENDERS.items():
            times[name].append(microseconds_per_step(contender, losses))
    print(
        f"{platform.machine()}, 1 thread, Python {platform.python_version()}, torch "
        f"{torch.__version__}; {arguments.num_steps} steps, medians of {arguments.repetitions} "
        "repetitions\n"
    )
    rows = [
        [name, f"{statistics.median(values):.2f}", f"{min(values):.2f}"]
        for name, values in times.items()
    ]
    print(format_table(["scheduler", "us per step", "fastest"], rows))


if __name__ == "__main__":
    main()

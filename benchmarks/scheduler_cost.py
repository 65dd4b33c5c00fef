"""What one `step` of a scheduler costs: `python benchmarks/scheduler_cost.py`.

Microseconds per call with losses that are floats, without the optimizer's own step: the medians of
interleaved rounds, for a noisy loss that falls and then stays.
"""

import math
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers.optimization import GreedyLR as HuggingFaceGreedyLR

from benchmarks.side_by_side import Action, print_origin, read_options, take_turns
from lrpilot.evaluation.report import format_table
from lrpilot.schedulers.base import idle_optimizer
from lrpilot.schedulers.greedy.scheduler import GreedyLR

CONTENDERS: dict[str, Callable[[Optimizer], Any]] = {
    "torch CosineAnnealingLR": partial(CosineAnnealingLR, T_max=10**9),
    "transformers GreedyLR": HuggingFaceGreedyLR,
    "GreedyLR, transformers": partial(GreedyLR, semantics="transformers"),
    "GreedyLR, paper": partial(GreedyLR, semantics="paper"),
    "GreedyLR, robust": GreedyLR,
}


def noisy_losses(num: int) -> list[float]:
    """A loss that falls from 3 to 1 over the first third, with noise."""
    rng = random.Random(0)
    return [1.0 + 2.0 * math.exp(-9.0 * t / num) + rng.gauss(0.0, 0.1) for t in range(num)]


def run(make: Callable[[Optimizer], Any], losses: list[float]) -> None:
    """A new scheduler takes all losses, or as many steps if it knows none."""
    optimizer = idle_optimizer(0.1)
    scheduler = make(optimizer)
    optimizer.step()
    step = scheduler.step
    if isinstance(scheduler, CosineAnnealingLR):
        for _ in losses:
            step()
    else:
        for loss in losses:
            step(loss)


def main() -> None:
    """Measure everything and print it."""
    options = read_options(__doc__, num_rounds=15, num_steps=10_000)
    losses = noisy_losses(options.num_steps)
    runs: dict[str, Action] = {
        name: partial(run, make, losses) for name, make in CONTENDERS.items()
    }
    times = take_turns(runs, num_calls=1, num_rounds=options.num_rounds)
    print_origin(f"{options.num_steps} steps, medians of {options.num_rounds} rounds, seed 0")
    rows = [
        [name, *(f"{value / options.num_steps * 1e6:.2f}" for value in (median(found), min(found)))]
        for name, found in times.items()
    ]
    print(format_table(["scheduler", "us per step", "fastest"], rows))


if __name__ == "__main__":
    main()

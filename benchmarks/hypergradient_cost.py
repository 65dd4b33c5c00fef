"""What hypergradient descent costs: training steps with `HypergradientLR` over bare ones.

`python benchmarks/hypergradient_cost.py`. LeNet with 62,006 parameters on random images, batch
128. In every round each contender makes the same number of steps between two bare ones; the ratios
are medians over the rounds. Times are CPU seconds of the process, so that other processes on a
shared machine disturb them little; with several threads they add up.
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

import torch
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

from lrpilot.evaluation.report import format_table
from lrpilot.schedulers.hypergradient.scheduler import LEVELS, UPDATES, HypergradientLR
from lrpilot.tasks.images.models import lenet

BATCH_SIZE = 128
LR = 1e-6  # all trainings stay at the same network, however many steps they make
HYPER_LRS = {"additive": 1e-12, "multiplicative": 1e-3}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(SGD, lr=LR),
    "SGD momentum": partial(SGD, lr=LR, momentum=0.9),
    "SGD Nesterov": partial(SGD, lr=LR, momentum=0.9, nesterov=True),
    "Adam": partial(Adam, lr=LR),
}


def training(
    optimizer_class: Callable[..., Optimizer], level: str | None, update: str
) -> Iterator[None]:
    """An endless training of LeNet, one step per `next`; bare if there is no level."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH_SIZE, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (BATCH_SIZE,), generator=generator)
    torch.manual_seed(0)
    model = lenet(3, 10)
    optimizer = optimizer_class(model.parameters())
    scheduler = None
    if level is not None:
        scheduler = HypergradientLR(
            optimizer, hyper_lr=HYPER_LRS[update], level=level, update=update
        )
    while True:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        yield


def seconds_of(steps: Iterator[None], count: int) -> float:
    """CPU seconds of `count` steps."""
    start = time.process_time()
    for _ in range(count):
        next(steps)
    return time.process_time() - start


def measure(
    optimizer_class: Callable[..., Optimizer], update: str, *, num_rounds: int, num_steps: int
) -> tuple[float, list[float]]:
    """Milliseconds of a bare step, and every level's median ratio to it."""
    bare = training(optimizer_class, None, update)
    contenders = {level: training(optimizer_class, level, update) for level in LEVELS}
    for steps in (bare, *contenders.values()):
        seconds_of(steps, 5)
    ratios: dict[str, list[float]] = {level: [] for level in contenders}
    bare_times = []
    for _ in range(num_rounds):
        for level, steps in contenders.items():
            before = seconds_of(bare, num_steps)
            seconds = seconds_of(steps, num_steps)
            bare_times.append((before + seconds_of(bare, num_steps)) / 2)
            ratios[level].append(seconds / bare_times[-1])
    milliseconds = statistics.median(bare_times) / num_steps * 1e3
    return milliseconds, [statistics.median(values) for values in ratios.values()]


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-rounds", type=int, default=100)
    parser.add_argument("--num-steps", type=int, default=1)
    parser.add_argument("--num-threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), Python "
        f"{platform.python_version()}, torch {torch.__version__}; LeNet 62k, batch {BATCH_SIZE}; "
        f"medians of {arguments.num_rounds} rounds of {arguments.num_steps} step(s), seed 0\n"
    )
    lines = []
    for name, optimizer_class in OPTIMIZERS.items():
        for update in UPDATES:
            milliseconds, ratios = measure(
                optimizer_class,
                update,
                num_rounds=arguments.num_rounds,
                num_steps=arguments.num_steps,
            )
            lines.append([name, update, f"{milliseconds:.2f}", *(f"{r:.3f}" for r in ratios)])
    print(format_table(["optimizer", "update", "bare ms/step", *LEVELS], lines))


if __name__ == "__main__":
    main()

"""What an Armijo line search costs, beside the bare training steps of the same network.

`python benchmarks/line_search_cost.py` trains LeNet (62,006 parameters) on random images of the
shape of CIFAR-10 with known labels, batch 128, by SGD. Rounds of bare steps and of steps with a
search alternate; every ratio is of a search's round over the mean of the bare rounds around it.
A line gives the quartiles of the ratios and the trials per search.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn import functional

from lrpilot.evaluation.report import format_table
from lrpilot.schedulers.line_search.scheduler import LineSearchLR
from lrpilot.tasks.images.models import lenet

BATCH = 128


def make_data(num_batches: int) -> list[tuple[Tensor, Tensor]]:
    """Noisy copies of ten random images, so that there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (num_batches * BATCH,), generator=generator)
    images = centres[labels] + 4 * torch.randn(len(labels), 3, 32, 32, generator=generator)
    return list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


def steps(
    data: list[tuple[Tensor, Tensor]], *, lr: float, rule: tuple[str, str] | None
) -> Iterator[int]:
    """Training steps, one per `next`: bare ones, or with a line search; yields its trials."""
    torch.manual_seed(0)
    model = lenet(3, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = None
    if rule is not None:
        condition, reset = rule
        scheduler = LineSearchLR(
            optimizer, model, condition=condition, reset=reset, batches_per_epoch=len(data)
        )
    while True:
        for x, y in data:

            def loss_of(x: Tensor = x, y: Tensor = y) -> Tensor:
                return functional.cross_entropy(model(x), y)

            if scheduler is None:
                optimizer.zero_grad()
                loss_of().backward()
                optimizer.step()
                yield 0
            else:
                scheduler.search(loss_of)
                optimizer.step()
                scheduler.step()
                yield scheduler.num_trials


def run(iterator: Iterator[int], count: int) -> tuple[float, int]:
    """Seconds and trials of `count` steps."""
    start = time.perf_counter()
    trials = sum(next(iterator) for _ in range(count))
    return time.perf_counter() - start, trials


def measure(rule: tuple[str, str], *, rounds: int, steps_per_round: int) -> list[str]:
    """One row of the table."""
    data = make_data(100)
    start = partial(steps, data, lr=0.1)
    bare, searching = start(rule=None), start(rule=rule)
    # the first epoch is left out: its searches shorten or lengthen the initial learning rate
    run(bare, steps_per_round)
    _, warmup_trials = run(searching, len(data))
    ratios, total, bare_seconds = [], 0, []
    for _ in range(rounds):
        before, _ = run(bare, steps_per_round)
        seconds, trials = run(searching, steps_per_round)
        after, _ = run(bare, steps_per_round)
        ratios.append(2 * seconds / (before + after))
        bare_seconds += [before, after]
        total += trials
    low, middle, high = statistics.quantiles(ratios, n=4)
    return [
        ", ".join(rule),
        f"{statistics.median(bare_seconds) / steps_per_round * 1e3:.2f}",
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{total / (rounds * steps_per_round):.2f}",
        f"{warmup_trials / len(data):.2f}",
    ]


def main() -> None:
    """Measure both conditions and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps-per-round", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}; LeNet, batch {BATCH}\n")
    rows = [
        measure(rule, rounds=arguments.rounds, steps_per_round=arguments.steps_per_round)
        for rule in (("armijo", "grow"), ("armijo", "keep"), ("goldstein", "keep"))
    ]
    header = ["search", "bare step, ms", "ratio", "quartiles", "trials", "in the first epoch"]
    print(format_table(header, rows))


if __name__ == "__main__":
    main()

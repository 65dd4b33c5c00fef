"""What safety costs: microseconds per `Guard.step`, and one curvature measurement in steps.

`python benchmarks/guard_cost.py`. LeNet with 62,006 parameters on random images, batch 128. Times
are CPU seconds of the process, so that other processes on a shared machine disturb them little; the
contenders take turns, and the medians over the rounds are printed.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from lrpilot.caps.curvature import CurvatureCap
from lrpilot.evaluation.report import format_table
from lrpilot.schedulers.guard.scheduler import Guard
from lrpilot.tasks.images.models import lenet

BATCH_SIZE = 128
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD momentum": partial(SGD, lr=0.01, momentum=0.9),
    "Adam": partial(Adam, lr=1e-3),
}


class Training:
    """LeNet on random images."""

    def __init__(self, optimizer_class: Callable[..., Optimizer]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(2, BATCH_SIZE, 3, 32, 32, generator=generator)
        self.labels = torch.randint(10, (2, BATCH_SIZE), generator=generator)
        self.model: nn.Module = lenet(3, 10)
        self.optimizer = optimizer_class(self.model.parameters())

    def loss(self, batch: int) -> torch.Tensor:
        """The loss on one of the two batches."""
        return functional.cross_entropy(self.model(self.images[batch]), self.labels[batch])

    def step(self) -> None:
        """One training step on the first batch."""
        self.optimizer.zero_grad()
        self.loss(0).backward()
        self.optimizer.step()


def seconds_of(action: Callable[[], object], count: int) -> float:
    """CPU seconds per call, over `count` calls."""
    start = time.process_time()
    for _ in range(count):
        action()
    return (time.process_time() - start) / count


def interleaved(actions: list[Callable[[], object]], count: int, rounds: int) -> list[float]:
    """Median seconds per call of each action."""
    times = [[seconds_of(action, count) for action in actions] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def measure_guard(
    optimizer_class: Callable[..., Optimizer], loss: float | torch.Tensor, rounds: int
) -> list[str]:
    """Microseconds per step of torch's cosine, and what a guard adds to it."""
    schedulers: list[LRScheduler] = []
    for kind in ("bare", "guard", "rollback", "backed off"):
        training = Training(optimizer_class)
        scheduler: LRScheduler = CosineAnnealingLR(training.optimizer, 10**9)
        if kind == "guard":
            scheduler = Guard(scheduler)
        elif kind == "rollback":
            scheduler = Guard(scheduler, model=training.model)
        elif kind == "backed off":
            scheduler = Guard(scheduler, recovery_steps=10**9)
        training.step()
        if kind == "backed off":
            scheduler.step(float("nan"))  # type: ignore[arg-type]
        schedulers.append(scheduler)
    actions: list[Callable[[], object]] = [schedulers[0].step]
    actions += [partial(scheduler.step, loss) for scheduler in schedulers[1:]]  # type: ignore[arg-type]
    bare, *guarded = (seconds * 1e6 for seconds in interleaved(actions, 2000, rounds))
    return [f"{bare:.2f}", *(f"{value - bare:.2f}" for value in guarded)]


def measure_curvature(optimizer_class: Callable[..., Optimizer], rounds: int) -> list[str]:
    """Milliseconds of a training step, and measurements in such steps: the first, later ones."""
    training = Training(optimizer_class)
    cap = CurvatureCap(training.optimizer, partial(training.loss, 1), model=training.model)
    seconds_of(training.step, 20)
    first = seconds_of(cap.measure, 1)
    ratios, products = [], []
    for _ in range(rounds):
        step = seconds_of(training.step, 10)
        cap.num_calls += 1
        measured = seconds_of(cap.measure, 1)
        ratios.append(measured / step)
        assert cap.eigenpair is not None
        products.append(cap.eigenpair.num_products)
    cells = (f"{step * 1e3:.1f}", f"{first / step:.1f}", f"{statistics.median(ratios):.1f}")
    return [*cells, f"{statistics.median(products):.0f}"]


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, 1 thread, Python {platform.python_version()}, torch "
        f"{torch.__version__}; medians of {arguments.rounds} rounds\n"
    )
    print("Microseconds per step of torch's cosine, and those that a guard adds")
    losses: dict[str, float | torch.Tensor] = {"float": 2.0, "0-d tensor": torch.tensor(2.0)}
    lines = [
        [name, kind, *measure_guard(optimizer_class, loss, arguments.rounds)]
        for name, optimizer_class in OPTIMIZERS.items()
        for kind, loss in losses.items()
    ]
    header = ["optimizer", "loss", "cosine", "guard", "with rollback", "backed off"]
    print(format_table(header, lines) + "\n")
    print("One curvature measurement (batch 128, 10 training steps between two), in training steps")
    lines = [
        [name, *measure_curvature(optimizer_class, arguments.rounds)]
        for name, optimizer_class in OPTIMIZERS.items()
    ]
    header = ["optimizer", "ms/step", "first", "later", "products, later"]
    print(format_table(header, lines))


if __name__ == "__main__":
    main()

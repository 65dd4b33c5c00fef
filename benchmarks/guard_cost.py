"""What safety costs: microseconds per `Guard.step`, and one curvature measurement in steps.

`python benchmarks/guard_cost.py` trains LeNet; the contenders take turns, and the medians over the
rounds are printed.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.problems import ENDLESS, LeNetTraining
from benchmarks.side_by_side import Action, print_origin, read_options, seconds_of, take_turns
from lrpilot.caps.curvature import CurvatureCap
from lrpilot.evaluation.report import format_table
from lrpilot.schedulers.guard.scheduler import Guard

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD momentum": partial(SGD, lr=0.01, momentum=0.9),
    "Adam": partial(Adam, lr=1e-3),
}


def measure_guard(
    make_optimizer: Callable[..., Optimizer], loss: float | torch.Tensor, num_rounds: int
) -> list[str]:
    """Microseconds per step of torch's cosine, and what a guard adds to it."""
    steps: dict[str, Action] = {}
    for kind in ("bare", "guard", "rollback", "backed off"):
        training = LeNetTraining(make_optimizer)
        cosine = CosineAnnealingLR(training.optimizer, ENDLESS)
        training.step()
        if kind == "bare":
            steps[kind] = cosine.step
            continue
        model = training.model if kind == "rollback" else None
        guard: Any = Guard(cosine, model=model, recovery_steps=ENDLESS)
        if kind == "backed off":
            guard.step(float("nan"))
        steps[kind] = partial(guard.step, loss)
    times = take_turns(steps, num_calls=2000, num_rounds=num_rounds)
    bare, *guarded = (median(values) * 1e6 for values in times.values())
    return [f"{bare:.2f}", *(f"{value - bare:.2f}" for value in guarded)]


def measure_curvature(make_optimizer: Callable[..., Optimizer], num_rounds: int) -> list[str]:
    """Milliseconds of a training step, and measurements in such steps: the first, later ones."""
    training = LeNetTraining(make_optimizer)
    cap = CurvatureCap(training.optimizer, partial(training.loss, 1), model=training.model)
    seconds_of(training.step, 20)
    first = seconds_of(cap.measure)
    steps, measurements, products = [], [], []
    for _ in range(num_rounds):
        steps.append(seconds_of(training.step, 10) / 10)
        cap.num_calls += 1
        measurements.append(seconds_of(cap.measure))
        assert cap.eigenpair is not None
        products.append(cap.eigenpair.num_products)
    step = median(steps)
    cells = (f"{step * 1e3:.1f}", f"{first / step:.1f}", f"{median(measurements) / step:.1f}")
    return [*cells, f"{median(products):.0f}"]


def main() -> None:
    """Measure everything and print it."""
    rounds = read_options(__doc__, num_rounds=15).num_rounds
    print_origin(f"medians of {rounds} rounds, seed 0")
    print("Microseconds per step of torch's cosine, and those that a guard adds")
    losses: dict[str, float | torch.Tensor] = {"float": 2.0, "0-d tensor": torch.tensor(2.0)}
    lines = [
        [name, kind, *measure_guard(make_optimizer, loss, rounds)]
        for name, make_optimizer in OPTIMIZERS.items()
        for kind, loss in losses.items()
    ]
    header = ["optimizer", "loss", "cosine", "guard", "with rollback", "backed off"]
    print(format_table(header, lines) + "\n")
    print("One curvature measurement (batch 128, 10 training steps between two), in training steps")
    lines = [
        [name, *measure_curvature(make_optimizer, rounds)]
        for name, make_optimizer in OPTIMIZERS.items()
    ]
    header = ["optimizer", "ms/step", "first", "later", "products, later"]
    print(format_table(header, lines))


if __name__ == "__main__":
    main()

"""What hypergradient descent costs: training steps with `HypergradientLR` over bare ones.

`python benchmarks/hypergradient_cost.py`. Each contender trains LeNet, and makes its steps between
two turns of bare ones; the ratios are medians over the rounds.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.optim import SGD, Adam, Optimizer

from benchmarks.problems import LeNetTraining
from benchmarks.side_by_side import Action, compare_with, medians, print_origin, read_options
from lrpilot.evaluation.report import format_table
from lrpilot.schedulers.hypergradient.scheduler import LEVELS, UPDATES, HypergradientLR

LR = 1e-6  # all trainings stay at the same network, however many steps they make
HYPER_LRS = {"additive": 1e-12, "multiplicative": 1e-3}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(SGD, lr=LR),
    "SGD momentum": partial(SGD, lr=LR, momentum=0.9),
    "SGD Nesterov": partial(SGD, lr=LR, momentum=0.9, nesterov=True),
    "Adam": partial(Adam, lr=LR),
}


def adapted_step(make_optimizer: Callable[..., Optimizer], level: str, update: str) -> Action:
    """A step of a training with `HypergradientLR`."""
    training = LeNetTraining(make_optimizer)
    scheduler = HypergradientLR(
        training.optimizer, hyper_lr=HYPER_LRS[update], level=level, update=update
    )

    def step() -> None:
        training.step()
        scheduler.step()

    return step


def main() -> None:
    """Measure everything and print it."""
    options = read_options(__doc__, num_rounds=100, num_steps=1)
    print_origin(
        f"LeNet 62k, batch 128; medians of {options.num_rounds} rounds of {options.num_steps} "
        "step(s), seed 0"
    )
    lines = []
    for name, make_optimizer in OPTIMIZERS.items():
        for update in UPDATES:
            bare = LeNetTraining(make_optimizer).step
            contenders = {level: adapted_step(make_optimizer, level, update) for level in LEVELS}
            seconds, ratios = compare_with(
                bare, contenders, num_calls=options.num_steps, num_rounds=options.num_rounds
            )
            lines.append([name, update, f"{seconds * 1e3:.2f}", *medians(ratios)])
    print(format_table(["optimizer", "update", "bare ms/step", *LEVELS], lines))


if __name__ == "__main__":
    main()

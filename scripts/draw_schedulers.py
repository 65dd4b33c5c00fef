"""Draw the learning rate of every scheduler in a real training: `draw_schedulers.py`.

Each scheduler of `lrpilot` trains the same small CNN on scikit-learn's digits from the same seed,
with SGD (momentum 0.9, but none under line search). The figure of docs/schedulers.md.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib as mpl

mpl.use("Agg")
import torch
from matplotlib import pyplot as plt
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from lrpilot import GreedyLR, Guard, HypergradientLR, LineSearchLR
from lrpilot.evaluation.methods.adaptive import guarded_cosine
from lrpilot.evaluation.provenance import provenance_line
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.images.task import ImageRun, ImageTask

Make = Callable[[ImageRun, int], Any]


# name, momentum, initial learning rate, scheduler
CASES: list[tuple[str, float, float, Make]] = [
    ("GreedyLR (robust)", 0.9, 0.03, lambda run, steps: GreedyLR(run.optimizer)),
    (
        "GreedyLR, semantics='transformers'",
        0.9,
        0.03,
        lambda run, steps: GreedyLR(run.optimizer, semantics="transformers"),
    ),
    (
        "GreedyLR, semantics='paper'",
        0.9,
        0.03,
        lambda run, steps: GreedyLR(run.optimizer, semantics="paper"),
    ),
    (
        "HypergradientLR (multiplicative)",
        0.9,
        0.03,
        lambda run, steps: HypergradientLR(run.optimizer, hyper_lr=0.02),
    ),
    (
        "HypergradientLR, update='additive'",
        0.9,
        0.03,
        lambda run, steps: HypergradientLR(run.optimizer, hyper_lr=1e-4, update="additive"),
    ),
    (
        "LineSearchLR (Armijo)",
        0.0,
        1.0,
        lambda run, steps: LineSearchLR(run.optimizer, run.model, batches_per_epoch=20),
    ),
    (
        "LineSearchLR, condition='goldstein'",
        0.0,
        1.0,
        lambda run, steps: LineSearchLR(
            run.optimizer, run.model, condition="goldstein", batches_per_epoch=20
        ),
    ),
    (
        "Guard around a cosine, 10 times too high",
        0.9,
        1.0,
        lambda run, steps: Guard(CosineAnnealingLR(run.optimizer, steps), model=run.model),
    ),
    (
        "Guard and CurvatureCap, 30 times too high",
        0.9,
        3.0,
        lambda run, steps: guarded_cosine(run.optimizer, total_steps=steps, run=run),
    ),
]


def train(
    momentum: float, lr: float, make: Make, total_steps: int
) -> tuple[list[float], list[float], float]:
    """Learning rates and losses of every step, and the final held-out loss."""
    task = ImageTask(
        name="digits",
        data="digits",
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=momentum),
        base_lr=lr,
        total_steps=total_steps,
    )
    run = task.start(0)
    scheduler = make(run, total_steps)
    if isinstance(scheduler, LineSearchLR):
        run.differentiate_with(scheduler.search)
    lrs, losses = [], []
    for _ in range(total_steps):
        losses.append(float(run.step()))
        lrs.append(float(run.optimizer.param_groups[0]["lr"]))
        scheduler.step(losses[-1])
    return lrs, losses, run.evaluate()["held_out_loss"]


def main() -> None:
    """Train all, draw the figure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total-steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("outputs/schedulers.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figure, axes = plt.subplots(3, 3, figsize=(12, 8), sharex=True, constrained_layout=True)
    rows = []
    for axis, (name, momentum, lr, make) in zip(
        axes.flat, tqdm(CASES, unit=" schedulers", leave=False), strict=True
    ):
        lrs, losses, held_out = train(momentum, lr, make, arguments.total_steps)
        axis.semilogy(lrs, color="tab:blue")
        axis.set_title(name, fontsize=9)
        right = axis.twinx()
        right.semilogy(losses, color="tab:gray", linewidth=0.6, alpha=0.7)
        rows.append([name, f"{lr:g}", f"{min(lrs):.3g}", f"{max(lrs):.3g}", f"{held_out:.4g}"])
    for axis in axes[:, 0]:
        axis.set_ylabel("learning rate", color="tab:blue")
    for axis in axes[-1]:
        axis.set_xlabel("optimizer step")
    figure.suptitle("Small CNN on digits, one seed: learning rate (blue) and minibatch loss (gray)")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110)
    header = ["scheduler", "initial lr", "lowest lr", "highest lr", "final held-out loss"]
    print(format_table(header, rows))
    print(provenance_line())
    print(arguments.out)


if __name__ == "__main__":
    main()

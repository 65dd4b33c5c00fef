"""Draw the learning rate of every scheduler in a real training: `draw_schedulers.py`.

Each scheduler of `lrpilot` trains the same small CNN on scikit-learn's digits from the same seed,
with SGD (momentum 0.9, but none under line search). The figure of docs/schedulers.md.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from matplotlib import pyplot as plt
from torch.optim import Optimizer
from tqdm import tqdm

from lrpilot import Guard
from lrpilot.evaluation.methods.adaptive import greedy, guarded_cosine, hypergradient, line_search
from lrpilot.evaluation.methods.schedules import cosine
from lrpilot.evaluation.report import format_table, write_figure
from lrpilot.evaluation.runs.grid import Method, train
from lrpilot.evaluation.runs.provenance import provenance_line
from lrpilot.tasks.images.task import ImageRun, ImageTask


def rolled_back_cosine(optimizer: Optimizer, *, total_steps: int, run: ImageRun) -> Guard:
    """Cosine, rolled back when the loss spikes."""
    return Guard(cosine(optimizer, total_steps=total_steps), model=run.model)


search = partial(line_search, batches_per_epoch=20)
searching = partial(Method, optimizer=torch.optim.SGD, base_lr=1.0)
METHODS = [
    Method("GreedyLR (robust)", greedy),
    *(
        Method(f"GreedyLR, semantics='{semantics}'", partial(greedy, semantics=semantics))
        for semantics in ("transformers", "paper")
    ),
    Method("HypergradientLR (multiplicative)", partial(hypergradient, hyper_lr=0.02)),
    Method(
        "HypergradientLR, update='additive'",
        partial(hypergradient, hyper_lr=1e-4, update="additive"),
    ),
    searching("LineSearchLR (Armijo)", search),
    searching("LineSearchLR, condition='goldstein'", partial(search, condition="goldstein")),
    Method("Guard around a cosine, 10 times too high", rolled_back_cosine, base_lr=1.0),
    Method("Guard and CurvatureCap, 30 times too high", guarded_cosine, base_lr=3.0),
]


def main() -> None:
    """Train all, draw the figure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total-steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("outputs/schedulers.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figure, axes = plt.subplots(3, 3, figsize=(12, 8), sharex=True, constrained_layout=True)
    task = ImageTask(
        name="digits",
        data="digits",
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        base_lr=0.03,
        total_steps=arguments.total_steps,
    )
    rows = []
    methods = tqdm(METHODS, unit=" schedulers", leave=False)
    for axis, method in zip(axes.flat, methods, strict=True):
        result = train(task, method, initial_lr_factor=1.0, seed=0)
        lrs, held_out = result.lrs, result.row["held_out_loss"]
        axis.semilogy(lrs, color="tab:blue")
        axis.set_title(method.name, fontsize=9)
        right = axis.twinx()
        right.semilogy(result.losses, color="tab:gray", linewidth=0.6, alpha=0.7)
        shown = (result.row["initial_lr"], min(lrs), max(lrs))
        rows.append([method.name, *(f"{lr:.3g}" for lr in shown), f"{held_out:.4g}"])
    for axis in axes[:, 0]:
        axis.set_ylabel("learning rate", color="tab:blue")
    for axis in axes[-1]:
        axis.set_xlabel("optimizer step")
    figure.suptitle("Small CNN on digits, one seed: learning rate (blue) and minibatch loss (gray)")
    write_figure(figure, arguments.out)
    header = ["scheduler", "initial lr", "lowest lr", "highest lr", "final held-out loss"]
    print(format_table(header, rows))
    print(provenance_line())
    print(arguments.out)


if __name__ == "__main__":
    main()

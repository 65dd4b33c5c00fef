"""Train once, and print how it goes."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.side_by_side import print_origin
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.runs import Run
from lrpilot.tasks.task import Task


def start(task: Task, seed: int) -> Run:
    """A run, after a line on where it runs; exits with a sentence where data is missing."""
    try:
        run = task.start(seed)
    except DataError as error:
        raise SystemExit(f"{error}") from None
    num_parameters = sum(parameter.numel() for parameter in run.parameters)
    device = run.parameters[0].device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print_origin(f"{name}, {num_parameters:,} parameters, seed {seed}")
    return run


def train(
    run: Run, step: Callable[[], Tensor], *, num_steps: int, print_every: int
) -> dict[str, float]:
    """Train, with a line per stretch on held-out data alone: the test split is for the end.

    Args:
        run: what is trained.
        step: makes a step of it, and returns the loss.
        num_steps: how many.
        print_every: steps of a stretch.

    Returns:
        The metrics of all splits at the end.
    """
    seconds = 0.0
    metrics: dict[str, float] = {}
    while run.num_steps < num_steps:
        begin = time.perf_counter()
        losses = [step() for _ in range(min(print_every, num_steps - run.num_steps))]
        metrics = {"train_loss": float(torch.stack(losses).mean())}
        seconds += time.perf_counter() - begin
        metrics |= run.evaluate()
        shown = [f"{k.replace('_', ' ')} {v:.4f}" for k, v in metrics.items() if "test" not in k]
        pace = f"{seconds:.1f} s, {seconds / run.num_steps * 1e3:.1f} ms/step"
        print("  ".join([f"step {run.num_steps:6d}", *shown, pace]), flush=True)
    return metrics

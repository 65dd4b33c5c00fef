"""Fine-tuning under a policy: what is learned and what is forgotten, bounded and unbounded.

`python benchmarks/fine_tuning.py` (set LRPILOT_DATA to a folder with Tiny Shakespeare and SST-2 for
the second problem; `--problems digits` needs no files) fine-tunes two networks with AdamW:

- digits: a multilayer perceptron that knows upright digits learns them turned by a quarter; all
  its weights are trained (300 steps, batch 32);
- lora: a GPT that knows Shakespeare learns sentences about films by adapters (300 steps).

Each at several learning rates, under linear decay and under the shipped policies with several
`max_factor`. New is the test split of what is learned, old that of what the network knew before.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from benchmarks.side_by_side import print_origin, read_options
from lrpilot.evaluation.methods.schedules import linear
from lrpilot.evaluation.report import format_table
from lrpilot.schedulers.policy_lr import PolicyLR
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.data.images import ImageData, load_image_data
from lrpilot.tasks.data.texts import TextData, load_text
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageRun, ImageTask
from lrpilot.tasks.language.gpt import GPTRun
from lrpilot.tasks.language.lora import LoRATask

MakeScheduler = Callable[[Optimizer], LRScheduler]

NUM_CHARACTERS = 30_000
NUM_STEPS = 300  # both policies were trained on runs of this length
DIGITS = ImageTask(
    name="digits",
    data="digits",
    model=partial(mlp, width=128),
    optimizer=AdamW,
    base_lr=3e-3,
    total_steps=512,
    batch_size=32,
)
LORA = LoRATask(name="lora", data="sst2", optimizer=AdamW, base_lr=3e-3, total_steps=NUM_STEPS)


class Problem(NamedTuple):
    """What is fine-tuned, at which learning rates, and what is measured on the test splits."""

    start: Callable[[int, float], Any]
    old: Callable[[], ImageData | TextData]
    lrs: tuple[float, ...]
    metric: str


def turned(data: ImageData) -> ImageData:
    """The images, turned by a quarter."""
    parts = {name: getattr(data, name).rot90(dims=(2, 3)) for name in ("train_x", "test_x")}
    return replace(data, held_out_x=data.held_out_x.rot90(dims=(2, 3)), **parts)


@cache
def pretrained_digits(seed: int) -> dict[str, torch.Tensor]:
    """The weights of a network that was trained on upright digits, by linear decay."""
    run = DIGITS.start(seed)
    for step in range(DIGITS.total_steps):
        run.step(DIGITS.base_lr * (1.0 - step / DIGITS.total_steps))
    return run.model.state_dict()


def start_digits(seed: int, lr: float) -> ImageRun:
    """A run on turned digits, from a network of this seed that knows upright ones."""
    run = replace(DIGITS, base_lr=lr).start(seed)
    run.model.load_state_dict(pretrained_digits(seed))
    run.data = turned(run.data)
    return run


def shortened(name: str) -> TextData:
    """The text, with shorter parts to measure."""
    data = load_text(name)
    return TextData(data.train, data.held_out[: LORA.context + 1], data.test[:NUM_CHARACTERS])


def start_lora(seed: int, lr: float) -> GPTRun:
    """A run on sentences about films, with new adapters."""
    run = replace(LORA, base_lr=lr).start(seed)
    run.data = shortened("sst2")
    return run


PROBLEMS = {
    "digits": Problem(
        start_digits, partial(load_image_data, "digits"), (1e-4, 3e-4, 1e-3), "test_accuracy"
    ),
    "lora": Problem(start_lora, partial(shortened, "shakespeare"), (1e-3, 3e-3), "test_loss"),
}


class Outcome(NamedTuple):
    """What one fine-tuning gave: the metric on new and old data, and the largest lr factor."""

    new: float
    old: float
    peak: float


def fine_tune(problem: Problem, seed: int, lr: float, make_scheduler: MakeScheduler) -> Outcome:
    """Fine-tune once and measure."""
    run = problem.start(seed, lr)
    scheduler = make_scheduler(run.optimizer)
    takes_loss = isinstance(scheduler, PolicyLR)
    peak = 0.0
    for _ in range(NUM_STEPS):
        peak = max(peak, run.optimizer.param_groups[0]["lr"])
        loss = run.step()
        scheduler.step(loss) if takes_loss else scheduler.step()
    return evaluate(problem, run, peak / lr)


def evaluate(problem: Problem, run: Any, peak: float = 0.0) -> Outcome:
    """Measure what a run knows of new and of old data."""
    new = run.evaluate()[problem.metric]
    run.data = problem.old()
    return Outcome(new, run.evaluate()[problem.metric], peak)


def schedulers(policies: list[str], max_factors: list[float]) -> dict[str, MakeScheduler]:
    """Linear decay, and every policy without a bound of ours and with each."""
    make = partial(PolicyLR, total_steps=NUM_STEPS)
    made: dict[str, MakeScheduler] = {"linear": partial(linear, total_steps=NUM_STEPS)}
    for policy in policies:
        made[policy] = partial(make, policy=policy)
        for factor in max_factors:
            name = f"{policy}, max_factor={factor:g}"
            made[name] = partial(make, policy=policy, max_factor=factor)
    return made


def measure(problem: Problem, seeds: range, made: dict[str, MakeScheduler]) -> str:
    """The table of one problem."""
    outcomes = [evaluate(problem, problem.start(seed, problem.lrs[0])) for seed in seeds]
    lines = [["before", "", *cells(outcomes)]]
    for lr in problem.lrs:
        for name, make_scheduler in made.items():
            outcomes = [fine_tune(problem, seed, lr, make_scheduler) for seed in seeds]
            lines.append([name, f"{lr:g}", *cells(outcomes)])
    name = problem.metric.removeprefix("test_")
    header = ["scheduler", "learning rate", f"new {name}", f"old {name}", "peak / rate"]
    return format_table(header, lines)


def cells(outcomes: list[Outcome]) -> list[str]:
    """Means over seeds; of what is measured with their standard errors."""
    new, old, peak = np.array(outcomes).T
    errors = [values.std(ddof=1) / len(values) ** 0.5 for values in (new, old)]
    return [
        f"{new.mean():.3f} ± {errors[0]:.3f}",
        f"{old.mean():.3f} ± {errors[1]:.3f}",
        f"{peak.mean():.2g}",
    ]


def main() -> None:
    """Measure everything and print it; at least two seeds."""
    options = read_options(
        __doc__,
        problems=list(PROBLEMS),
        policies=["small_networks", "cifar"],
        max_factors=[1.0, 3.0],
        seeds=3,
        first_seed=0,
    )
    print_origin(f"{options.seeds} seeds from {options.first_seed} on")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for name in options.problems:
        problem = PROBLEMS[name]
        start = time.perf_counter()
        try:
            made = schedulers(options.policies, options.max_factors)
            print(f"{name}\n{measure(problem, seeds, made)}")
        except DataError as error:
            raise SystemExit(f"{error}") from None
        print(f"{time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()

"""What it costs to find a learning rate: no search, a range test, or a search in optimizer steps.

On digits, for a small MLP and a CNN of 300 steps. First methods that are run once, at the scale
that is their own, D-Adaptation also without what `conf/rival/d_adaptation.yaml` sets; then searches
over the initial learning rate of linear decay to zero, four decades around the task's. A line is
the held-out loss of every seed, and the mean; a search is best by the loss that is shown.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml
from dadaptation import DAdaptAdam, DAdaptSGD
from hydra.utils import instantiate

from benchmarks.problems import MOMENTUM
from benchmarks.side_by_side import print_origin, read_options
from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.runs.grid import Method, train
from lrpilot.evaluation.search.lr_search import LRSearch, SearchResult, random_search
from lrpilot.evaluation.search.pruning import asha_search, tpe_search
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.task import Task

CONF = Path(__file__).resolve().parents[1] / "conf" / "rival"
RIVALS = ("schedule_free", "prodigy", "prodigy_cosine", "d_adaptation", "range_test")
DIGITS = partial(ImageTask, data="digits", optimizer=MOMENTUM, base_lr=0.1, total_steps=300)
TASKS = (DIGITS(name="digits_mlp", model=partial(mlp, width=32)), DIGITS(name="digits"))
LR_RANGE = (1e-3, 10.0)


def rival(name: str) -> Method:
    """The method of a configuration file."""
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())[name]
    made: dict[str, Any] = instantiate(config, _convert_="all")
    return Method(name, made.pop("scheduler"), **made)


def d_adaptation(name: str, optimizer: Callable[..., torch.optim.Optimizer]) -> Method:
    """Another setting of D-Adaptation, without a scheduler."""
    return Method(f"d_adaptation, {name}", schedules.constant, optimizer=optimizer, base_lr=1.0)


METHODS = (
    *(rival(name) for name in RIVALS),
    d_adaptation("SGD at its defaults", partial(DAdaptSGD, momentum=0.9)),
    d_adaptation("Adam at its defaults", DAdaptAdam),
    d_adaptation("SGD, growth_rate=1.02", partial(DAdaptSGD, momentum=0.9, growth_rate=1.02)),
    Method("d2z at the task's learning rate", schedules.d2z),
)
SEARCHES: Mapping[str, Callable[[LRSearch], SearchResult]] = {
    "random search": random_search,
    "TPE with Hyperband": tpe_search,
    "ASHA": asha_search,
}


def print_losses(name: str, losses: Sequence[float], note: str = "") -> None:
    """A line of the table."""
    shown = " ".join(f"{loss:7.4f}" for loss in losses)
    print(f"  {name:36} {shown}  mean {sum(losses) / len(losses):7.4f}{note}", flush=True)


def measure(task: Task, *, seeds: Sequence[int], budgets: Sequence[int]) -> None:
    """Print the lines of a task; budgets are in runs."""
    print(task.name)
    for method in METHODS:
        rows = [train(task, method, initial_lr_factor=1.0, seed=seed).row for seed in seeds]
        print_losses(method.name, [row["held_out_loss"] for row in rows])
    for budget in budgets:
        for name, find in SEARCHES.items():
            steps = budget * task.total_steps
            results = [
                find(
                    LRSearch(
                        task=task,
                        make=schedules.d2z,
                        lr_range=LR_RANGE,
                        budget_steps=steps,
                        seed=seed,
                    )
                )
                for seed in seeds
            ]
            spent = sum(result.num_steps for result in results) / len(seeds) / task.total_steps
            trials = sum(len(result.trials) for result in results) / len(seeds)
            note = f"  {trials:.1f} trials for {spent:.1f} runs"
            losses = [result.best.held_out_loss for result in results]
            print_losses(f"{name}, {budget} runs", losses, note)


def main() -> None:
    """Print the table."""
    options = read_options(__doc__, seeds=[3, 4, 5], budgets=[4, 16])
    print_origin("held-out loss, one value per seed")
    for task in TASKS:
        measure(task, seeds=options.seeds, budgets=options.budgets)


if __name__ == "__main__":
    main()

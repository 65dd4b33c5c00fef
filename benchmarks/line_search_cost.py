"""What an Armijo line search costs, beside the bare training steps of the same network.

`python benchmarks/line_search_cost.py` trains LeNet by SGD. Rounds of bare steps and of steps with
a search alternate; a line gives the quartiles of the ratios and the trials per search.
"""

import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.optim import SGD

from benchmarks.problems import LeNetTraining
from benchmarks.side_by_side import compare_with, print_origin, read_options
from lrpilot.evaluation.report import format_table
from lrpilot.schedulers.line_search.scheduler import LineSearchLR

NUM_BATCHES = 100


def measure(condition: str, reset: str, *, num_rounds: int, num_steps: int) -> list[str]:
    """One row of the table."""
    bare = LeNetTraining(partial(SGD, lr=0.1), NUM_BATCHES)
    training = LeNetTraining(partial(SGD, lr=0.1), NUM_BATCHES)
    scheduler = LineSearchLR(
        training.optimizer,
        training.model,
        condition=condition,
        reset=reset,
        batches_per_epoch=NUM_BATCHES,
    )
    trials: list[int] = []

    def search() -> None:
        scheduler.search(partial(training.loss, training.num_steps))
        training.optimizer.step()
        scheduler.step()
        training.num_steps += 1
        trials.append(scheduler.num_trials)

    # the first epoch is left out: its searches shorten or lengthen the initial learning rate
    for _ in range(NUM_BATCHES):
        search()
    seconds, ratios = compare_with(
        bare.step, {"search": search}, num_calls=num_steps, num_rounds=num_rounds
    )
    low, middle, high = statistics.quantiles(ratios["search"], n=4)
    return [
        f"{condition}, {reset}",
        f"{seconds * 1e3:.2f}",
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{statistics.mean(trials[NUM_BATCHES:]):.2f}",
        f"{statistics.mean(trials[:NUM_BATCHES]):.2f}",
    ]


def main() -> None:
    """Measure both conditions and print the table."""
    options = read_options(__doc__, num_rounds=15, num_steps=40)
    print_origin(f"LeNet 62k, batch 128; {options.num_rounds} rounds, seed 0")
    rows = [
        measure(condition, reset, num_rounds=options.num_rounds, num_steps=options.num_steps)
        for condition, reset in (("armijo", "grow"), ("armijo", "keep"), ("goldstein", "keep"))
    ]
    header = ["search", "bare step, ms", "ratio", "quartiles", "trials", "in the first epoch"]
    print(format_table(header, rows))


if __name__ == "__main__":
    main()

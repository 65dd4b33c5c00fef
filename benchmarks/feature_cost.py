"""What each group of features and the held-out reward cost, over the bare training steps.

`python benchmarks/feature_cost.py` (set LRPILOT_DATA to a folder with CIFAR-10; without it that
line is left out, and the output says so). One environment per column is stepped in turn with a
plain PyTorch loop on the same model, batch size, optimizer and in-memory data; the ratios are
medians over these turns. A second table does so for batched environments, beside the bare steps of
as many batched runs.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plain_loops import bare_step
from benchmarks.policy_cost import LOSS_GROUPS
from benchmarks.problems import (
    CNNS,
    IMAGES,
    available,
    batched_decision,
    batched_step,
    decision,
)
from benchmarks.side_by_side import Action, compare_with, medians, print_origin, read_options
from lrpilot import ObservationSpec
from lrpilot.evaluation.report import format_table
from lrpilot.tasks.images.models import mlp

LOSS = ObservationSpec(LOSS_GROUPS)
CONTENDERS: dict[str, dict[str, Any]] = {
    "loss": {"observation": LOSS, "reward": "training"},
    **{
        f"+ {group}": {
            "observation": ObservationSpec((*LOSS_GROUPS, group)),
            "reward": "training",
        }
        for group in ("movement", "gradient", "curvature")
    },
    "held-out reward": {"observation": LOSS},
    "every 5th": {"observation": LOSS, "reward_interval": 5},
}
BATCHED = {name: arguments for name, arguments in CONTENDERS.items() if name != "+ curvature"}
NUM_DECISIONS = 10  # a multiple of the reward's interval


def measure(
    bare: Action, decisions: Mapping[str, Action], interval_steps: int, num_rounds: int
) -> list[str]:
    """The cells of a row: milliseconds of a bare step, and the ratios."""
    for action in (bare, *decisions.values()):
        for _ in range(10):
            action()
    seconds, ratios = compare_with(
        bare,
        decisions,
        num_calls=NUM_DECISIONS,
        num_rounds=num_rounds,
        steps_per_call=interval_steps,
    )
    return [f"{seconds * 1e3:.3f}", *medians(ratios)]


def main() -> None:
    """Measure and print."""
    options = read_options(__doc__, num_rounds=9, interval_steps=[20], num_runs=[64, 512])
    print_origin(
        f"batch 64, SGD with momentum, {options.num_rounds} rounds, seed 0; held-out reward on 256 "
        "images; processor time over that of the bare steps"
    )
    header = ["task", "interval", "bare ms/step"]
    lines = []
    for task in available(CNNS):
        for steps in options.interval_steps:
            envs = {
                name: decision(task, interval_steps=steps, **arguments)
                for name, arguments in CONTENDERS.items()
            }
            cells = measure(bare_step(task), envs, steps, options.num_rounds)
            lines.append([task.name, str(steps), *cells])
    print(format_table([*header, *CONTENDERS], lines))
    network = IMAGES(name="digits_mlp", data="digits", model=partial(mlp, width=32))
    lines = []
    for num_runs in options.num_runs:
        for steps in options.interval_steps:
            envs = {
                name: batched_decision(network, num_runs, interval_steps=steps, **arguments)
                for name, arguments in BATCHED.items()
            }
            cells = measure(batched_step(network, num_runs), envs, steps, options.num_rounds)
            lines.append([f"digits, MLP 2 x 32, {num_runs} runs", str(steps), *cells])
    print("\nBatched environments over bare batched steps (which have no curvature)")
    print(format_table([*header, *BATCHED], lines))


if __name__ == "__main__":
    main()

"""Policies on setups that no training of them drew: `python benchmarks/held_out_setups.py`.

Trainings of `task=small_trainings` with another `setup_seed` run under each policy from seven
initial learning rates, and under a fixed schedule (warm-up, then linear to zero) at the same rates
and at 100 times the usual one. This part of the generator is for choosing a policy, not for
reporting what it is worth. Levels are log held-out losses at the end over those at the start, nats.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.side_by_side import print_origin, read_options
from lrpilot import Policy
from lrpilot.agents.imitation import search_experts, train_controlled
from lrpilot.evaluation.report import format_table
from lrpilot.evaluation.tuning_cost import worth_in_runs
from lrpilot.tasks.small_trainings.families import FAMILIES
from lrpilot.tasks.small_trainings.task import SmallTrainingTask

FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
BEYOND = 100.0

Floats = NDArray[np.float64]


def levels_of(
    policy: Policy, task: SmallTrainingTask, seeds: list[int], total_steps: int
) -> Floats:
    """Levels (trainings, factors) under a policy."""
    shape = len(seeds), len(FACTORS)
    memory = policy.initial_memory(shape[0] * shape[1])
    levels = train_controlled(
        task,
        lambda _, observations: policy.act_batch(observations, memory),
        observation=policy.observation,
        action=policy.action,
        clock=policy.clock,
        seeds=np.repeat(seeds, shape[1]).tolist(),
        initial_lrs=task.base_lr * np.tile(FACTORS, shape[0]),
        total_steps=total_steps,
    )
    return levels.reshape(shape)


def main() -> None:
    """Print a table per horizon."""
    options = read_options(
        __doc__,
        policies=["cifar"],
        horizons=[300],
        num_trainings=48,
        num_setups=24,
        families=list(FAMILIES),
        sizes=["small"],
        setup_seed=7,
        seed=0,
    )
    task = SmallTrainingTask(
        name="small_trainings",
        base_lr=0.2,
        total_steps=max(options.horizons),
        num_setups=options.num_setups,
        families=options.families,
        sizes=options.sizes,
        setup_seed=options.setup_seed,
        calibrate=False,
    )
    print_origin(
        f"{options.num_trainings} trainings of {options.num_setups} {' and '.join(options.sizes)} "
        f"setups of {', '.join(options.families)}, setup_seed {options.setup_seed}, seed "
        f"{options.seed}"
    )
    for total_steps in options.horizons:
        rng = np.random.default_rng(options.seed)
        seeds = rng.integers(2**30, size=options.num_trainings).tolist()
        experts = search_experts(
            task, seeds=seeds, total_steps=total_steps, peak_factors=[*FACTORS, BEYOND]
        )
        best = experts.levels.min(1)
        schedule = experts.levels[:, : len(FACTORS)]
        rows = {"schedule": schedule}
        for name in tqdm(options.policies, unit=" policies", leave=False):
            rows[name] = levels_of(Policy.load(name), task, seeds, total_steps)
        lines = [line(label, levels, best, schedule) for label, levels in rows.items()]
        print(format_table([f"{total_steps} steps", *COLUMNS], lines), flush=True)


COLUMNS = (
    *(f"{factor:g}" for factor in FACTORS),
    *("mean", "over the best", "at its best rate", "worth, median", "diverged"),
)


def line(label: str, levels: Floats, best: Floats, schedule: Floats) -> list[str]:
    """One row: levels by initial rate, and what a search over the schedule's is worth."""
    bounded = partial(np.minimum, 0.0)
    worths = [
        worth_in_runs(bounded(mine).tolist(), bounded(rival).tolist())
        for mine, rival in zip(levels, schedule, strict=True)
    ]
    return [
        label,
        *(f"{level:.3f}" for level in levels.mean(0)),
        f"{levels.mean():.3f}",
        f"{(levels - best[:, None]).mean():+.3f}",
        f"{(levels.min(1) - best).mean():+.3f}",
        f"{np.median(worths):g}",
        f"{(levels > 0.0).sum()}/{levels.size}",
    ]


if __name__ == "__main__":
    main()

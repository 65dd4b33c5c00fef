"""What `PolicyLR` costs in a training: `python benchmarks/policy_cost.py`.

Its share of the steps of a CNN on CIFAR-10 (set LRPILOT_DATA to a folder with it; else the digits
alone), microseconds per call beside torch's cosine, and what `import lrpilot` adds.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.problems import CNNS, ENDLESS, available
from benchmarks.side_by_side import Action, print_origin, read_options, seconds_of, take_turns
from lrpilot import ActionSpec, ClockSpec, ObservationSpec, Policy, PolicyLR
from lrpilot.evaluation.report import format_table
from lrpilot.policy.observation import FEATURES
from lrpilot.tasks.images.task import ImageTask

INTERVAL_STEPS = 10
LONG = 10_000
DEPLOYED_INTERVAL_STEPS = (20, 333)  # 30 decisions in 600 (the CIFAR-10 task) and in 10,000 steps
EMPTY = "an empty call"
NUM_PARAMETERS = 80_000
LOSS_GROUPS = ("progress", "loss", "lr")
GROUPS = {
    "loss features": LOSS_GROUPS,
    "with movement": (*LOSS_GROUPS, "movement"),
    "all features": tuple(FEATURES),
}


def constant_policy(groups: tuple[str, ...]) -> Policy:
    """A policy of the default size whose action is always 0."""
    rng = np.random.default_rng(0)
    observation = ObservationSpec(groups=groups)
    sizes = [len(observation.names), 64, 64, 1]
    layers = [
        (
            rng.normal(size=(a, b)).astype(np.float32) / np.float32(np.sqrt(a)),
            np.zeros(b, np.float32),
        )
        for a, b in pairwise(sizes)
    ]
    layers[-1][0].fill(0.0)
    return Policy(layers, observation, ActionSpec(), ClockSpec(horizon_range=(1, ENDLESS)))


def measure_shares(task: ImageTask, num_turns: int) -> dict[str, float]:
    """Shares of a training's time that the steps of schedulers take, less that of an empty call.

    They take turns, each after a step of the training, since what a call finds in the processor's
    caches then costs more than the call itself.
    """
    run = task.start(0)
    features = constant_policy(GROUPS["all features"])
    schedulers: dict[str, Callable[[torch.Tensor], object]] = {
        f"all features, every {interval_steps} steps": PolicyLR(
            run.optimizer, features, total_steps=ENDLESS, interval_steps=interval_steps
        ).step
        for interval_steps in DEPLOYED_INTERVAL_STEPS
    }
    for name in ("cifar", "small_trainings"):
        schedulers[f"{name}, T = 10,000"] = PolicyLR(run.optimizer, name, total_steps=LONG).step
    cosine = CosineAnnealingLR(run.optimizer, ENDLESS)
    schedulers["torch cosine"] = lambda loss: cosine.step()
    schedulers[EMPTY] = lambda loss: None
    losses: list[torch.Tensor] = []
    in_steps = 0.0
    inside = dict.fromkeys(schedulers, 0.0)
    for _ in range(num_turns):
        for name, step in schedulers.items():
            in_steps += seconds_of(lambda: losses.append(run.step()))
            inside[name] += seconds_of(partial(step, losses.pop()))
    nothing = inside.pop(EMPTY)
    of_a_step = in_steps / len(schedulers) - nothing
    return {name: (seconds - nothing) / of_a_step for name, seconds in inside.items()}


def scheduler_steps() -> dict[str, Action]:
    """`PolicyLR.step` by features and interval, and that of torch's cosine."""
    loss = torch.tensor(1.5)
    steps: dict[str, Action] = {}
    for name, groups in GROUPS.items():
        for interval_steps in (INTERVAL_STEPS, 1):
            parameters = [torch.nn.Parameter(torch.randn(NUM_PARAMETERS // 8)) for _ in range(8)]
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer = torch.optim.SGD(parameters, lr=0.1)
            scheduler = PolicyLR(
                optimizer,
                constant_policy(groups),
                total_steps=ENDLESS,
                interval_steps=interval_steps,
            )
            optimizer.step()
            steps[f"{name}, {interval_steps}"] = partial(scheduler.step, loss)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    steps["torch cosine"] = CosineAnnealingLR(optimizer, ENDLESS).step
    optimizer.step()
    return steps


def measure_import(repetitions: int) -> float:
    """Milliseconds that `import lrpilot` adds to `import torch`, in fresh processes."""
    code = (
        "import torch, time; t = time.process_time(); import lrpilot;"
        "print((time.process_time() - t) * 1e3)"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code]
    return median(
        float(subprocess.check_output(command, cwd=root, text=True)) for _ in range(repetitions)
    )


def main() -> None:
    """Measure everything and print it."""
    options = read_options(__doc__, num_rounds=5, num_turns=999)
    print_origin("processor time, seed 0")
    shares = {task.name: measure_shares(task, options.num_turns) for task in available(CNNS)}
    print("Share of the time of a training's steps (batch 64)")
    lines = [
        [name, *(f"{share:.2%}" for share in of_task.values())] for name, of_task in shares.items()
    ]
    print(format_table(["task", *next(iter(shares.values()))], lines) + "\n")
    print(f"PolicyLR.step in microseconds (interval {INTERVAL_STEPS}, 0-d tensor loss)")
    steps = scheduler_steps()
    take_turns(steps, num_calls=1000, num_rounds=1)
    times = take_turns(steps, num_calls=2000, num_rounds=options.num_rounds)
    cost = {name: median(values) * 1e6 for name, values in times.items()}
    lines = [
        [name, f"{cost[f'{name}, {INTERVAL_STEPS}']:.2f}", f"{cost[f'{name}, 1']:.1f}"]
        for name in GROUPS
    ]
    lines.append(["torch cosine", f"{cost['torch cosine']:.2f}", "-"])
    print(format_table(["scheduler", "mean per step", "one decision"], lines) + "\n")
    print(f"import lrpilot after torch: {measure_import(5):.0f} ms")


if __name__ == "__main__":
    main()

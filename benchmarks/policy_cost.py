"""What `PolicyLR` costs in a training: `python benchmarks/policy_cost.py`.

Its share of the steps of a CNN on CIFAR-10 (set LRPILOT_DATA to a folder with it; else the digits
alone), microseconds per call beside torch's cosine, and what `import lrpilot` adds.
"""

import subprocess
import sys
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
DEPLOYED_INTERVAL_STEPS = (20, 333)  # 30 decisions in 600 (the CIFAR-10 task) and in 10,000 steps
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


def measure_share(task: ImageTask, interval_steps: int) -> float:
    """Share of a training's time that `PolicyLR.step` with all features takes."""
    run = task.start(0)
    policy = constant_policy(GROUPS["all features"])
    scheduler = PolicyLR(run.optimizer, policy, total_steps=ENDLESS, interval_steps=interval_steps)
    losses: list[torch.Tensor] = []
    in_step = in_scheduler = 0.0
    for _ in range(interval_steps * max(3, 1000 // interval_steps)):
        in_step += seconds_of(lambda: losses.append(run.step()))
        in_scheduler += seconds_of(partial(scheduler.step, losses.pop()))
    return in_scheduler / in_step


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
    options = read_options(__doc__, num_rounds=5)
    print_origin("processor time, seed 0")
    lines = [
        [task.name, *(f"{measure_share(task, steps):.2%}" for steps in DEPLOYED_INTERVAL_STEPS)]
        for task in available(CNNS)
    ]
    print("PolicyLR with all features over the steps of a training (batch 64)")
    header = ["task", *(f"interval {steps}" for steps in DEPLOYED_INTERVAL_STEPS)]
    print(format_table(header, lines) + "\n")
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

"""The learning rate that a policy sets on a small training of its own."""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from lrpilot.arguments import require_count
from lrpilot.schedulers.policy_lr import PolicyLR

PROBLEM = (
    "a small run: a network of 20, 32 and 5 units learns the 5 classes of 512 points that a random "
    "network names, in batches of 32, by SGD with momentum 0.9"
)
HEIGHT, WIDTH = 12, 64


class Step(NamedTuple):
    """One optimizer step: the learning rate that it used, and the minibatch loss before it."""

    step: int
    lr: float
    loss: float


def simulate(policy: str, *, total_steps: int, lr: float, seed: int) -> list[Step]:
    """Train `PROBLEM` under a policy.

    Args:
        policy: as for `Policy.load`.
        total_steps: optimizer steps, at least 1.
        lr: initial learning rate, positive.
        seed: of weights, points and batches.

    Raises:
        ValueError: if an argument is out of range.
    """
    require_count("total_steps", total_steps)
    if not 0.0 < lr < math.inf:
        raise ValueError(f"`--lr` must be positive, got {lr}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"`--seed` must be 0 or more, got {seed}")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # that a run is shorter or longer than those in training is what one may want to see
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(seed)
        teacher = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5))
        model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5))
        points = torch.randn(512, 20)
        classes = teacher(points).argmax(dim=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        scheduler = PolicyLR(optimizer, policy, total_steps=total_steps)
        steps = []
        for step in range(total_steps):
            batch = torch.randint(512, (32,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(points[batch]), classes[batch])
            loss.backward()
            steps.append(Step(step, float(optimizer.param_groups[0]["lr"]), float(loss)))
            optimizer.step()
            scheduler.step(loss)
    return steps


def simulation_csv(steps: Sequence[Step]) -> list[str]:
    """The lines of a CSV file."""
    return [",".join(Step._fields), *(f"{s.step},{s.lr:.9g},{s.loss:.9g}" for s in steps)]


def simulation_lines(steps: Sequence[Step], policy: str) -> list[str]:
    """A plot in text: the learning rate, on a logarithmic axis, over the steps."""
    columns = min(WIDTH, len(steps))
    shown = [steps[i * len(steps) // columns] for i in range(columns)]
    logs = [math.log10(step.lr) for step in shown]
    low, high = min(logs), max(logs)
    rows = [round((HEIGHT - 1) * (log - low) / ((high - low) or 1.0)) for log in logs]
    lines = [f"{policy} on {PROBLEM}", ""]
    for row in reversed(range(HEIGHT)):
        label = 10 ** (low + (high - low) * row / (HEIGHT - 1))
        lines.append(f"{label:9.3g} |" + "".join(" *"[mine == row] for mine in rows).rstrip())
    axis = f"{'':10}0{f'{len(steps)} steps':>{columns}}"
    return [*lines, f"{'':10}+{'-' * columns}", axis, "", f"loss {_ends(steps)}"]


def _ends(steps: Sequence[Step]) -> str:
    return f"{steps[0].loss:.3g} in the first step, {steps[-1].loss:.3g} in the last"

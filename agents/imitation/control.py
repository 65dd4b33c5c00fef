"""Batched trainings of one horizon, whose learning rates come from whoever acts."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lrpilot import ActionSpec, ClockSpec, ObservationSpec
from lrpilot.agents.imitation.experts import log_levels
from lrpilot.policy.controller import Controller
from lrpilot.tasks.task import Task

Array = NDArray[np.float32]
Floats = NDArray[np.float64]


def train_controlled(
    task: Task,
    act: Callable[[Controller, Array], Array | Floats],
    *,
    observation: ObservationSpec,
    action: ActionSpec,
    clock: ClockSpec,
    seeds: Sequence[int],
    initial_lrs: Floats,
    total_steps: int,
) -> Floats:
    """Train B runs to their end, and return their log held-out losses over those at the start.

    Args:
        task: batched.
        act: called at every decision with the controller and the observations (B, features);
            returns the actions (B,), which are clipped.
        observation: what is observed.
        action: what actions do.
        clock: when decisions are due.
        seeds: of the trainings, (B,).
        initial_lrs: (B,).
        total_steps: T of all.

    Returns:
        Levels (B,), as those of `Experts`.
    """
    num_runs = len(seeds)
    rows = list(range(num_runs))
    runs = task.start_batch(num_runs)
    runs.reset(rows, list(seeds))
    controller = Controller(observation, action, runs, clock=clock, num_runs=num_runs)
    intervals = [clock.interval_steps(total_steps)] * num_runs
    controller.reset(rows, total_steps=[total_steps] * num_runs, interval_steps=intervals)
    first = runs.privileged_losses()
    everyone = np.ones(num_runs, np.bool_)
    active = torch.as_tensor(everyone, device=runs.device)
    while True:
        lrs = torch.as_tensor(initial_lrs * controller.factor, device=runs.device)
        # all have the same horizon, and decide together
        for _ in range(int(controller.steps_to_decision()[0])):
            controller.step(runs.step(lrs, active), everyone)
        if controller.num_steps[0] >= total_steps:
            return log_levels(runs.privileged_losses(), first)
        observations = controller.close_interval(everyone)
        controller.act(np.array(act(controller, observations), np.float64).clip(-1.0, 1.0))

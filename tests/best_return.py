"""The best that any policy can do on the quadratic, which is known exactly."""

import math
from typing import Any

import numpy as np

from lrpilot.policy.action import ActionSpec, anchor_factor
from lrpilot.tasks.quadratic import QuadraticTask


def best_return(
    task: QuadraticTask,
    action: ActionSpec,
    *,
    initial_lr: float,
    interval_steps: int,
    num_intervals: int,
    grid_size: int = 801,
) -> float:
    """The largest log(v_0/v_K) that any policy can reach under the limits of its actions.

    v_k is v after interval k; interval 1 runs at the start factor, and a decision precedes each
    of the others. One step's v' grows with v, so the smallest v that reaches a multiplier is
    found forwards, by dynamic programming over a grid of log multipliers.

    Args:
        task: the problem, under plain SGD.
        action: the limits, of kind "multiplier".
        initial_lr: initial learning rate.
        interval_steps: optimizer steps per decision.
        num_intervals: K.
        grid_size: points of the grid.

    Raises:
        ValueError: if the kind of action is not "multiplier".
    """
    if action.kind != "multiplier":
        raise ValueError(f"`action` must be of kind 'multiplier', got {action.kind!r}")
    logs = np.linspace(math.log(action.min_factor), math.log(action.max_factor), grid_size)
    # rounding down keeps every move of the grid inside what an action can do
    spacing = math.log(action.max_factor / action.min_factor) / (grid_size - 1)
    reach = math.floor(action.max_log_change / spacing + 1e-9) if spacing > 0.0 else grid_size

    def run_interval(v: Any, factor: Any) -> Any:
        eta = initial_lr * factor
        for _ in range(interval_steps):
            v = (1 - eta * task.curvature) ** 2 * v + eta**2 * task.noise_power
        return v

    first = float(run_interval(task.initial_power, action.start_factor))
    smallest = np.full(grid_size, first)
    for k in range(1, num_intervals):
        if k == 1:
            # the start factor may lie between two points of the grid
            distance = np.abs(logs - math.log(action.start_factor))
            reachable = np.where(distance <= action.max_log_change + 1e-9, first, np.inf)
        else:
            padded = np.pad(smallest, reach, constant_values=np.inf)
            windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
            reachable = windows.min(axis=1)
        anchor = anchor_factor(action.anchor, k / num_intervals)
        factor = np.clip(anchor * np.exp(logs), action.min_factor, action.max_factor)
        is_reached = np.isfinite(reachable)
        smallest = np.full(grid_size, np.inf)
        smallest[is_reached] = run_interval(reachable[is_reached], factor[is_reached])
    return math.log(task.initial_power / float(smallest.min()))

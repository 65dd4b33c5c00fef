"""A noisy quadratic whose best learning-rate schedule is known."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrpilot.policy.action import ActionSpec, anchor_factor
from lrpilot.tasks.runs import Run
from lrpilot.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class QuadraticTask(Task):
    """Minimize lambda/2 ||x||^2 from gradients lambda x + xi, E||xi||^2 = s^2.

    The minibatch loss is lambda/2 ||x - z||^2 with z Gaussian, whose gradient has that noise.
    With v = E||x||^2, one SGD step gives v' = (1 - eta lambda)^2 v + eta^2 s^2; the best step is
    eta = lambda v / (lambda^2 v + s^2), and then v' = v s^2 / (lambda^2 v + s^2).

    Args:
        dimension: entries of x.
        curvature: lambda.
        noise_power: s^2.
        initial_power: v_0 = ||x_0||^2, in a random direction.

    Raises:
        ValueError: if a size or power is not positive (the noise may be 0).
    """

    dimension: int = 200
    curvature: float = 1.0
    noise_power: float = 0.1
    initial_power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dimension", "curvature", "initial_power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if not self.noise_power >= 0.0:
            raise ValueError(f"`noise_power` must not be negative, got {self.noise_power}")

    def start(self, seed: int) -> "QuadraticRun":
        """A new run from a random point of the sphere ||x||^2 = v_0."""
        return QuadraticRun(self, seed)


class QuadraticRun(Run):
    """One descent on the noisy quadratic."""

    def __init__(self, task: QuadraticTask, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(task.dimension, generator=generator)
        direction *= math.sqrt(task.initial_power) / direction.norm()
        self.x = torch.nn.Parameter(direction)
        super().__init__([self.x], optimizer=task.optimizer, lr=task.base_lr, generator=generator)
        self._curvature = task.curvature
        self._noise_std = math.sqrt(task.noise_power / task.dimension) / task.curvature

    def _set_gradients(self) -> Tensor:
        with torch.no_grad():
            noise = torch.randn(self.x.shape, generator=self.generator)
            difference = self.x - noise.mul_(self._noise_std)
            self.x.grad = self._curvature * difference
            return self._curvature / 2 * difference.dot(difference)

    def privileged_loss(self) -> float:
        """The noise-free objective lambda/2 ||x||^2."""
        x = self.x.detach()
        return float(self._curvature / 2 * x.dot(x))

    def evaluate(self) -> dict[str, float]:
        """The noise-free objective, as the held-out loss."""
        return {"held_out_loss": self.privileged_loss()}


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

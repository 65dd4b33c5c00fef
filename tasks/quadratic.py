"""A noisy quadratic whose best learning-rate schedule is known."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lrpilot.tasks.devices import DeviceTask
from lrpilot.tasks.runs import Run


@dataclass(frozen=True, kw_only=True)
class QuadraticTask(DeviceTask):
    """Minimize lambda/2 ||x||^2 from gradients lambda x + xi, E||xi||^2 = s^2.

    The minibatch loss is lambda/2 ||x - z||^2 with z Gaussian, whose gradient has that noise.
    With v = E||x||^2, one SGD step gives v' = (1 - eta lambda)^2 v + eta^2 s^2; the best step is
    eta = lambda v / (lambda^2 v + s^2), and then v' = v s^2 / (lambda^2 v + s^2).

    Args:
        dimension: entries of x.
        curvature: lambda.
        noise_power: s^2.
        initial_power: v_0 = ||x_0||^2, in a random direction.
    """

    dimension: int = 200
    curvature: float = 1.0
    noise_power: float = 0.1
    initial_power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dimension", "curvature", "initial_power"):
            self._require(name, getattr(self, name) > 0, "be positive")
        self._require("noise_power", self.noise_power >= 0.0, "not be negative")

    def start(self, seed: int) -> "QuadraticRun":
        """A new run from a random point of the sphere ||x||^2 = v_0."""
        return QuadraticRun(self, seed)


class QuadraticRun(Run):
    """One descent on the noisy quadratic."""

    def __init__(self, task: QuadraticTask, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(task.dimension, generator=generator)
        direction *= math.sqrt(task.initial_power) / direction.norm()
        self.x = torch.nn.Parameter(direction.to(task.device))
        super().__init__([self.x], optimizer=task.optimizer, lr=task.base_lr, generator=generator)
        self.curvature = task.curvature
        self._noise_std = math.sqrt(task.noise_power / task.dimension) / task.curvature

    def _set_gradients(self) -> Tensor:
        with torch.no_grad():
            noise = torch.randn(self.x.shape, generator=self.generator).to(self.x.device)
            difference = self.x - noise.mul_(self._noise_std)
            self.x.grad = self.curvature * difference
            return self.curvature / 2 * difference.dot(difference)

    def privileged_loss(self) -> float:
        """The noise-free objective lambda/2 ||x||^2."""
        x = self.x.detach()
        return float(self.curvature / 2 * x.dot(x))

    def evaluate(self) -> dict[str, float]:
        """The noise-free objective, as the held-out loss."""
        return {"held_out_loss": self.privileged_loss()}

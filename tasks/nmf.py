"""Stochastic non-negative matrix factorization with a noisy gradient."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.runs import Run, Task


@dataclass(frozen=True, kw_only=True)
class NMFTask(Task):
    """Minimize f(W, H) = 1/2 ||V - W H||^2 over W, H >= 0 from noisy gradients.

    Each seed is a new matrix V = max(W* H* + E, 0), with W*, H* uniform and E Gaussian. Gradients
    are unbiased: W's comes from a random minibatch of columns, H's from one of rows, each drawn
    without replacement, and Gaussian noise may be added. After every step the factors are
    projected on the non-negative orthant. The observed loss is the mean of the two minibatch
    estimates of f; the exact f is privileged.

    Args:
        shape: (m, n) of V.
        rank: r, at most min(m, n).
        batch_size: columns (rows) per gradient, at most min(m, n).
        data_noise: standard deviation of E over the mean of V.
        gradient_noise: standard deviation of the noise added to each gradient entry.

    Raises:
        ValueError: if a size is out of range or a noise level is negative.
    """

    shape: tuple[int, int] = (40, 40)
    rank: int = 5
    batch_size: int = 10
    data_noise: float = 0.1
    gradient_noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        smaller = min(self.shape)
        if not 1 <= self.rank <= smaller:
            raise ValueError(f"`rank` must be in [1, min(m, n) = {smaller}], got {self.rank}")
        if not 1 <= self.batch_size <= smaller:
            raise ValueError(
                f"`batch_size` must be in [1, min(m, n) = {smaller}], got {self.batch_size}"
            )
        for name in ("data_noise", "gradient_noise"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")

    def start(self, seed: int) -> "NMFRun":
        """A new run on a new matrix, from random factors of the right scale."""
        return NMFRun(self, seed)


class NMFRun(Run):
    """One factorization in progress; the parameters are W (m x r) and H (r x n)."""

    def __init__(self, task: NMFTask, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        m, n = task.shape

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        clean = uniform(m, task.rank) @ uniform(task.rank, n)
        noise = torch.randn(m, n, generator=generator)
        self.matrix = (clean + task.data_noise * clean.mean() * noise).clamp_(min=0.0)
        scale = 2 * math.sqrt(float(self.matrix.mean()) / task.rank)
        self.w = torch.nn.Parameter(scale * uniform(m, task.rank))
        self.h = torch.nn.Parameter(scale * uniform(task.rank, n))
        super().__init__(
            [self.w, self.h], optimizer=task.optimizer, lr=task.base_lr, generator=generator
        )
        self._task = task

    @torch.no_grad()
    def _backward(self) -> Tensor:
        batch, (m, n) = self._task.batch_size, self._task.shape
        columns = torch.randperm(n, generator=self.generator)[:batch]
        rows = torch.randperm(m, generator=self.generator)[:batch]
        h = self.h[:, columns]
        w = self.w[rows]
        column_residual = self.w @ h - self.matrix[:, columns]
        row_residual = w @ self.h - self.matrix[rows]
        self.w.grad = (column_residual @ h.T).mul_(n / batch)
        self.h.grad = (w.T @ row_residual).mul_(m / batch)
        if self._task.gradient_noise > 0.0:
            for parameter in self.parameters:
                noise = torch.randn(parameter.shape, generator=self.generator)
                assert parameter.grad is not None
                parameter.grad.add_(noise, alpha=self._task.gradient_noise)
        return (
            column_residual.square().sum() * (n / batch) + row_residual.square().sum() * (m / batch)
        ) / 4

    @torch.no_grad()
    def _project(self) -> None:
        self.w.clamp_(min=0.0)
        self.h.clamp_(min=0.0)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the matrix, which is the seed's own."""
        return {**super().state_dict(), "matrix": self.matrix.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task."""
        super().load_state_dict(state)
        self.matrix = state["matrix"].clone()

    @torch.no_grad()
    def privileged_loss(self) -> float:
        """The exact objective 1/2 ||V - W H||^2."""
        return float((self.w @ self.h - self.matrix).square().sum() / 2)

    def evaluate(self) -> dict[str, float]:
        """The exact objective, and ||V - W H|| / ||V||."""
        loss = self.privileged_loss()
        norm = float(self.matrix.norm())
        return {"held_out_loss": loss, "relative_error": math.sqrt(2 * loss) / norm}

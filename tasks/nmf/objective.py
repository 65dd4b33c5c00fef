"""The mathematics of one step: noisy gradients, projections and caps."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpilot.tasks.nmf.caps import block_cap, joint_ball_cap, project_ball, segment_cap
from lrpilot.tasks.nmf.draws import Instance
from lrpilot.tasks.nmf.problem import NMFProblem

# noise vectors longer than their mean length by this many standard deviations of an entry are
# shortened to it (a chance of 1e-15 per step), so that a certificate can count on their length
NOISE_MARGIN = 8.0


class Exact(NamedTuple):
    """With R = W H - V: G_W = R H^T, G_H = W^T R, and ||R_j||^2 for each column j."""

    gradient_w: Tensor
    gradient_h: Tensor
    squared_columns: Tensor


class Numbers(NamedTuple):
    """Random numbers, ready for use; drawn for many steps they have one more dimension."""

    columns: Tensor  # of a minibatch, or of the observed loss: (..., batch_size)
    rows: Tensor  # of a minibatch: (..., batch_size)
    noise_w: Tensor  # added noise in units of its standard deviation: (..., m, r)
    noise_h: Tensor  # likewise: (..., r, n)

    def at(self, index: Any) -> "Numbers":
        """The numbers of one step."""
        return Numbers(*(numbers[index] for numbers in self))


class Objective:
    """f, its noisy gradients, its feasible set and its cap, for one instance or a batch of them."""

    def __init__(self, problem: NMFProblem, instance: Instance) -> None:
        self.problem = problem
        matrix, w, h = instance.matrix, instance.w, instance.h
        self.matrix = matrix
        # large results are written into these, since fresh memory costs more than the products
        self._residual, self._squares = torch.empty_like(matrix), torch.empty_like(matrix)
        self.size, self.noise_level = instance.size, instance.noise_level
        self.mask_w = (w > 0).any(-1, keepdim=True) & (h > 0).any(-1)[..., None, :]
        self.mask_h = (w > 0).any(-2)[..., :, None] & (h > 0).any(-2, keepdim=True)
        num_w, num_h = self.mask_w.sum((-2, -1)), self.mask_h.sum((-2, -1))
        # lengths, in standard deviations of an entry, beyond which noise is shortened
        self.length_w = num_w.sqrt() + NOISE_MARGIN
        self.length_h = num_h.sqrt() + NOISE_MARGIN
        mean_rank = self.mask_h.any(-1).sum(-1)
        norm = torch.linalg.vector_norm(matrix, dim=(-2, -1))
        # an optimum with balanced factors has ||W||_F^2 <= sqrt(r) ||V||_F
        radius = (1.2 * mean_rank.sqrt() * norm).sqrt()
        self.radius = radius.clamp(min=torch.finfo(radius.dtype).tiny)
        self.num_entries = num_w + num_h
        self.initial_std = self._noise_std(self.norm(self.exact(*self.project(w, h))))
        self.loss_scale = self.size[..., 1] / problem.batch_size / 2
        self._ball_cap: Tensor | None = None

    def exact(self, w: Tensor, h: Tensor) -> Exact:
        """Gradients and losses by column, without noise."""
        multiply = torch.addmm if w.ndim == 2 else torch.baddbmm
        residual = multiply(self.matrix, w, h, beta=-1, out=self._residual)
        squares = torch.square(residual, out=self._squares)
        return Exact(residual @ h.mT, w.mT @ residual, squares.sum(-2))

    def loss(self, w: Tensor, h: Tensor) -> Tensor:
        """The exact objective f."""
        # the squares of `exact` are summed when it returns: their memory is free
        residual = torch.matmul(w, h, out=self._squares).sub_(self.matrix)
        return residual.square_().sum((-2, -1)) / 2

    @staticmethod
    def norm(exact: Exact) -> Tensor:
        """Frobenius norm of (G_W, G_H)."""
        squares = exact.gradient_w.square().sum((-2, -1)) + exact.gradient_h.square().sum((-2, -1))
        return squares.sqrt()

    def _noise_std(self, norm: Tensor) -> Tensor:
        return self.noise_level * norm / self.num_entries.clamp(min=1).sqrt()

    def noise_std(self, exact: Exact) -> Tensor:
        """Standard deviation of each noise entry, of the batch's shape."""
        if self.problem.noise == "gaussian":
            return self.initial_std
        return self._noise_std(self.norm(exact))

    def prepare(self, uniforms: Tensor, normals: Tensor, rows: Tensor | None = None) -> Numbers:
        """What the steps need of their random numbers, (steps, ...) or (rows, steps, ...).

        Added noise that is longer than its bound is shortened to it, in the memory of `normals`.
        """
        _, n = self.problem.shape
        mine: Any = ... if rows is None else rows
        size = self.size[mine]
        split = self.mask_w.shape[-2] * self.mask_w.shape[-1]
        return Numbers(
            self._pick(uniforms[..., :n], size[..., 1]),
            self._pick(uniforms[..., n:], size[..., 0]),
            self._shorten(normals[..., :split], self.mask_w[mine], self.length_w[mine]),
            self._shorten(normals[..., split:], self.mask_h[mine], self.length_h[mine]),
        )

    @staticmethod
    def _shorten(normals: Tensor, mask: Tensor, length: Tensor) -> Tensor:
        if not normals.shape[-1]:
            return normals
        noise = normals.view(*normals.shape[:-1], *mask.shape[-2:]).mul_(mask.unsqueeze(-3))
        norm = torch.linalg.vector_norm(noise, dim=(-2, -1)).clamp(min=1e-30)
        shorter = (length[..., None] / norm).clamp(max=1.0)
        return noise.mul_(shorter[..., None, None])

    def _pick(self, uniforms: Tensor, num_valid: Tensor) -> Tensor:
        """Indices of minibatches of columns or rows, (..., steps, batch_size)."""
        size = self.problem.batch_size if uniforms.shape[-1] else 0
        if self.problem.with_replacement:
            return (uniforms[..., :size] * num_valid[..., None, None]).long()
        outside = torch.arange(uniforms.shape[-1], device=uniforms.device) >= num_valid[..., None]
        return (uniforms + outside[..., None, :]).topk(size, dim=-1, largest=False).indices

    def minibatch(
        self, w: Tensor, h: Tensor, numbers: Numbers
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Unbiased gradients from columns (W) and rows (H), and the mean of both losses."""
        num_rows, num_columns = self.size[..., 0], self.size[..., 1]
        columns, rows = numbers.columns[..., None, :], numbers.rows[..., :, None]
        part_h = torch.take_along_dim(h, columns, -1)
        part_w = torch.take_along_dim(w, rows, -2)
        by_column = w @ part_h - torch.take_along_dim(self.matrix, columns, -1)
        by_row = part_w @ h - torch.take_along_dim(self.matrix, rows, -2)
        factor_w = num_columns / self.problem.batch_size
        factor_h = num_rows / self.problem.batch_size
        gradients = (
            by_column @ part_h.mT * factor_w[..., None, None],
            part_w.mT @ by_row * factor_h[..., None, None],
        )
        losses = by_column.square().sum((-2, -1)) * factor_w
        losses = losses + by_row.square().sum((-2, -1)) * factor_h
        return gradients, losses / 4

    def noisy_gradients(
        self, w: Tensor, h: Tensor, numbers: Numbers, *, exact: Exact | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """What the algorithm sees at (W, H): gradients of both blocks, and the observed loss."""
        problem = self.problem
        if problem.noise == "minibatch":
            return self.minibatch(w, h, numbers)
        exact = exact or self.exact(w, h)
        if problem.noise == "none":
            return (exact.gradient_w, exact.gradient_h), exact.squared_columns.sum(-1) / 2
        sampled = torch.take_along_dim(exact.squared_columns, numbers.columns, -1).sum(-1)
        loss = sampled * self.loss_scale
        std = self.noise_std(exact)[..., None, None]
        noisy_w = exact.gradient_w + numbers.noise_w * std
        return (noisy_w, exact.gradient_h + numbers.noise_h * std), loss

    def project(self, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The feasible factors nearest to (W, H): non-negative and, under the ball cap, short."""
        if self.problem.cap_kind == "ball":
            # a diverged step is projected, too: short enough that its norm does not overflow
            finite_w, finite_h = (x.nan_to_num().clamp(max=1e15) for x in (w, h))
            return project_ball(finite_w, self.radius), project_ball(finite_h, self.radius)
        return w.clamp(min=0.0), h.clamp(min=0.0)

    def cap(
        self, w: Tensor, h: Tensor, moves_w: Tensor, *, exact: Exact | None = None
    ) -> tuple[Tensor, str]:
        """The problem's cap at (W, H); `moves_w` says which block an alternating step moves.

        Under relative noise, E||xi||^2 = rho ||G||^2, it is divided by 1 + rho: else noise that
        grows with the loss can drive it up without limit.
        """
        eta = self._cap(w, h, moves_w, exact=exact)
        if self.problem.noise == "relative":
            eta = eta / (1 + self.noise_level.square())
        return eta, "deterministic" if self.problem.noise == "none" else "stationary"

    def _cap(self, w: Tensor, h: Tensor, moves_w: Tensor, *, exact: Exact | None) -> Tensor:
        kind, c = self.problem.cap_kind, self.problem.cap_c
        if kind is None:
            raise ValueError("`cap_kind` must name a cap before it is asked for, got None")
        if kind == "ball":
            if self._ball_cap is None:
                self._ball_cap = joint_ball_cap(self.matrix, self.radius, self.radius, c=c)
            return self._ball_cap
        if kind == "block":
            return torch.where(moves_w, block_cap(h, c=c), block_cap(w.mT, c=c))
        exact = exact or self.exact(w, h)
        noise_lengths = None
        if self.problem.noise != "none":
            std = self.noise_std(exact)
            noise_lengths = (std * self.length_w, std * self.length_h)
        gradients = (exact.gradient_w, exact.gradient_h)
        loss = exact.squared_columns.sum(-1) / 2
        return segment_cap(w, h, gradients, loss, c=c, noise_lengths=noise_lengths)

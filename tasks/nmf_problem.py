"""The mathematics of stochastic NMF: instances, noisy gradients, projections and caps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lrpilot.caps import block_cap, joint_ball_cap, project_ball, segment_cap

if TYPE_CHECKING:
    from tasks.nmf import NMFTask

# random numbers are drawn for so many steps at once, and minibatches of the observed loss
DRAWN_STEPS = 32
# noise vectors longer than their mean length by this many standard deviations of an entry are
# shortened to it (a chance of 1e-15 per step), so that a certificate can count on their length
NOISE_MARGIN = 8.0


@dataclass
class Instance:
    """A problem and its start, padded with zeros to the task's largest size.

    A zero row or column stays zero: its gradient vanishes, and its noise is masked.
    """

    matrix: Tensor
    w: Tensor
    h: Tensor
    size: Tensor  # valid rows m, columns n
    noise_level: Tensor


def draw_instance(task: "NMFTask", generator: torch.Generator) -> Instance:
    """A new problem and start; every random number comes from the generator, in a fixed order."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def between(bounds: Sequence[float]) -> float:
        low, high = map(math.log, bounds)
        return math.exp(low + float(uniform(1)) * (high - low))

    def integer(low: int, high: int) -> int:
        return min(high, low + int(float(uniform(1)) * (high - low + 1)))

    m, n = task.shape
    smallest = task.smallest_shape or task.shape
    rows, columns = integer(smallest[0], m), integer(smallest[1], n)
    rank = integer(task.smallest_rank or task.rank, task.rank)
    scale = between(task.scale_range)
    decay = between(task.condition_range) ** (-torch.arange(rank) / max(1, rank - 1))
    sparsity = task.sparsity_range[0] + float(uniform(1)) * (
        task.sparsity_range[1] - task.sparsity_range[0]
    )
    noise_level = between(task.noise_range)
    if task.matrix is None:
        valid = torch.zeros(rows, columns)
        while not bool(valid.any()):  # a very sparse draw may be zero everywhere
            w = uniform(rows, rank) * (uniform(rows, rank) >= sparsity) * decay
            h = uniform(rank, columns) * (uniform(rank, columns) >= sparsity)
            clean = w @ h
            noise = torch.randn(rows, columns, generator=generator)
            valid = (clean + task.data_noise * clean.mean() * noise).clamp_(min=0.0)
    else:
        valid = task.real_matrix()
    matrix = torch.zeros(m, n)
    matrix[:rows, :columns] = valid / valid.mean() * scale
    # entries of mean (k / sqrt(r)): W H starts at the mean of V, and W and H at one scale
    entry = 2 * math.sqrt(scale / rank)
    w, h = torch.zeros(m, task.rank), torch.zeros(task.rank, n)
    w[:rows, :rank] = entry * uniform(rows, rank)
    h[:rank, :columns] = entry * uniform(rank, columns)
    return Instance(matrix, w, h, torch.tensor([rows, columns]), torch.tensor(noise_level))


class Exact(NamedTuple):
    """What is exact at (W, H): R = W H - V, G_W = R H^T, G_H = W^T R, and ||R_j||^2 by column."""

    residual: Tensor
    gradient_w: Tensor
    gradient_h: Tensor
    squared_columns: Tensor


class Problem:
    """The mathematics of one step, for one run or, with a leading dimension, for many."""

    def __init__(self, task: "NMFTask", matrix: Tensor, w: Tensor, h: Tensor, **fixed: Tensor):
        self.task = task
        self.matrix = matrix
        # large results are written into these, since fresh memory costs more than the products
        self._residual, self._squares = torch.empty_like(matrix), torch.empty_like(matrix)
        self.size = fixed["size"]
        self.noise_level = fixed["noise_level"]
        self.mask_w = (w > 0).any(-1, keepdim=True) & (h > 0).any(-1)[..., None, :]
        self.mask_h = (w > 0).any(-2)[..., :, None] & (h > 0).any(-2, keepdim=True)
        self.num_entries = self.mask_w.sum((-2, -1)) + self.mask_h.sum((-2, -1))
        mean_rank = self.mask_h.any(-1).sum(-1)
        norm = torch.linalg.vector_norm(matrix, dim=(-2, -1))
        # an optimum with balanced factors has ||W||_F^2 <= sqrt(r) ||V||_F
        radius = (1.2 * mean_rank.sqrt() * norm).sqrt()
        self.radius = radius.clamp(min=torch.finfo(radius.dtype).tiny)
        self.initial_norm = self.norm(self.exact(*self.project(w, h)))
        self._ball_cap: Tensor | None = None

    def exact(self, w: Tensor, h: Tensor) -> Exact:
        """Residual and gradients without noise; valid until it is called again."""
        multiply = torch.addmm if w.ndim == 2 else torch.baddbmm
        residual = multiply(self.matrix, w, h, beta=-1, out=self._residual)
        squares = torch.square(residual, out=self._squares)
        return Exact(residual, residual @ h.mT, w.mT @ residual, squares.sum(-2))

    def loss(self, w: Tensor, h: Tensor) -> Tensor:
        """The exact objective f."""
        return (w @ h - self.matrix).square().sum((-2, -1)) / 2

    @staticmethod
    def norm(exact: Exact) -> Tensor:
        """Frobenius norm of (G_W, G_H)."""
        squares = exact.gradient_w.square().sum((-2, -1)) + exact.gradient_h.square().sum((-2, -1))
        return squares.sqrt()

    def noise_std(self, exact: Exact) -> Tensor:
        """Standard deviation of each noise entry, of the batch's shape."""
        norm = self.initial_norm if self.task.noise == "gaussian" else self.norm(exact)
        return self.noise_level * norm / self.num_entries.clamp(min=1).sqrt()

    def noise_bounds(self, std: Tensor) -> tuple[Tensor, Tensor]:
        """The lengths beyond which the noise of W and of H is shortened."""
        length_w, length_h = (mask.sum((-2, -1)).sqrt() for mask in (self.mask_w, self.mask_h))
        return std * (length_w + NOISE_MARGIN), std * (length_h + NOISE_MARGIN)

    def pick(self, uniforms: Tensor, num_valid: Tensor) -> Tensor:
        """Indices of a minibatch of columns or rows, (..., batch_size)."""
        size = self.task.batch_size
        if self.task.with_replacement:
            return (uniforms[..., :size] * num_valid[..., None]).long()
        outside = torch.arange(uniforms.shape[-1], device=uniforms.device) >= num_valid[..., None]
        return (uniforms + outside).topk(size, dim=-1, largest=False).indices

    def minibatch(
        self, w: Tensor, h: Tensor, uniforms: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Unbiased gradients from columns (W) and rows (H), and the mean of both losses."""
        m, n = self.task.shape
        num_rows, num_columns = self.size[..., 0], self.size[..., 1]
        columns = self.pick(uniforms[..., :n], num_columns)[..., None, :]
        rows = self.pick(uniforms[..., n : n + m], num_rows)[..., :, None]
        part_h = torch.take_along_dim(h, columns, -1)
        part_w = torch.take_along_dim(w, rows, -2)
        by_column = w @ part_h - torch.take_along_dim(self.matrix, columns, -1)
        by_row = part_w @ h - torch.take_along_dim(self.matrix, rows, -2)
        factor_w = num_columns / self.task.batch_size
        factor_h = num_rows / self.task.batch_size
        gradients = (
            by_column @ part_h.mT * factor_w[..., None, None],
            part_w.mT @ by_row * factor_h[..., None, None],
        )
        losses = by_column.square().sum((-2, -1)) * factor_w
        losses = losses + by_row.square().sum((-2, -1)) * factor_h
        return gradients, losses / 4

    def noisy_gradients(
        self,
        w: Tensor,
        h: Tensor,
        uniforms: Tensor,
        normals: Tensor,
        *,
        exact: Exact | None = None,
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """What the algorithm sees at (W, H): gradients of both blocks, and the observed loss."""
        task = self.task
        if task.noise == "minibatch":
            return self.minibatch(w, h, uniforms)
        exact = exact or self.exact(w, h)
        gradients = (exact.gradient_w, exact.gradient_h)
        if task.noise == "none":
            return gradients, exact.squared_columns.sum(-1) / 2
        columns = self.pick(uniforms, self.size[..., 1])
        sampled = torch.take_along_dim(exact.squared_columns, columns, -1).sum(-1)
        loss = sampled * (self.size[..., 1] / task.batch_size) / 2
        std = self.noise_std(exact)
        noisy = []
        split = w.shape[-2] * w.shape[-1]
        parts = (normals[..., :split], normals[..., split:])
        masks = (self.mask_w, self.mask_h)
        for g, z, mask, bound in zip(gradients, parts, masks, self.noise_bounds(std), strict=True):
            noise = z.reshape(g.shape) * mask * std[..., None, None]
            length = torch.linalg.vector_norm(noise, dim=(-2, -1)).clamp(min=1e-30)
            noisy.append(g + noise * (bound / length).clamp(max=1.0)[..., None, None])
        return (noisy[0], noisy[1]), loss

    def project(self, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The feasible factors nearest to (W, H): non-negative and, under the ball cap, short."""
        if self.task.cap_kind == "ball":
            # a diverged step is projected, too: short enough that its norm does not overflow
            finite_w, finite_h = (x.nan_to_num().clamp(max=1e15) for x in (w, h))
            return project_ball(finite_w, self.radius), project_ball(finite_h, self.radius)
        return w.clamp(min=0.0), h.clamp(min=0.0)

    def cap(
        self,
        w: Tensor,
        h: Tensor,
        moves_w: Tensor,
        *,
        exact: Exact | None = None,
    ) -> tuple[Tensor, str]:
        """The task's cap at (W, H); `moves_w` says which block an alternating step moves.

        Under relative noise, E||xi||^2 = rho ||G||^2, it is divided by 1 + rho: else noise that
        grows with the loss can drive it up without limit.
        """
        eta, guarantee = self._cap(w, h, moves_w, exact=exact)
        if self.task.noise == "relative":
            eta = eta / (1 + self.noise_level.square())
        return eta, guarantee

    def _cap(
        self, w: Tensor, h: Tensor, moves_w: Tensor, *, exact: Exact | None
    ) -> tuple[Tensor, str]:
        task = self.task
        if task.cap_kind == "ball":
            if self._ball_cap is None:
                self._ball_cap, _ = joint_ball_cap(
                    self.matrix, self.radius, self.radius, c=task.cap_c, bound="gram_rows"
                )
            return self._ball_cap, "deterministic" if task.noise == "none" else "stationary"
        if task.cap_kind == "block":
            by_w, guarantee = block_cap(
                h, update=task.update, c=task.cap_c, bound="gram_rows", noisy=task.noise != "none"
            )
            by_h, _ = block_cap(w.mT, update=task.update, c=task.cap_c, bound="gram_rows")
            return torch.where(moves_w, by_w, by_h), guarantee
        if task.cap_kind is None:
            raise ValueError("`cap_kind` must name a cap before it is asked for, got None")
        exact = exact or self.exact(w, h)
        gradients = (exact.gradient_w, exact.gradient_h)
        bounds = None
        if task.noise != "none":
            norms = [torch.linalg.vector_norm(g, dim=(-2, -1)) for g in gradients]
            noise = self.noise_bounds(self.noise_std(exact))
            bounds = (norms[0] + noise[0], norms[1] + noise[1])
        return segment_cap(
            w,
            h,
            self.matrix,
            c=task.cap_c,
            residual=exact.residual,
            gradients=gradients,
            loss=exact.squared_columns.sum(-1) / 2,
            gradient_bounds=bounds,
        )


class Draws:
    """Uniform and normal numbers of one run, drawn for `DRAWN_STEPS` steps at once."""

    def __init__(self, task: "NMFTask") -> None:
        m, n = task.shape
        self.num_uniforms = {"none": 0, "minibatch": n + m}.get(task.noise, n)
        is_added = task.noise in ("gaussian", "relative")
        self.num_normals = task.rank * (m + n) if is_added else 0

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Numbers of shapes (DRAWN_STEPS, num_uniforms) and (DRAWN_STEPS, num_normals)."""
        return (
            torch.rand(DRAWN_STEPS, self.num_uniforms, generator=generator),
            torch.randn(DRAWN_STEPS, self.num_normals, generator=generator),
        )

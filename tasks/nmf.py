"""Stochastic non-negative matrix factorization with a noisy gradient."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpilot.caps import (
    block_cap,
    check_update,
    joint_ball_cap,
    line_oracle,
    project_ball,
    segment_cap,
)
from lrpilot.observation import ObservationSpec, sample_positions
from tasks.matrices import check_matrix, load_matrix
from tasks.runs import BatchedRuns, Run, Task

NOISES = ("none", "minibatch", "gaussian", "relative")
UPDATES = ("simultaneous", "alternating")
CAPS = ("segment", "ball", "block")

# random numbers are drawn for so many steps at once, and minibatches of the observed loss
DRAWN_STEPS = 32
# noise vectors longer than their mean length by this many standard deviations of an entry are
# shortened to it (a chance of 1e-15 per step), so that a certificate can count on their length
NOISE_MARGIN = 8.0


@dataclass(frozen=True, kw_only=True)
class NMFTask(Task):
    """Minimize f(W, H) = 1/2 ||V - W H||^2 over W, H >= 0 from noisy gradients.

    Each seed is a new matrix V = k^2 max(W* H* + E, 0), normalized to mean k^2, where the entries
    of W* and H* are uniform or zero, their columns and rows decay geometrically, and E is
    Gaussian; or, with `matrix`, a real matrix times k^2. After every step the factors are
    projected on the non-negative orthant (and, under the ball cap, on a ball). The exact f is
    privileged; the observed loss is the one of a random minibatch of columns.

    Noise of the gradient G, with level c drawn per run:

    - "none": G itself, and the exact loss;
    - "minibatch": unbiased estimates from `batch_size` columns (for W) and rows (for H);
    - "gaussian": i.i.d. entries of standard deviation c times the root mean square of the
      entries of G at the start, the same at every step;
    - "relative": as gaussian, but relative to the present G, so E||xi||^2 = c^2 ||G||^2.

    All of it is equivariant: V -> k^2 V multiplies the gradient and its noise by k^3.

    Args:
        shape: (m, n) of V; of the largest V if `smallest_shape` is given.
        rank: r, at most min(m, n); the largest rank if `smallest_rank` is given.
        smallest_shape: sizes are drawn uniformly from here to `shape`.
        smallest_rank: ranks are drawn uniformly from here to `rank`.
        scale_range: V's mean k^2, log-uniform.
        condition_range: ratio of the first to the last column of W*, log-uniform.
        sparsity_range: share of zeros in W* and H*, uniform.
        data_noise: standard deviation of E over the mean of W* H*.
        matrix: "olivetti", "digits", "shakespeare" or a matrix (a tensor) instead of random
            ones; sets `shape`.
        data_dir: folder of the data files (default: environment variable `LRPILOT_DATA`).
        noise: one of `NOISES`.
        noise_range: the level c, log-uniform.
        batch_size: columns (rows) per minibatch, at most min(m, n).
        with_replacement: whether minibatches are drawn with replacement.
        update: "simultaneous" (W and H at once) or "alternating" (W at even steps, H at odd).
        cap_kind: None, "segment", "ball" or "block" (alternating updates only).
        cap_c: eta L at the cap, in (0, 2).
        device: where batched runs live.

    Raises:
        ValueError: if an argument is out of range, or the cap does not certify the update.
    """

    shape: Sequence[int] = (40, 40)
    rank: int = 5
    smallest_shape: Sequence[int] | None = None
    smallest_rank: int | None = None
    scale_range: Sequence[float] = (1.0, 1.0)
    condition_range: Sequence[float] = (1.0, 1.0)
    sparsity_range: Sequence[float] = (0.0, 0.0)
    data_noise: float = 0.1
    matrix: str | Tensor | None = None
    data_dir: str | None = None
    noise: str = "minibatch"
    noise_range: Sequence[float] = (1.0, 1.0)
    batch_size: int = 10
    with_replacement: bool = False
    update: str = "simultaneous"
    cap_kind: str | None = None
    cap_c: float = 1.9
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matrix is not None:
            if self.smallest_shape is not None:
                raise ValueError(
                    f"`smallest_shape` must be None with a real `matrix`, got {self.smallest_shape}"
                )
            object.__setattr__(self, "shape", self._real_matrix().shape)
        smaller = min(self.smallest_shape or self.shape)
        if not 1 <= self.rank <= smaller:
            raise ValueError(f"`rank` must be in [1, min(m, n) = {smaller}], got {self.rank}")
        if not 1 <= self.batch_size <= smaller:
            raise ValueError(
                f"`batch_size` must be in [1, min(m, n) = {smaller}], got {self.batch_size}"
            )
        if self.smallest_rank is not None and not 1 <= self.smallest_rank <= self.rank:
            raise ValueError(
                f"`smallest_rank` must be in [1, rank = {self.rank}], got {self.smallest_rank}"
            )
        if self.smallest_shape and any(map(int.__gt__, self.smallest_shape, self.shape)):
            raise ValueError(
                f"`smallest_shape` must not exceed `shape` = {tuple(self.shape)}, got "
                f"{tuple(self.smallest_shape)}"
            )
        for name in ("scale_range", "condition_range", "noise_range"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high < math.inf:
                raise ValueError(f"`{name}` must be 0 < low <= high, got {(low, high)}")
        if not 0.0 <= self.sparsity_range[0] <= self.sparsity_range[1] < 1.0:
            raise ValueError(f"`sparsity_range` must be in [0, 1), got {self.sparsity_range}")
        if not self.data_noise >= 0.0:
            raise ValueError(f"`data_noise` must not be negative, got {self.data_noise}")
        for name, allowed in (("noise", NOISES), ("update", UPDATES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}")
        if self.cap_kind is not None:
            if self.cap_kind not in CAPS:
                raise ValueError(f"`cap_kind` must be one of {CAPS}, got {self.cap_kind!r}")
            if not 0.0 < self.cap_c < 2.0:
                raise ValueError(f"`cap_c` must be in (0, 2), got {self.cap_c}")
            check_update(self.update, cap=self.cap_kind)
            if self.cap_kind == "block" and self.noise in ("gaussian", "relative"):
                raise ValueError(
                    "`cap_kind` 'block' bounds no iterates under added noise: use 'segment' or "
                    "'ball'"
                )
            if self.cap_kind == "segment" and self.noise == "minibatch":
                raise ValueError(
                    "`cap_kind` 'segment' needs a bounded gradient, which minibatches have not: "
                    "use 'ball'"
                )

    def _real_matrix(self) -> Tensor:
        if isinstance(self.matrix, Tensor):
            return check_matrix(self.matrix)
        assert self.matrix is not None
        return load_matrix(self.matrix, self.data_dir)

    def start(self, seed: int) -> "NMFRun":
        """A new run on a new matrix, from random factors of the right scale."""
        return NMFRun(self, seed)

    def start_batch(self, num_runs: int) -> "BatchedNMFRuns":
        """B runs as one computation, for plain SGD.

        Raises:
            ValueError: if the optimizer is not plain SGD.
        """
        probe = self.optimizer([torch.zeros(1, requires_grad=True)], lr=1.0)
        plain = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
        if not isinstance(probe, torch.optim.SGD) or any(probe.defaults[k] for k in plain):
            raise ValueError(f"`optimizer` of batched runs must be plain SGD, got {probe}")
        return BatchedNMFRuns(self, num_runs)


@dataclass
class _Instance:
    """A problem and its start, padded with zeros to the task's largest size.

    A zero row or column stays zero: its gradient vanishes, and its noise is masked.
    """

    matrix: Tensor
    w: Tensor
    h: Tensor
    size: Tensor  # valid rows m, columns n
    noise_level: Tensor


def _draw_instance(task: NMFTask, generator: torch.Generator) -> _Instance:
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
        valid = task._real_matrix()
    matrix = torch.zeros(m, n)
    matrix[:rows, :columns] = valid / valid.mean() * scale
    # entries of mean (k / sqrt(r)): W H starts at the mean of V, and W and H at one scale
    entry = 2 * math.sqrt(scale / rank)
    w, h = torch.zeros(m, task.rank), torch.zeros(task.rank, n)
    w[:rows, :rank] = entry * uniform(rows, rank)
    h[:rank, :columns] = entry * uniform(rank, columns)
    return _Instance(matrix, w, h, torch.tensor([rows, columns]), torch.tensor(noise_level))


class Exact(NamedTuple):
    """What is exact at (W, H): R = W H - V, G_W = R H^T, G_H = W^T R, and ||R_j||^2 by column."""

    residual: Tensor
    gradient_w: Tensor
    gradient_h: Tensor
    squared_columns: Tensor


class _Problem:
    """The mathematics of one step, for one run or, with a leading dimension, for many."""

    def __init__(self, task: NMFTask, matrix: Tensor, w: Tensor, h: Tensor, **fixed: Tensor):
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
        return tuple(
            std * (mask.sum((-2, -1)).sqrt() + NOISE_MARGIN) for mask in (self.mask_w, self.mask_h)
        )  # type: ignore[return-value]

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
        """The task's cap at (W, H); `moves_w` says which block an alternating step moves."""
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


class _Draws:
    """Uniform and normal numbers of one run, drawn for `DRAWN_STEPS` steps at once."""

    def __init__(self, task: NMFTask) -> None:
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


class NMFRun(Run):
    """One factorization in progress; the parameters are W (m x r) and H (r x n)."""

    def __init__(self, task: NMFTask, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        instance = _draw_instance(task, generator)
        self.problem = _Problem(task, **vars(instance))
        start_w, start_h = self.problem.project(instance.w, instance.h)
        self.w = torch.nn.Parameter(start_w)
        self.h = torch.nn.Parameter(start_h)
        super().__init__(
            [self.w, self.h], optimizer=task.optimizer, lr=task.base_lr, generator=generator
        )
        self._task = task
        self._draws = _Draws(task)
        self._numbers = self._draws.draw(generator)
        self._position = 0

    @property
    def matrix(self) -> Tensor:
        """V."""
        return self.problem.matrix

    @torch.no_grad()
    def _backward(self) -> Tensor:
        if self._position == DRAWN_STEPS:
            self._numbers, self._position = self._draws.draw(self.generator), 0
        uniforms, normals = (numbers[self._position] for numbers in self._numbers)
        self._position += 1
        (self.w.grad, self.h.grad), loss = self.problem.noisy_gradients(
            self.w, self.h, uniforms, normals
        )
        if self._task.update == "alternating":
            # optimizers leave a parameter without a gradient alone
            if self.num_steps % 2 == 0:
                self.h.grad = None
            else:
                self.w.grad = None
        return loss

    @torch.no_grad()
    def _project(self) -> None:
        for parameter, value in zip(
            self.parameters, self.problem.project(self.w, self.h), strict=True
        ):
            parameter.copy_(value)

    @torch.no_grad()
    def cap(self) -> tuple[float, str]:
        """The task's cap for the next step."""
        moves_w = torch.tensor(self.num_steps % 2 == 0)
        eta, guarantee = self.problem.cap(self.w, self.h, moves_w)
        return float(eta), guarantee

    @torch.no_grad()
    def privileged_loss(self) -> float:
        """The exact objective 1/2 ||V - W H||^2."""
        return float(self.problem.loss(self.w, self.h))

    def evaluate(self) -> dict[str, float]:
        """The exact objective, and ||V - W H|| / ||V||."""
        loss = self.privileged_loss()
        norm = float(self.matrix.norm())
        return {"held_out_loss": loss, "relative_error": math.sqrt(2 * loss) / norm}

    def state_dict(self) -> dict[str, Any]:
        """The state, with the problem, which is the seed's own."""
        problem = {
            name: value
            for name, value in vars(self.problem).items()
            if isinstance(value, Tensor) and not name.startswith("_")
        }
        return {
            **super().state_dict(),
            "problem": {name: value.clone() for name, value in problem.items()},
            "numbers": [numbers.clone() for numbers in self._numbers],
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task."""
        super().load_state_dict(state)
        self.problem._ball_cap = None
        for name, value in state["problem"].items():
            setattr(self.problem, name, value.clone())
        uniforms, normals = state["numbers"]
        self._numbers = uniforms.clone(), normals.clone()
        self._position = state["position"]


class BatchedNMFRuns(BatchedRuns):
    """B factorizations under plain SGD as one computation."""

    def __init__(self, task: NMFTask, num_runs: int) -> None:
        super().__init__(num_runs, device=task.device)
        self._task = task
        (m, n), r = task.shape, task.rank

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(num_runs, *shape, device=self.device)

        sizes = torch.ones(num_runs, 2, dtype=torch.int64, device=self.device)
        self._instance = _Instance(zeros(m, n), zeros(m, r), zeros(r, n), sizes, zeros())
        self.w, self.h = self._instance.w.clone(), self._instance.h.clone()
        self._generators = [torch.Generator() for _ in range(num_runs)]
        self._draws = _Draws(task)
        self._uniforms = torch.zeros(DRAWN_STEPS, num_runs, self._draws.num_uniforms)
        self._normals = torch.zeros(DRAWN_STEPS, num_runs, self._draws.num_normals)
        self._position = torch.full((num_runs,), DRAWN_STEPS)
        self._num_steps = torch.zeros(num_runs, dtype=torch.int64, device=self.device)
        self._gradients = self.w, self.h
        self._exact: Exact | None = None
        self._sample = sample_positions(task.rank * (m + n), ObservationSpec().num_entries)

    @torch.no_grad()
    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        for row, seed in zip(rows, seeds, strict=True):
            generator = self._generators[row].manual_seed(seed)
            instance = _draw_instance(self._task, generator)
            for name, value in vars(instance).items():
                getattr(self._instance, name)[row] = value
        self.problem = _Problem(self._task, **vars(self._instance))
        start_w, start_h = self.problem.project(self._instance.w, self._instance.h)
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self.w[index], self.h[index] = start_w[index], start_h[index]
        self._exact = None
        self._position[index.cpu()] = DRAWN_STEPS
        self._num_steps[index] = 0

    def _numbers(self, is_active: Tensor) -> tuple[Tensor, Tensor]:
        """The random numbers of each run's next step."""
        exhausted = is_active & (self._position == DRAWN_STEPS)
        for row in exhausted.nonzero()[:, 0].tolist():
            uniforms, normals = self._draws.draw(self._generators[row])
            self._uniforms[:, row], self._normals[:, row] = uniforms, normals
        self._position[exhausted] = 0
        first = int(self._position[0])
        if first < DRAWN_STEPS and bool((self._position == first).all()):
            uniforms, normals = self._uniforms[first], self._normals[first]
        else:
            place = (self._position.clamp(max=DRAWN_STEPS - 1), torch.arange(self.num_runs))
            uniforms, normals = self._uniforms[place], self._normals[place]
        return uniforms.to(self.device), normals.to(self.device)

    @torch.no_grad()
    def best_lrs(self) -> Tensor:
        """The best learning rate of each run along its next, noisy direction: an oracle's."""
        numbers = self._numbers(torch.ones(self.num_runs, dtype=torch.bool))
        direction, _ = self.problem.noisy_gradients(
            self.w, self.h, *numbers, exact=self._known_exact()
        )
        return line_oracle(self.w, self.h, self.problem.matrix, direction=direction)[0]

    @torch.no_grad()
    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs; returns the observed losses before it."""
        is_active = active.cpu()
        uniforms, normals = self._numbers(is_active)
        self._position += is_active
        (grad_w, grad_h), losses = self.problem.noisy_gradients(
            self.w, self.h, uniforms, normals, exact=self._known_exact()
        )
        if self._task.update == "alternating":
            moves_w = (self._num_steps % 2 == 0)[:, None, None]
            grad_w, grad_h = grad_w * moves_w, grad_h * ~moves_w
        rates = -lrs.to(self.w.dtype)[:, None, None]
        w, h = self.problem.project(
            torch.addcmul(self.w, rates, grad_w), torch.addcmul(self.h, rates, grad_h)
        )
        if not bool(active.all()):
            moves = active[:, None, None]
            w, h = torch.where(moves, w, self.w), torch.where(moves, h, self.h)
            grad_w = torch.where(moves, grad_w, self._gradients[0])
            grad_h = torch.where(moves, grad_h, self._gradients[1])
        self.w, self.h, self._gradients, self._exact = w, h, (grad_w, grad_h), None
        self._num_steps += active
        return losses

    def _known_exact(self) -> Exact | None:
        """What is exact at the present state, computed once for cap and step."""
        if self._exact is None and self._task.noise != "minibatch":
            self._exact = self.problem.exact(self.w, self.h)
        return self._exact

    @torch.no_grad()
    def cap(self) -> tuple[Tensor, str]:
        """The task's cap for each run's next step."""
        return self.problem.cap(self.w, self.h, self._num_steps % 2 == 0, exact=self._known_exact())

    @torch.no_grad()
    def privileged_losses(self) -> Tensor:
        """The exact objectives 1/2 ||V - W H||^2."""
        return self.problem.loss(self.w, self.h)

    def weights(self) -> Tensor:
        """W and H, flattened (or their sample)."""
        return self._read(self.w, self.h)

    def gradients(self) -> Tensor:
        """The last gradients of these entries."""
        return self._read(*self._gradients)

    def _read(self, w: Tensor, h: Tensor) -> Tensor:
        entries = torch.cat([w.flatten(1), h.flatten(1)], dim=1)
        return entries if self._sample is None else entries[:, self._sample]

    def state_dict(self) -> dict[str, Any]:
        """The state, with the problems and the numbers that are drawn but not used."""
        tensors = ("w", "h", "_uniforms", "_normals", "_position", "_num_steps")
        return {
            **{name: getattr(self, name).clone() for name in tensors},
            "_instance": {name: value.clone() for name, value in vars(self._instance).items()},
            "_gradients": [gradient.clone() for gradient in self._gradients],
            "generators": [generator.get_state() for generator in self._generators],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        for name in ("w", "h", "_uniforms", "_normals", "_position", "_num_steps"):
            setattr(self, name, state[name].clone())
        self._instance = _Instance(**{k: v.clone() for k, v in state["_instance"].items()})
        self.problem = _Problem(self._task, **vars(self._instance))
        grad_w, grad_h = state["_gradients"]
        self._gradients = grad_w.clone(), grad_h.clone()
        self._exact = None
        for generator, generator_state in zip(self._generators, state["generators"], strict=True):
            generator.set_state(generator_state)

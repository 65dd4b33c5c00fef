"""What a run draws: its instance when it starts, and the random numbers of its steps."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrpilot.state import Stateful, state_fields
from lrpilot.tasks.nmf.problem import NMFProblem

# random numbers are drawn for so many steps at once
DRAWN_STEPS = 32


@dataclass
class Instance(Stateful):
    """A matrix and the start of its factors, padded with zeros to the largest size of the problem.

    A zero row or column stays zero: its gradient vanishes, and its noise is masked.
    """

    _state_fields = state_fields("matrix", "w", "h", "size", "noise_level")

    matrix: Tensor
    w: Tensor
    h: Tensor
    size: Tensor  # valid rows m, columns n
    noise_level: Tensor

    def to(self, device: str) -> "Instance":
        """The same instance on a device."""
        return replace(self, **{name: part.to(device) for name, part in vars(self).items()})


def draw_instance(problem: NMFProblem, generator: torch.Generator) -> Instance:
    """A new matrix and start, on the CPU; the generator gives all numbers, in a fixed order."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    numbers = iter(uniform(7).tolist())

    def between(bounds: Sequence[float]) -> float:
        low, high = map(math.log, bounds)
        return math.exp(low + next(numbers) * (high - low))

    def integer(low: int, high: int) -> int:
        return min(high, low + int(next(numbers) * (high - low + 1)))

    m, n = problem.shape
    smallest = problem.smallest_shape or problem.shape
    rows, columns = integer(smallest[0], m), integer(smallest[1], n)
    rank = integer(problem.smallest_rank or problem.rank, problem.rank)
    scale = between(problem.scale_range)
    decay = between(problem.condition_range) ** (-torch.arange(rank) / max(1, rank - 1))
    low, high = problem.sparsity_range
    sparsity = low + next(numbers) * (high - low)
    noise_level = between(problem.noise_range)
    if problem.matrix is None:
        valid = torch.zeros(rows, columns)
        while not bool(valid.any()):  # a very sparse draw may be zero everywhere
            w = uniform(rows, rank) * (uniform(rows, rank) >= sparsity) * decay
            h = uniform(rank, columns) * (uniform(rank, columns) >= sparsity)
            clean = w @ h
            noise = torch.randn(rows, columns, generator=generator)
            valid = (clean + problem.data_noise * clean.mean() * noise).clamp_(min=0.0)
    else:
        valid = problem.real_matrix
    matrix = torch.zeros(m, n)
    matrix[:rows, :columns] = valid / valid.mean() * scale
    # entries of mean (k / sqrt(r)): W H starts at the mean of V (times the scale, squared)
    entry = problem.start_scale * 2 * math.sqrt(scale / rank)
    w, h = torch.zeros(m, problem.rank), torch.zeros(problem.rank, n)
    w[:rows, :rank] = entry * uniform(rows, rank)
    h[:rank, :columns] = entry * uniform(rank, columns)
    return Instance(matrix, w, h, torch.tensor([rows, columns]), torch.tensor(noise_level))


class Draws:
    """Uniform and normal numbers of one run, drawn for `DRAWN_STEPS` steps at once."""

    def __init__(self, problem: NMFProblem) -> None:
        m, n = problem.shape
        num_uniforms = {"none": 0, "minibatch": n + m}.get(problem.noise, n)
        is_added = problem.noise in ("gaussian", "relative")
        self._shapes = (
            (DRAWN_STEPS, num_uniforms),
            (DRAWN_STEPS, is_added * problem.rank * (m + n)),
        )

    def draw(self, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Numbers (runs, steps, num_uniforms) and (runs, steps, num_normals), on the CPU."""
        uniforms, normals = (torch.empty(len(generators), *shape) for shape in self._shapes)

        def fill(first: int) -> None:
            for i in range(first, len(generators), num_threads):
                uniforms[i].uniform_(generator=generators[i])
                normals[i].normal_(generator=generators[i])

        # torch itself draws on one thread
        num_threads = min(torch.get_num_threads(), len(generators))
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(fill, range(num_threads)))
        return uniforms, normals

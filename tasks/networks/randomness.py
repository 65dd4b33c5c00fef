"""Random draws of a network, initial weights and dropout, such that a run's seed decides them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Within it torch's global generators of the CPU and of this device have this seed.

    After it they are as they were. Those of other devices are left alone.

    >>> before = torch.get_rng_state()
    >>> with seeded(0):
    ...     first = torch.rand(2)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    is_on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_on_gpu else []):
        # unlike torch.manual_seed, this leaves the generators of GPUs alone
        torch.default_generator.manual_seed(seed)
        if is_on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def generator_states(device: str) -> list[Tensor]:
    """The states of the CPU's global generator and of this device's."""
    states = [torch.get_rng_state()]
    if torch.device(device).type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


class RunDropout(nn.Module):
    """Dropout whose masks come from a run's own generator; the identity when measuring.

    While training y = x m / (1 - p), where the entries of m are 0 with probability p, else 1.

    A run sets `generator`, and batched runs, which `torch.func.vmap` maps, set `streams`: of each
    run its generator, and how many positions of x (batch, length, ...) its own batch has, or None
    for all. What lies behind these, which fills up shorter batches, is kept, and draws nothing.

    Args:
        probability: p, in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generator = torch.Generator()
        self.streams: list[tuple[torch.Generator, int | None]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of x."""
        if not self.training or self.probability == 0.0:
            return x
        mask: Tensor = _Mask.apply(x.detach(), self)  # type: ignore[no-untyped-call]
        return x * mask

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The factor m / (1 - p) of x, from this generator, on its device."""
        uniform = torch.rand(x.shape, generator=generator, device=generator.device)
        mask = (uniform >= self.probability).to(x.dtype)
        return mask.div_(1.0 - self.probability)


class _Mask(torch.autograd.Function):
    """A mask for x; `vmap` draws that of each run as the run alone would."""

    @staticmethod
    def forward(x: Tensor, dropout: RunDropout) -> Tensor:
        return dropout.draw(x, dropout.generator).to(x.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None], x: Tensor, dropout: RunDropout
    ) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        masks = torch.ones_like(x, device=dropout.generator.device)
        for run, mask, (generator, length) in zip(x, masks, dropout.streams, strict=True):
            mask[:, :length] = dropout.draw(run[:, :length], generator)
        return masks.to(x.device), 0

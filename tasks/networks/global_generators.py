"""torch's global generators, for code that draws from them: initial weights and dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seeded_on(device: str, seed: int) -> Iterator[None]:
    """Within it the global generators of the CPU and of this device are seeded, then put back.

    Those of other devices are left alone.

    >>> before = torch.get_rng_state()
    >>> with seeded_on("cpu", 0):
    ...     first = torch.rand(2)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    is_on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_on_gpu else []):
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

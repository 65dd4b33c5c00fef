"""A fixed random sample of parameter entries: what the movement features read."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import is_
from typing import Protocol

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.optim import Optimizer

_SAMPLE_SEED = 20230501


def sample_positions(total: int, num_entries: int) -> Tensor | None:
    """Sorted positions of a fixed random sample of `total` entries; None means all of them.

    The positions depend on the two numbers alone. Up to twice `num_entries` everything is read,
    which is cheaper than picking entries out.
    """
    if total <= 2 * num_entries:
        return None
    generator = torch.Generator().manual_seed(_SAMPLE_SEED)
    return torch.randint(total, (num_entries,), generator=generator).sort().values


class Sample(Protocol):
    """What reads some entries of all weights: of one run, vectors; of B runs, (B, entries)."""

    def weights(self) -> Tensor:
        """The entries, copied."""

    def gradients(self) -> Tensor:
        """Their gradients."""


class OptimizerParameters:
    """The parameters that an optimizer has when one goes through them."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def __iter__(self) -> Iterator[Tensor]:
        return (p for group in self._optimizer.param_groups for p in group["params"])


class ParameterSample:
    """A fixed random sample of the entries of the parameters that are trained.

    These are the parameters with `requires_grad`, or all of them if none has it, where gradients
    are computed by hand. Frozen parameters would dilute every movement.

    The positions depend on the sizes of these parameters alone, so a simulated run and a deployed
    scheduler read the same entries of the same model. Parameters that are sharded over ranks
    (`DTensor`) are gathered, one after the other, whenever the sample is read: all ranks must read
    it together, and see what a single process would.

    Args:
        parameters: the parameters, in the optimizer's order; gone through again by `refresh`.
        num_entries: size of the sample (see `sample_positions`).
    """

    def __init__(self, parameters: Iterable[Tensor], num_entries: int) -> None:
        # an iterator could be gone through but once
        self._source = list(parameters) if iter(parameters) is parameters else parameters
        self._num_entries = num_entries
        self._draw(self._trained())

    def _trained(self) -> list[Tensor]:
        everything = list(self._source)
        return [parameter for parameter in everything if parameter.requires_grad] or everything

    def refresh(self) -> bool:
        """Draw the sample anew if other parameters are trained than before; returns whether."""
        trained = self._trained()
        if len(trained) == len(self._parameters) and all(map(is_, trained, self._parameters)):
            return False
        self._draw(trained)
        return True

    def _draw(self, parameters: list[Tensor]) -> None:
        self._parameters = parameters
        sizes = [parameter.numel() for parameter in self._parameters]
        self._indices: list[Tensor | None] = [None] * len(sizes)
        kinds = {(parameter.device, parameter.dtype) for parameter in self._parameters}
        # asked by name, which spares everybody else the import of torch.distributed.tensor
        self._is_sharded = any(hasattr(parameter, "full_tensor") for parameter in self._parameters)
        self._is_uniform = len(kinds) == 1 and self._parameters[0].dtype == torch.float32
        drawn = sample_positions(sum(sizes), self._num_entries)
        self._reads_whole = drawn is None and self._is_uniform and not self._is_sharded
        if drawn is not None:
            start = 0
            for i, (parameter, size) in enumerate(zip(self._parameters, sizes, strict=True)):
                inside = drawn[(drawn >= start) & (drawn < start + size)] - start
                self._indices[i] = inside.to(parameter.device)
                start += size

    def state(self) -> list[bool]:
        """Which of the parameters are sampled."""
        sampled = set(map(id, self._parameters))
        return [id(parameter) in sampled for parameter in self._source]

    def check_state(self, state: list[bool]) -> None:
        """Refuse a state of other parameters.

        Raises:
            ValueError: if their number differs.
        """
        count = len(list(self._source))
        if len(state) != count:
            raise ValueError(
                f"the state must be of {count} parameters, like the optimizer's, got one of "
                f"{len(state)}"
            )

    def load_state(self, state: list[bool]) -> None:
        """Sample what was sampled then."""
        self._draw([p for p, is_in in zip(self._source, state, strict=True) if is_in])

    def weights(self) -> Tensor:
        """The sampled entries, as a new float32 vector."""
        return self._gather(self._parameters, self._indices)

    def gradients(self) -> Tensor:
        """The gradients of the sampled entries; zero where one parameter has none.

        Raises:
            RuntimeError: if no parameter has a gradient.
        """
        return self._gather(self._all_gradients(), self._indices)

    def _all_gradients(self) -> list[Tensor]:
        gradients = [parameter.grad for parameter in self._parameters]
        if all(gradient is None for gradient in gradients):
            raise RuntimeError(
                "the policy observes the gradient norm, but no parameter has a gradient when the "
                "scheduler steps: call `scheduler.step(loss)` before `optimizer.zero_grad()`, or "
                "train a policy without the feature group 'gradient'"
            )
        return [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self._parameters, gradients, strict=True)
        ]

    def _gather(self, tensors: Sequence[Tensor], indices: Sequence[Tensor | None]) -> Tensor:
        with torch.no_grad():
            if self._reads_whole and len(tensors) > 1:
                # one call for all of them; of a single tensor it would return a view
                whole: Tensor = _flatten_dense_tensors(tensors)
                return whole
            if self._is_sharded:
                tensors = [_whole(tensor) for tensor in tensors]
            parts = [
                tensor.reshape(-1) if index is None else tensor.reshape(-1).index_select(0, index)
                for tensor, index in zip(tensors, indices, strict=True)
            ]
            if not self._is_uniform:
                parts = [part.to(self._parameters[0].device, torch.float32) for part in parts]
            return torch.cat(parts)


def _whole(tensor: Tensor) -> Tensor:
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor

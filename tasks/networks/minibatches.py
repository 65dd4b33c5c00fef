"""Which examples a run, or each of many runs, sees next: shuffled anew for every epoch."""

import torch
from torch import Tensor

from lrpilot.state import Stateful, state_fields
from lrpilot.tasks.networks.stacked_optimizer import extend


class MinibatchSampler(Stateful):
    """The minibatches of one run, epoch by epoch; an incomplete one is dropped.

    Args:
        num_examples: how many there are.
        batch_size: at most as many.
        generator: the run's own, from which the order of an epoch is drawn when it begins.
    """

    _state_fields = state_fields(order="_order", position="_position")

    def __init__(self, num_examples: int, batch_size: int, generator: torch.Generator) -> None:
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def resize(self, batch_size: int) -> None:
        """Draw minibatches of another size, from where the epoch is.

        Raises:
            ValueError: if there are fewer examples.
        """
        if batch_size > self._num_examples:
            raise ValueError(
                f"`batch_size` must be at most the {self._num_examples} training examples, got "
                f"{batch_size}"
            )
        self._batch_size = batch_size

    def next(self) -> Tensor:
        """Indices of the next minibatch, (batch_size,), on the CPU."""
        if self._position + self._batch_size > len(self._order):
            self._order = torch.randperm(self._num_examples, generator=self._generator)
            self._position = 0
        self._position += self._batch_size
        return self._order[self._position - self._batch_size : self._position]


class BatchedMinibatchSampler(Stateful):
    """The minibatches of B runs, each what a `MinibatchSampler` of its generator would give.

    Args:
        generators: of the runs.
        num_examples: of each run.
        batch_size: at most `num_examples`.
    """

    _state_fields = state_fields("_orders", "_positions")

    def __init__(
        self, generators: list[torch.Generator], *, num_examples: int, batch_size: int
    ) -> None:
        self._generators = generators
        self._batch_size = batch_size
        self._orders = torch.zeros(len(generators), num_examples, dtype=torch.int64)
        self._positions = torch.zeros(len(generators), dtype=torch.int64)

    def start(self, rows: list[int]) -> None:
        """Begin the first epoch of the runs of these indices."""
        self._positions[rows] = self._orders.shape[1]

    def grow(self) -> None:
        """Make room for the generators that were added."""
        for name in self._state_fields:
            setattr(self, name, extend(getattr(self, name), len(self._generators)))

    def next(self, rows: Tensor) -> Tensor:
        """Indices of the next minibatches, (rows, batch_size), on the CPU."""
        num_examples = self._orders.shape[1]
        ended = rows[self._positions[rows] + self._batch_size > num_examples].tolist()
        for row in ended:
            self._orders[row] = torch.randperm(num_examples, generator=self._generators[row])
        self._positions[ended] = 0
        columns = self._positions[rows].unsqueeze(1) + torch.arange(self._batch_size)
        self._positions[rows] += self._batch_size
        return self._orders[rows.unsqueeze(1), columns]

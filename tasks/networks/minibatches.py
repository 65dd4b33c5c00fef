"""Which examples many runs see next."""

from typing import Any

import torch
from torch import Tensor

from lrpilot.tasks.networks.stacked_optimizer import extend

_STATE = ("_orders", "_positions")


class Minibatches:
    """The minibatches of B runs, each of which shuffles its own examples, epoch by epoch.

    As in a single run, an incomplete batch is dropped, and the order of an epoch is drawn from the
    run's generator when it begins.

    Args:
        generators: of the runs.
        num_examples: of each run.
        batch_size: at most `num_examples`.
    """

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
        for name in _STATE:
            setattr(self, name, extend(getattr(self, name), len(self._generators)))

    def next(self, rows: Tensor) -> Tensor:
        """The examples of the next minibatches, (rows, batch size)."""
        num_examples = self._orders.shape[1]
        ended = rows[self._positions[rows] + self._batch_size > num_examples].tolist()
        for row in ended:
            self._orders[row] = torch.randperm(num_examples, generator=self._generators[row])
        self._positions[ended] = 0
        columns = self._positions[rows].unsqueeze(1) + torch.arange(self._batch_size)
        self._positions[rows] += self._batch_size
        return self._orders[rows.unsqueeze(1), columns]

    def state_dict(self) -> dict[str, Any]:
        """The orders and the positions in them, copied."""
        return {name: getattr(self, name).clone() for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        for name in _STATE:
            setattr(self, name, state[name].clone())

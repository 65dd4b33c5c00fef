"""How the weights of a run, or of B runs, move: what the groups of movement are computed from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrpilot.policy.elementwise import Numbers
from lrpilot.policy.features import movement_features, recent_movement_features
from lrpilot.policy.parameter_sample import Sample

Read = Callable[[Sequence[Tensor]], list[Numbers]]


class Movement(ABC):
    """Remembers two vectors of sampled weights, and gives three features at a decision.

    Args:
        sample: what reads the weights.
    """

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self.last_displacement: Numbers = 0.0
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Start anew from the present weights, as when other parameters are trained."""

    @abstractmethod
    def features(self, read: Read, *, begins: bool) -> list[Numbers]:
        """The features of a decision.

        Args:
            read: brings numbers of the device to the host, in one transfer.
            begins: whether this decision begins anew.
        """

    @abstractmethod
    def restart(self, rows: list[int]) -> None:
        """Start the runs of these indices anew; their weights are already initial ones."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What is remembered: a row per run."""

    @abstractmethod
    def take(self, tensors: Sequence[Tensor]) -> None:
        """Remember this instead."""

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, copied."""
        value = self.last_displacement
        last = value.tolist() if isinstance(value, np.ndarray) else value
        return {"tensors": [tensor.clone() for tensor in self.tensors()], "last_displacement": last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`, also of another device."""
        device = self.tensors()[0].device
        self.take([tensor.to(device, copy=True) for tensor in state["tensors"]])
        value = state["last_displacement"]
        self.last_displacement = np.array(value) if isinstance(value, list) else value

    def keep(self, active: NDArray[Any], before: Sequence[Tensor]) -> None:
        """Put back what was remembered of the runs that are not active."""
        mask = torch.as_tensor(active, device=before[0].device)
        pairs = zip(self.tensors(), before, strict=True)
        self.take([torch.where(mask if a.ndim == 1 else mask[:, None], a, b) for a, b in pairs])


class IntervalMovement(Movement):
    """The displacement between two decisions, beside the one before it."""

    def begin(self) -> None:
        """Remember the present weights, and no displacement."""
        self._weights = self._sample.weights()
        self._displacement = torch.zeros_like(self._weights)

    def features(self, read: Read, *, begins: bool) -> list[Numbers]:
        """Displacement of the interval, its cosine with the one before, growth of the weights."""
        if begins:
            return [self.last_displacement, 0.0, 0.0]
        new, old, previous = self._sample.weights(), self._weights, self._displacement
        displacement = new - old
        pairs = (displacement, displacement), (new, new), (old, old), (previous, previous)
        products = [_inner(a, b) for a, b in (*pairs, (displacement, previous))]
        self._weights, self._displacement = new, displacement
        features = movement_features(*read(products))
        self.last_displacement = features[0]
        return features

    def restart(self, rows: list[int]) -> None:
        """Remember the initial weights of these runs."""
        self._weights[rows] = self._sample.weights()[rows]
        self._displacement[rows] = 0.0

    def tensors(self) -> list[Tensor]:
        """Weights and displacement at the last decision."""
        return [self._weights, self._displacement]

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Replace weights and displacement."""
        self._weights, self._displacement = tensors


class RecentMovement(Movement):
    """The displacement over the last four steps before a decision, in two halves.

    `mark` is called four and two steps before a decision. What it remembers of the start of the
    run is the squared norm of the weights.
    """

    def begin(self) -> None:
        """Remember the present weights as those of the start."""
        weights = self._sample.weights()
        self._marks = [weights, weights.clone()]
        self._start = _inner(weights, weights)
        self._num_marks = 0

    def mark(self, active: Numbers) -> None:
        """Remember the present weights of the active runs."""
        weights = self._sample.weights()
        older, newer = self._marks
        if active is True:
            self._marks = [newer, weights]
        else:
            mask = torch.as_tensor(active, device=weights.device)[:, None]
            self._marks = [torch.where(mask, newer, older), torch.where(mask, weights, newer)]
        self._num_marks += 1

    def features(self, read: Read, *, begins: bool) -> list[Numbers]:
        """Displacement of the window, cosine of its halves, growth since the start."""
        new, (older, newer) = self._sample.weights(), self._marks
        first, second, whole = newer - older, new - newer, new - older
        pairs = (whole, whole), (new, new), (first, first), (second, second), (first, second)
        products = [_inner(a, b) for a, b in pairs]
        features = recent_movement_features(*read([*products, self._start]))
        if self._num_marks < 2:  # other parameters are trained than four steps ago
            features[:2] = [self.last_displacement, 0.0]
        self.last_displacement = features[0]
        return features

    def restart(self, rows: list[int]) -> None:
        """Remember the initial weights of these runs."""
        weights = self._sample.weights()[rows]
        for mark in self._marks:
            mark[rows] = weights
        self._start[rows] = _inner(weights, weights)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered, copied."""
        return {**super().state_dict(), "num_marks": self._num_marks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        super().load_state_dict(state)
        self._num_marks = state["num_marks"]

    def tensors(self) -> list[Tensor]:
        """Both marks, and the squared norm at the start."""
        return [*self._marks, self._start]

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Replace both marks and the squared norm."""
        *self._marks, self._start = tensors


MOVEMENTS: dict[str, type[Movement]] = {
    "movement": IntervalMovement,
    "recent_movement": RecentMovement,
}
"""What measures the movement of each group."""


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return a.dot(b) if a.ndim == 1 else (a * b).sum(dim=1)

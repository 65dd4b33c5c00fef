"""What one move of GreedyLR does to the learning rates, and where it ends."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lrpilot.state import Stateful, state_fields


class Bounds(Stateful, ABC):
    """Divides (a raise) or multiplies (a lowering) by `factor`, within bounds.

    `reset_start` lowerings in a row that end with every group at its lower bound restore the
    learning rates of the start.

    Args:
        arguments: those of `GreedyLR`, resolved.
    """

    _state_fields = state_fields("start_lrs", lowerings_left="_num_lowerings_left")

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = arguments
        self._factor: float = arguments["factor"]
        self.start_lrs: list[float] = []
        self.bound_by = ""
        self.was_reset = False

    def start(self, lrs: Sequence[float]) -> None:
        """Begin at these learning rates, one per group."""
        self.start_lrs = list(lrs)
        self._num_lowerings_left = self._arguments["reset_start"]

    def join(self, lrs: Sequence[float], present: Sequence[float]) -> list[float]:
        """Take in groups that begin at `lrs`, beside those that are at `present`."""
        factor = self._present_factor(present)
        self.start_lrs += lrs
        return [lr * factor for lr in lrs]

    def move(
        self, lrs: Sequence[float | Tensor], direction: int, *, capped_share: float = 1.0
    ) -> list[float]:
        """The learning rates after one move; sets `bound_by` and `was_reset`.

        Args:
            lrs: one per group, before the cap.
            direction: 1 to raise, -1 to lower.
            capped_share: the part of `lrs` that a cap left, where a lowering begins.
        """
        moved = self._moved(lrs, direction, capped_share)
        at_floor = direction < 0 and self._are_at_floor(moved)
        if at_floor:
            self._num_lowerings_left -= 1
        self.was_reset = at_floor and self._num_lowerings_left <= 0
        if direction > 0 or self.was_reset:
            self._num_lowerings_left = self._arguments["reset_start"]
        if self.was_reset:
            moved = self._restored(lrs)
            self.bound_by = ""
        return moved

    def end_of_moves(self, lrs: Sequence[float], direction: int, num_moves: int) -> list[float]:
        """Where so many moves of one direction from the start `lrs` end; changes nothing."""
        trial = copy.copy(self)
        trial.start(lrs)
        reached = list(lrs)
        for _ in range(num_moves):
            moved = trial.move(reached, direction)
            if moved == reached or trial.was_reset:
                break
            reached = moved
        return reached

    @abstractmethod
    def _present_factor(self, present: Sequence[float]) -> float: ...

    @abstractmethod
    def _moved(
        self, lrs: Sequence[float | Tensor], direction: int, capped_share: float
    ) -> list[float]: ...

    @abstractmethod
    def _are_at_floor(self, lrs: Sequence[float]) -> bool: ...

    def _restored(self, lrs: Sequence[float | Tensor]) -> list[float]:
        return list(self.start_lrs)


class AbsoluteBounds(Bounds):
    """Every group within its own `min_lr` and `max_lr`; changes of at most `eps` are not made.

    A bound never moves a learning rate that is already past it. The operations and their order
    are those of Hugging Face's class.
    """

    def start(self, lrs: Sequence[float]) -> None:
        """Begin at these learning rates, one per group."""
        for name in ("min_lr", "max_lr"):
            given = self._arguments[name]
            # groups that were added since the first start have no value
            if isinstance(given, (list, tuple)) and not self.start_lrs and len(given) != len(lrs):
                raise ValueError(
                    f"`{name}` must have one value per parameter group, {len(lrs)}, "
                    f"got {len(given)}"
                )
        super().start(lrs)

    def _limits(self, name: str) -> list[float]:
        """The bound of each group; one that was added has the widest that was given."""
        given, num_groups = self._arguments[name], len(self.start_lrs)
        if not isinstance(given, (list, tuple)):
            return [given] * num_groups
        widest = min(given) if name == "min_lr" else max(given)
        return [*given, *[widest] * (num_groups - len(given))]

    def _present_factor(self, present: Sequence[float]) -> float:
        largest = max(self.start_lrs)
        return present[self.start_lrs.index(largest)] / largest

    def _moved(
        self, lrs: Sequence[float | Tensor], direction: int, capped_share: float
    ) -> list[float]:
        name = "max_lr" if direction > 0 else "min_lr"
        moved, bounds = [], self._limits(name)
        for lr, bound in zip(lrs, bounds, strict=True):
            old = float(lr) * capped_share
            if direction > 0:
                new = min(old / self._factor, bound)
            else:
                new = max(old * self._factor, bound)
            moved.append(new if direction * (new - old) > self._arguments["eps"] else old)
        self.bound_by = name if moved[0] == bounds[0] else ""
        return moved

    def _are_at_floor(self, lrs: Sequence[float]) -> bool:
        # not the same as `<=` if a bound is NaN
        return not any(lr > low for lr, low in zip(lrs, self._limits("min_lr"), strict=True))


class RelativeBounds(Bounds):
    """All groups share one scale in [`min_factor`, `max_factor`], relative to the start.

    A learning rate that somebody else changed, too, keeps that change: it is multiplied by the
    change of the scale.
    """

    _state_fields = state_fields(**Bounds._state_fields, scale="scale")

    def start(self, lrs: Sequence[float]) -> None:
        """Begin at these learning rates, one per group."""
        super().start(lrs)
        self.scale = 1.0

    def _present_factor(self, present: Sequence[float]) -> float:
        return self.scale

    def _moved(
        self, lrs: Sequence[float | Tensor], direction: int, capped_share: float
    ) -> list[float]:
        if direction > 0:
            return self._rescaled(lrs, self.scale / self._factor)
        return self._rescaled(lrs, self.scale * capped_share * self._factor)

    def _are_at_floor(self, lrs: Sequence[float]) -> bool:
        return bool(self.scale == self._arguments["min_factor"])

    def _restored(self, lrs: Sequence[float | Tensor]) -> list[float]:
        return self._rescaled(lrs, 1.0)

    def _rescaled(self, lrs: Sequence[float | Tensor], scale: float) -> list[float]:
        before = self.scale
        low, high = self._arguments["min_factor"], self._arguments["max_factor"]
        self.scale = max(low, min(high, scale))
        self.bound_by = ""
        if self.scale != scale:
            self.bound_by = "max_factor" if scale > self.scale else "min_factor"
        return [
            # a tensor is compared in its own precision
            start * self.scale if bool(lr == start * before) else float(lr) * (self.scale / before)
            for start, lr in zip(self.start_lrs, lrs, strict=True)
        ]

"""What one move of GreedyLR does to the learning rates, and where it ends."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lrpilot.state import Stateful, state_fields


class Bounds(Stateful, ABC):
    """Divides (a raise) or multiplies (a lowering) by `factor`, within bounds.

    `reset_start` lowerings in a row that end with every group at its lower bound restore the
    learning rates of the start.

    Args:
        factor: below 1.
        reset_start: infinite for no reset.
    """

    _state_fields = state_fields("start_lrs", lowerings_left="_num_lowerings_left")

    def __init__(self, factor: float, reset_start: float) -> None:
        self._factor = factor
        self._reset_start = reset_start
        self.bound_by = ""
        self.was_reset = False

    def start(self, lrs: Sequence[float]) -> None:
        """Begin at these learning rates, one per group."""
        self.start_lrs = list(lrs)
        self._num_lowerings_left = self._reset_start

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
        self.was_reset = False
        if direction > 0:
            self._num_lowerings_left = self._reset_start
            return self._raised(lrs)
        lowered, is_at_floor = self._lowered(lrs, capped_share)
        if is_at_floor:
            self._num_lowerings_left -= 1
            if self._num_lowerings_left <= 0:
                self._num_lowerings_left = self._reset_start
                self.bound_by = ""
                self.was_reset = True
                return self._restored(lrs)
        return lowered

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
    def _raised(self, lrs: Sequence[float | Tensor]) -> list[float]: ...

    @abstractmethod
    def _lowered(
        self, lrs: Sequence[float | Tensor], capped_share: float
    ) -> tuple[list[float], bool]: ...

    @abstractmethod
    def _restored(self, lrs: Sequence[float | Tensor]) -> list[float]: ...


class AbsoluteBounds(Bounds):
    """Every group within its own `min_lr` and `max_lr`; changes of at most `eps` are not made.

    A bound never moves a learning rate that is already past it. The operations and their order
    are those of Hugging Face's class.
    """

    def __init__(
        self,
        factor: float,
        reset_start: float,
        *,
        min_lr: float | Sequence[float],
        max_lr: float | Sequence[float],
        eps: float,
    ) -> None:
        super().__init__(factor, reset_start)
        self._min_lr = min_lr
        self._max_lr = max_lr
        self._eps = eps
        self._min_lrs: list[float] = []
        self._max_lrs: list[float] = []

    def start(self, lrs: Sequence[float]) -> None:
        """Begin at these learning rates, one per group."""
        super().start(lrs)
        if not self._min_lrs:
            self._min_lrs = _one_per_group("min_lr", self._min_lr, len(lrs))
            self._max_lrs = _one_per_group("max_lr", self._max_lr, len(lrs))
        self._widen(len(lrs) - len(self._min_lrs))

    def join(self, lrs: Sequence[float], present: Sequence[float]) -> list[float]:
        """Take in groups that begin at `lrs`; the widest bounds that were given are theirs."""
        self._widen(len(lrs))
        return super().join(lrs, present)

    def _widen(self, num_groups: int) -> None:
        self._min_lrs += [min(self._min_lrs)] * num_groups
        self._max_lrs += [max(self._max_lrs)] * num_groups

    def _present_factor(self, present: Sequence[float]) -> float:
        largest = max(self.start_lrs)
        return present[self.start_lrs.index(largest)] / largest

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        super().load_state_dict(state)
        self._widen(len(self.start_lrs) - len(self._min_lrs))

    def _raised(self, lrs: Sequence[float | Tensor]) -> list[float]:
        raised = []
        for lr, max_lr in zip(lrs, self._max_lrs, strict=True):
            old = float(lr)
            new = min(old / self._factor, max_lr)
            raised.append(new if new - old > self._eps else old)
        self.bound_by = "max_lr" if raised[0] == self._max_lrs[0] else ""
        return raised

    def _lowered(
        self, lrs: Sequence[float | Tensor], capped_share: float
    ) -> tuple[list[float], bool]:
        lowered = []
        for lr, min_lr in zip(lrs, self._min_lrs, strict=True):
            old = float(lr) * capped_share
            new = max(old * self._factor, min_lr)
            lowered.append(new if old - new > self._eps else old)
        self.bound_by = "min_lr" if lowered[0] == self._min_lrs[0] else ""
        # not the same as `<=` if a bound is NaN
        is_at_floor = not any(lr > low for lr, low in zip(lowered, self._min_lrs, strict=True))
        return lowered, is_at_floor

    def _restored(self, lrs: Sequence[float | Tensor]) -> list[float]:
        return list(self.start_lrs)


def _one_per_group(name: str, value: float | Sequence[float], num_groups: int) -> list[float]:
    if not isinstance(value, (list, tuple)):
        return [value] * num_groups  # type: ignore[list-item]
    if len(value) != num_groups:
        raise ValueError(
            f"`{name}` must have one value per parameter group, {num_groups}, got {len(value)}"
        )
    return list(value)


class RelativeBounds(Bounds):
    """All groups share one scale in [`min_factor`, `max_factor`], relative to the start.

    A learning rate that somebody else changed, too, keeps that change: it is multiplied by the
    change of the scale.
    """

    _state_fields = state_fields(**Bounds._state_fields, scale="scale")

    def __init__(
        self, factor: float, reset_start: float, *, min_factor: float, max_factor: float
    ) -> None:
        super().__init__(factor, reset_start)
        self._min_factor = min_factor
        self._max_factor = max_factor

    def start(self, lrs: Sequence[float]) -> None:
        """Begin at these learning rates, one per group."""
        super().start(lrs)
        self.scale = 1.0

    def _present_factor(self, present: Sequence[float]) -> float:
        return self.scale

    def _raised(self, lrs: Sequence[float | Tensor]) -> list[float]:
        return self._rescaled(lrs, self.scale / self._factor)

    def _lowered(
        self, lrs: Sequence[float | Tensor], capped_share: float
    ) -> tuple[list[float], bool]:
        lowered = self._rescaled(lrs, self.scale * capped_share * self._factor)
        return lowered, self.scale == self._min_factor

    def _restored(self, lrs: Sequence[float | Tensor]) -> list[float]:
        return self._rescaled(lrs, 1.0)

    def _rescaled(self, lrs: Sequence[float | Tensor], scale: float) -> list[float]:
        before = self.scale
        self.scale = max(self._min_factor, min(self._max_factor, scale))
        self.bound_by = ""
        if self.scale != scale:
            self.bound_by = "max_factor" if scale > self.scale else "min_factor"
        return [
            # a tensor is compared in its own precision
            start * self.scale if bool(lr == start * before) else float(lr) * (self.scale / before)
            for start, lr in zip(self.start_lrs, lrs, strict=True)
        ]

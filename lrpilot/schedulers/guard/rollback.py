"""Rollback: when a guard takes its snapshot, and when it puts it back."""

import warnings
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lrpilot.schedulers.guard.snapshot import Snapshot
from lrpilot.state import Stateful, state_fields


class Rollback(Stateful):
    """A `Snapshot` with the step at which it was taken.

    Args:
        model: see `Snapshot`.
        optimizer: see `Snapshot`.
        interval_steps: steps between two snapshots, at least.
    """

    _state_fields = state_fields(
        "snapshot",
        snapshot_step="_taken_at",
        rollback_step="_put_back_at",
        has_warned="_has_warned",
    )

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, interval_steps: int) -> None:
        self.snapshot = Snapshot(model, optimizer)
        self._interval_steps = interval_steps
        self._taken_at = 0
        self._put_back_at = -1
        self._has_warned = False

    def start(self, *, at_milestone: bool) -> None:
        """Begin to count steps; what was trained before a milestone is part of the snapshot."""
        if at_milestone:
            self.snapshot.take()
        self._taken_at = 0

    def refresh(self, step: int, *, is_calm: bool) -> None:
        """Take the snapshot anew if that is due and the loss of a healthy step is calm."""
        if step == 1:
            self.snapshot.take_missing()  # what the first forward pass has created
        is_due = step - self._taken_at >= self._interval_steps
        if is_due and is_calm and self.snapshot.take():
            self._taken_at = step

    def put_back(self, step: int, *, is_nan: bool) -> int:
        """Put the snapshot back after an alarm; returns the steps that are lost."""
        if is_nan and step - 1 == self._put_back_at and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the loss is NaN or infinite again right after a rollback (step {step}): the "
                "cause is in the data, or in what the guard cannot put back: give it the whole "
                "`model`, and a scheduler of the optimizer that holds the state (further returns "
                "are not reported)",
                RuntimeWarning,
                stacklevel=4,
            )
        self.snapshot.restore()
        lost_steps = step - self._taken_at
        self._taken_at = self._put_back_at = step
        return lost_steps

    def check_state(self, state: Any) -> None:
        """Raise ValueError if it is of another model."""
        self.snapshot.check_state(state["snapshot"])

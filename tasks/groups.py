"""Batched runs of several kinds: those of one kind are one computation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrpilot.state import state_fields
from lrpilot.tasks.runs import BatchedRuns


class GroupedRuns(BatchedRuns):
    """B runs in groups; each run has a place in one group, which a reset may change.

    Args:
        groups: what is computed together, all on one device.
        num_runs: B, at least 1.
        dtype: of the losses.
    """

    _state_fields = state_fields(group="_group", place="_place", groups="_groups")

    def __init__(self, groups: Sequence[BatchedRuns], num_runs: int, *, dtype: torch.dtype) -> None:
        super().__init__(num_runs, device=groups[0].device)
        self._groups = groups
        self._dtype = dtype
        # each run's group, and its place there; -1 before its first start
        self._group, self._place = torch.full((2, num_runs), -1)
        self._find_members()

    def _find_members(self) -> None:
        """Of each group, the runs, and their places."""
        runs = [(self._group == k).nonzero().squeeze(1) for k in range(len(self._groups))]
        self._members = [(rows.to(self.device), self._place[rows].to(self.device)) for rows in runs]

    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs; returns the losses before it, 0 for the other runs."""
        losses = torch.zeros(self.num_runs, dtype=self._dtype, device=self.device)
        for group, (rows, places) in zip(self._groups, self._members, strict=True):
            is_active = active.new_zeros(group.num_runs)
            is_active[places] = active[rows]
            if is_active.any():
                group_lrs = lrs.new_zeros(group.num_runs)
                group_lrs[places] = lrs[rows]
                stepped = group.step(group_lrs, is_active)[places].to(self._dtype)
                losses[rows] = torch.where(active[rows], stepped, 0.0)
        return losses

    def privileged_losses(self) -> Tensor:
        """Each run's privileged loss."""
        losses = torch.zeros(self.num_runs, dtype=self._dtype, device=self.device)
        for group, (rows, places) in zip(self._groups, self._members, strict=True):
            if len(rows):
                losses[rows] = group.privileged_losses()[places].to(self._dtype)
        return losses

    def weights(self) -> Tensor:
        """Each run's sampled parameter entries; smaller networks' are followed by zeros."""
        return self._gather([group.weights() for group in self._groups])

    def gradients(self) -> Tensor:
        """The last gradients of these entries."""
        return self._gather([group.gradients() for group in self._groups])

    def _gather(self, values: list[Tensor]) -> Tensor:
        """Rows of the groups, each in the place of its run."""
        num_columns = max(value.shape[1] for value in values)
        gathered = values[0].new_zeros(self.num_runs, num_columns)
        for value, (rows, places) in zip(values, self._members, strict=True):
            gathered[rows, : value.shape[1]] = value[places]
        return gathered

    def _derive(self) -> None:
        self._find_members()

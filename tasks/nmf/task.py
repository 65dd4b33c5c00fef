"""Stochastic non-negative matrix factorization with a noisy gradient."""

from dataclasses import dataclass

import torch

from lrpilot.tasks.nmf.batch import BatchedNMFRuns
from lrpilot.tasks.nmf.problem import NMFProblem
from lrpilot.tasks.nmf.run import NMFRun


@dataclass(frozen=True, kw_only=True)
class NMFTask(NMFProblem):
    """Minimize 1/2 ||V - W H||^2 over W, H >= 0 from noisy gradients; see `NMFProblem`."""

    def start(self, seed: int) -> NMFRun:
        """A new run on a new matrix, from random factors of the right scale."""
        return NMFRun(self, seed)

    def start_batch(self, num_runs: int) -> BatchedNMFRuns:
        """B runs as one computation, for plain SGD.

        Raises:
            ValueError: if the optimizer is not plain SGD.
        """
        probe = self.optimizer([torch.zeros(1, requires_grad=True)], lr=1.0)
        plain = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
        if not isinstance(probe, torch.optim.SGD) or any(probe.defaults[k] for k in plain):
            raise ValueError(f"`optimizer` of batched runs must be plain SGD, got {probe}")
        return BatchedNMFRuns(self, num_runs)

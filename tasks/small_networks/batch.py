"""Hundreds of small networks of different shapes, those of one shape as one tensor computation."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot.tasks.networks.batch import cross_entropies
from lrpilot.tasks.networks.drawn import Drawn, DrawnGroups, DrawnRuns
from lrpilot.tasks.small_networks.instance import Setup
from lrpilot.tasks.small_networks.problem import SmallNetworkProblem


class NetworkGroup(DrawnRuns):
    """The runs of one setup.

    Args:
        problem: what is drawn from.
        setup: the networks' shape, and that of their data.
        num_runs: how many, at least 1.
    """

    def __init__(self, problem: SmallNetworkProblem, setup: Setup, num_runs: int) -> None:
        self._problem = problem
        self._setup = setup
        example = self._drawn(torch.Generator())
        assert isinstance(example.model, nn.Sequential)
        self._layers = list(example.model)
        super().__init__(
            example,
            optimizer=problem.optimizer,
            num_runs=num_runs,
            batch_size=setup.batch_size,
            device=problem.device,
        )

    def _drawn(self, generator: torch.Generator) -> Drawn:
        instance = self._problem.draw_instance(self._setup, generator)
        optimizer, lr_factor = self._problem.draw_optimizer(generator)
        train, held_out = instance.train, instance.held_out
        data = train.x, train.y, held_out.x, held_out.y
        return Drawn(instance.model, data, optimizer, (lr_factor,))

    def _draw(self, generator: torch.Generator) -> Drawn:
        self._problem.draw_setup(generator)
        return self._drawn(generator)

    def _losses(
        self, rows: Tensor, parameters: list[Tensor], inputs: Tensor, targets: Tensor
    ) -> Tensor:
        # what vmap would do, at a third of its overhead, which counts in networks of this size
        rest = iter(parameters)
        x = inputs
        for layer in self._layers:
            if isinstance(layer, nn.Linear):
                weight, bias = next(rest), next(rest)
                x = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
            elif isinstance(layer, nn.LayerNorm):
                weight, bias = next(rest), next(rest)
                x = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
                x = torch.addcmul(bias.unsqueeze(1), x, weight.unsqueeze(1))
            else:
                x = layer(x)
        return cross_entropies(x, targets).mean(1)

    @torch.no_grad()
    def privileged_losses(self) -> Tensor:
        """Cross-entropies on the held-out examples."""
        rows = torch.arange(self.num_runs, device=self.device)
        return self._losses(rows, self._stacked(self.parameters), *self._data[2:])


class BatchedSmallNetworks(DrawnGroups):
    """B runs of a `SmallNetworkTask`; those of one setup are one computation.

    Args:
        problem: what is drawn from.
        num_runs: B, at least 1.

    Raises:
        ValueError: if the optimizer cannot be batched, or `num_runs` is below 1.
    """

    def __init__(self, problem: SmallNetworkProblem, num_runs: int) -> None:
        self._problem = problem
        self._index = {setup: k for k, setup in enumerate(dict.fromkeys(problem.setups))}
        self._setups = list(self._index)
        super().__init__(len(self._setups), num_runs, dtype=getattr(torch, problem.dtype))

    def _new_group(self, k: int, num_runs: int) -> NetworkGroup:
        return NetworkGroup(self._problem, self._setups[k], num_runs)

    def _group_of(self, seed: int) -> int:
        return self._index[self._problem.draw_setup(torch.Generator().manual_seed(seed))]

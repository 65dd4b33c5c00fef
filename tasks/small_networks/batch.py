"""Hundreds of small networks of different shapes, those of one shape as one tensor computation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot.tasks.groups import GroupedRuns
from lrpilot.tasks.networks.batch import BatchedNetworkRuns, cross_entropies
from lrpilot.tasks.networks.minibatches import BatchedMinibatchSampler
from lrpilot.tasks.networks.stacked_optimizer import UpdateSettings, extend, read_settings
from lrpilot.tasks.small_networks.instance import Setup, make_network
from lrpilot.tasks.small_networks.problem import SmallNetworkProblem

_DATA = ("_train_x", "_train_y", "_held_out_x", "_held_out_y", "_lr_factors")


class NetworkGroup(BatchedNetworkRuns):
    """The runs of one setup.

    Args:
        problem: what is drawn from.
        setup: the networks' shape, and that of their data.
        num_runs: how many, at least 1.
    """

    def __init__(self, problem: SmallNetworkProblem, setup: Setup, num_runs: int) -> None:
        dtype = getattr(torch, problem.dtype)
        model = make_network(setup, torch.Generator(), dtype)
        super().__init__(model, optimizer=problem.optimizer, num_runs=num_runs)
        self._problem = problem
        self._layers = list(model)
        self._minibatches = BatchedMinibatchSampler(
            self.generators, num_examples=setup.num_train, batch_size=setup.batch_size
        )
        train, held_out = (num_runs, setup.num_train), (num_runs, problem.num_privileged)
        self._train_x = torch.zeros(*train, setup.dimension, dtype=dtype)
        self._train_y = torch.zeros(train, dtype=torch.int64)
        self._held_out_x = torch.zeros(*held_out, setup.dimension, dtype=dtype)
        self._held_out_y = torch.zeros(held_out, dtype=torch.int64)
        self._lr_factors = torch.ones(num_runs, dtype=torch.float64)
        # None where no run was started yet
        self.seeds: list[int | None] = [None] * num_runs

    def grow(self, num_runs: int) -> None:
        """Make room for as many runs; those that are here keep their indices."""
        super().grow(num_runs)
        self._minibatches.grow()
        for name in _DATA:
            setattr(self, name, extend(getattr(self, name), num_runs))
        self.seeds += [None] * (num_runs - len(self.seeds))

    def _start(self, row: int, seed: int) -> UpdateSettings:
        generator = self.generators[row]
        instance = self._problem.draw_instance(generator)
        make_optimizer, self._lr_factors[row] = self._problem.draw_optimizer(generator)
        self.seeds[row] = seed
        self._train_x[row], self._train_y[row] = instance.train.x, instance.train.y
        self._held_out_x[row], self._held_out_y[row] = instance.held_out.x, instance.held_out.y
        self._minibatches.start([row])
        self._take(row, instance.model)
        return read_settings(make_optimizer(instance.model.parameters(), lr=1.0))

    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs, each at the learning rate times its optimizer's factor."""
        return super().step(lrs * self._lr_factors, active)

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        examples = rows.unsqueeze(1), self._minibatches.next(rows)
        return self._train_x[examples], self._train_y[examples]

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
        rows = torch.arange(self.num_runs)
        parameters = self._stacked(self.parameters)
        return self._losses(rows, parameters, self._held_out_x, self._held_out_y)

    def state_dict(self) -> dict[str, Any]:
        """The state; the data are the seeds' own."""
        minibatches = self._minibatches.state_dict()
        return {**super().state_dict(), "minibatches": minibatches, "seeds": list(self.seeds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same setup."""
        started = {row: seed for row, seed in enumerate(state["seeds"]) if seed is not None}
        if started:
            self.reset(list(started), list(started.values()))
        super().load_state_dict(state)
        self._minibatches.load_state_dict(state["minibatches"])


class BatchedSmallNetworks(GroupedRuns):
    """B runs of a `SmallNetworkTask`; those of one setup are one computation.

    Run i has a place in the group of its setup, which it leaves to another when it starts anew.
    Groups grow when they have none left.

    Args:
        problem: what is drawn from.
        num_runs: B, at least 1.

    Raises:
        ValueError: if the optimizer cannot be batched, or `num_runs` is below 1.
    """

    _groups: list[NetworkGroup]

    def __init__(self, problem: SmallNetworkProblem, num_runs: int) -> None:
        self._problem = problem
        self._index = {setup: k for k, setup in enumerate(dict.fromkeys(problem.setups))}
        groups = [NetworkGroup(problem, setup, 1) for setup in self._index]
        super().__init__(groups, num_runs, dtype=getattr(torch, problem.dtype))

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        self._group[rows] = self._place[rows] = -1
        wanted: dict[int, list[tuple[int, int]]] = {}
        for row, seed in zip(rows, seeds, strict=True):
            setup = self._problem.draw_setup(torch.Generator().manual_seed(seed))
            wanted.setdefault(self._index[setup], []).append((row, seed))
        for k, runs in wanted.items():
            group = self._groups[k]
            taken = set(self._place[self._group == k].tolist())
            if len(taken) + len(runs) > group.num_runs:
                group.grow(len(taken) + len(runs))
            free = [place for place in range(group.num_runs) if place not in taken][: len(runs)]
            group.reset(free, [seed for _, seed in runs])
            new = [row for row, _ in runs]
            self._group[new], self._place[new] = k, torch.tensor(free)
        self._find_members()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        self._groups = [
            NetworkGroup(self._problem, setup, len(group["seeds"]))
            for setup, group in zip(self._index, state["groups"], strict=True)
        ]
        super().load_state_dict(state)

"""Hundreds of small networks of different shapes, those of one shape as one tensor computation."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot.tasks.networks.batch import BatchedNetworkRuns, cross_entropies
from lrpilot.tasks.networks.minibatches import BatchedMinibatchSampler
from lrpilot.tasks.networks.stacked_optimizer import UpdateSettings, extend, read_settings
from lrpilot.tasks.runs import BatchedRuns
from lrpilot.tasks.small_networks.problem import Setup, draw_problem, make_network

if TYPE_CHECKING:
    from lrpilot.tasks.small_networks.task import SmallNetworkTask

_DATA = ("_train_x", "_train_y", "_held_out_x", "_held_out_y", "_lr_factors")


class NetworkGroup(BatchedNetworkRuns):
    """The runs of one setup.

    Args:
        task: what is drawn.
        setup: the networks' shape, and that of their data.
        num_runs: how many, at least 1.
    """

    def __init__(self, task: "SmallNetworkTask", setup: Setup, num_runs: int) -> None:
        dtype = getattr(torch, task.dtype)
        model = make_network(setup, torch.Generator(), dtype)
        super().__init__(model, optimizer=task.optimizer, num_runs=num_runs)
        self._task, self._setup = task, setup
        self._layers = list(model)
        self._minibatches = BatchedMinibatchSampler(
            self.generators, num_examples=setup.num_train, batch_size=setup.batch_size
        )
        train, held_out = (num_runs, setup.num_train), (num_runs, task.num_privileged)
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
        problem = draw_problem(self._task, generator)
        make_optimizer, self._lr_factors[row] = self._task.draw_optimizer(generator)
        self.seeds[row] = seed
        self._train_x[row], self._train_y[row] = problem.train.x, problem.train.y
        self._held_out_x[row], self._held_out_y[row] = problem.held_out.x, problem.held_out.y
        self._minibatches.start([row])
        parameters = list(problem.model.parameters())
        self.parameters[row] = torch.cat([value.flatten() for value in parameters])
        return read_settings(make_optimizer(parameters, lr=1.0))

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


class BatchedSmallNetworks(BatchedRuns):
    """B runs of a `SmallNetworkTask`; those of one setup are one computation.

    Run i has a place in the group of its setup, which it leaves to another when it starts anew.
    Groups grow when they have none left.

    Args:
        task: what is drawn.
        num_runs: B, at least 1.

    Raises:
        ValueError: if the optimizer cannot be batched, or `num_runs` is below 1.
    """

    def __init__(self, task: "SmallNetworkTask", num_runs: int) -> None:
        super().__init__(num_runs)
        self._task = task
        setups = list(dict.fromkeys(task.setups))
        self._index = {setup: k for k, setup in enumerate(setups)}
        self._groups = [NetworkGroup(task, setup, 1) for setup in setups]
        # each run's group, and its place there; -1 before its first start
        self._group, self._place = torch.full((2, num_runs), -1)
        self._find_members()

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        self._group[rows] = self._place[rows] = -1
        wanted: dict[int, list[tuple[int, int]]] = {}
        for row, seed in zip(rows, seeds, strict=True):
            setup = self._task.draw_setup(torch.Generator().manual_seed(seed))
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

    def _find_members(self) -> None:
        """Of each group, the runs, and their places."""
        runs = [(self._group == k).nonzero().squeeze(1) for k in range(len(self._groups))]
        self._members = [(rows, self._place[rows]) for rows in runs]

    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs; returns the losses before it, 0 for the other runs."""
        losses = torch.zeros(self.num_runs, dtype=getattr(torch, self._task.dtype))
        for group, (rows, places) in zip(self._groups, self._members, strict=True):
            is_active = torch.zeros(group.num_runs, dtype=torch.bool)
            is_active[places] = active[rows]
            if is_active.any():
                group_lrs = lrs.new_zeros(group.num_runs)
                group_lrs[places] = lrs[rows]
                losses[rows] = group.step(group_lrs, is_active)[places]
        return losses

    def cap(self) -> tuple[Tensor, str]:
        """Networks have none.

        Raises:
            ValueError: always.
        """
        return self._groups[0].cap()

    def privileged_losses(self) -> Tensor:
        """Cross-entropies on the held-out examples."""
        return self._gather([group.privileged_losses().unsqueeze(1) for group in self._groups])[
            :, 0
        ]

    def weights(self) -> Tensor:
        """Each run's parameters (or their sample); smaller networks' are followed by zeros."""
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

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors (loads with `weights_only=True`)."""
        return {
            "group": self._group.clone(),
            "place": self._place.clone(),
            "groups": [group.state_dict() for group in self._groups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        self._group, self._place = state["group"].clone(), state["place"].clone()
        self._groups = [
            NetworkGroup(self._task, setup, len(group["seeds"]))
            for setup, group in zip(self._index, state["groups"], strict=True)
        ]
        for group, group_state in zip(self._groups, state["groups"], strict=True):
            group.load_state_dict(group_state)
        self._find_members()

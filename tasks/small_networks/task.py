"""Random small networks on random data: thousands of different trainings for an agent."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lrpilot.tasks.networks.minibatches import MinibatchSampler
from lrpilot.tasks.runs import Closure, ClosureRun
from lrpilot.tasks.small_networks.batch import BatchedSmallNetworks
from lrpilot.tasks.small_networks.instance import Split
from lrpilot.tasks.small_networks.problem import SmallNetworkProblem


@dataclass(frozen=True, kw_only=True)
class SmallNetworkTask(SmallNetworkProblem):
    """Every seed is another small network on other data; see `SmallNetworkProblem`."""

    def start(self, seed: int) -> "SmallNetworkRun":
        """A new network on new data."""
        return SmallNetworkRun(self, seed)

    def start_batch(self, num_runs: int) -> BatchedSmallNetworks:
        """B runs as one computation.

        Raises:
            ValueError: if the optimizer cannot be batched.
        """
        return BatchedSmallNetworks(self, num_runs)


class SmallNetworkRun(ClosureRun):
    """One small network in training; `step(lr)` trains at lr times the optimizer's factor."""

    def __init__(self, task: SmallNetworkTask, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.instance = task.draw_instance(task.draw_setup(generator), generator)
        self.model = self.instance.model
        optimizer, self.lr_factor = task.draw_optimizer(generator)
        lr = task.base_lr * self.lr_factor
        super().__init__(self.model.parameters(), optimizer=optimizer, lr=lr, generator=generator)
        self._seed = seed
        self._epoch = MinibatchSampler(
            len(self.instance.train.y), self.instance.setup.batch_size, generator
        )

    def step(self, lr: float | None = None) -> Tensor:
        """Make one optimizer step, at `lr` times the factor of the run's optimizer."""
        return super().step(None if lr is None else lr * self.lr_factor)

    def _draw_loss(self) -> Closure:
        batch = self.instance.train.select(self._epoch.next())
        return lambda: self._loss(batch)

    def _loss(self, split: Split) -> Tensor:
        return functional.cross_entropy(self.model(split.x), split.y)

    @torch.no_grad()
    def privileged_loss(self) -> float:
        """Cross-entropy on the held-out examples."""
        return float(self._loss(self.instance.held_out))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the held-out and test examples."""
        metrics = {}
        for name in ("held_out", "test"):
            split: Split = getattr(self.instance, name)
            labels = self.model(split.x).argmax(1)
            metrics[f"{name}_loss"] = float(self._loss(split))
            metrics[f"{name}_accuracy"] = float((labels == split.y).double().mean())
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The state; the network's architecture and data are the seed's own."""
        return {**super().state_dict(), "seed": self._seed, **self._epoch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task and seed.

        Raises:
            ValueError: if the seed is another.
        """
        if state["seed"] != self._seed:
            raise ValueError(
                f"`state` must be of a run of seed {self._seed}, which is another network, got "
                f"seed {state['seed']}"
            )
        super().load_state_dict(state)
        self._epoch.load_state_dict(state)

"""Tasks on labelled examples: a network, a loss of its outputs and targets, shuffled minibatches.

A task of this kind says what its examples are (`load`) and how its network is made (`make_model`);
single runs, batched runs, measurements and their states follow from that.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lrpilot.tasks.networks.batch import BatchedNetworkRuns
from lrpilot.tasks.networks.global_generators import generator_states, seeded_on
from lrpilot.tasks.networks.minibatches import Minibatches
from lrpilot.tasks.networks.splits import Splits
from lrpilot.tasks.networks.stacked_optimizer import UpdateSettings
from lrpilot.tasks.networks.supervised import EpochOrder, check_precision, forward, measuring
from lrpilot.tasks.runs import Closure, ClosureRun
from lrpilot.tasks.task import Task

LossFunction = Callable[[Tensor, Tensor], Tensor]

EVALUATION_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class SupervisedTask(Task):
    """Train a network on labelled examples.

    Args:
        loss: called as `loss(outputs, targets)` on a minibatch; returns its mean loss, a tensor of
            shape ().
        batch_size: examples per step; epochs are shuffled, an incomplete batch is dropped.
        num_privileged: held-out examples in the privileged loss.
        device: where network and examples live.
        precision: of the forward pass and its gradients: "float32" (the network's own), or
            "bfloat16" by autocast.

    Raises:
        ValueError: if an argument is out of range.
    """

    loss: LossFunction
    batch_size: int = 64
    num_privileged: int = 256
    device: str = "cpu"
    precision: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "num_privileged"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        check_precision(self.precision)

    @abstractmethod
    def load(self) -> Splits:
        """The examples on the device; one copy per process."""

    @abstractmethod
    def make_model(self, seed: int) -> nn.Module:
        """The network of this seed, on the device; no global generator is touched."""

    @cached_property
    def draws_globally(self) -> bool:
        """Whether a forward pass in training draws from torch's global generators, as dropout does.

        Raises:
            ValueError: if the network's output is not one tensor, or the loss is not a number that
                depends on the weights.
        """
        data, model = self.load(), self.make_model(0)
        with seeded_on(self.device, 0):
            before = generator_states(self.device)
            outputs = forward(model, data.train_x[: self.batch_size], self.precision)
            after = generator_states(self.device)
            if not isinstance(outputs, Tensor):
                raise ValueError(f"`model` must return one tensor, got {type(outputs).__name__}")
            loss = self.loss(outputs, data.train_y[: self.batch_size])
        if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                "`loss` must return the mean over a minibatch, a tensor of shape () that depends "
                f"on the weights, got {got}"
            )
        return not all(map(torch.equal, before, after))

    def steps_per_epoch(self) -> int:
        """Optimizer steps in which a run goes through its training examples once."""
        return len(self.load().train_x) // self.batch_size

    def start(self, seed: int) -> "SupervisedRun":
        """A new network on freshly shuffled examples."""
        return SupervisedRun(self, seed)

    def start_batch(self, num_runs: int) -> "BatchedSupervisedRuns":
        """B runs as one computation.

        Raises:
            ValueError: if network, loss or optimizer cannot be batched (see
                `BatchedSupervisedRuns`).
        """
        return BatchedSupervisedRuns(self, num_runs)


class SupervisedRun(ClosureRun):
    """One network in training."""

    def __init__(self, task: SupervisedTask, seed: int) -> None:
        self.data = task.load()
        self.model = task.make_model(seed)
        super().__init__(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            optimizer=task.optimizer,
            lr=task.base_lr,
            generator=torch.Generator().manual_seed(seed),
        )
        self._task = task
        self._epoch = EpochOrder(len(self.data.train_x), task.batch_size, self.generator)
        frozen = [value for value in self.model.parameters() if not value.requires_grad]
        self._fixed = [*frozen, *self.model.buffers()]

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        index = self._epoch.next().to(self._task.device, non_blocking=True)
        return self.data.train_x.index_select(0, index), self.data.train_y.index_select(0, index)

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._task.loss(forward(self.model, inputs, self._task.precision), targets)

    def _draw_loss(self) -> Closure:
        inputs, targets = self._next_batch()
        if not self._task.draws_globally:
            return lambda: self._loss(inputs, targets)
        # dropout comes from the run's generator, and is the same if the closure is called again
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return lambda: self._seeded_loss(inputs, targets, seed)

    def _seeded_loss(self, inputs: Tensor, targets: Tensor, seed: int) -> Tensor:
        with seeded_on(self._task.device, seed):
            return self._loss(inputs, targets)

    def _measured(self, inputs: Tensor, targets: Tensor) -> float:
        with measuring(self.model):
            if self._task.draws_globally:
                return float(self._seeded_loss(inputs, targets, 0))
            return float(self._loss(inputs, targets))

    def privileged_loss(self) -> float:
        """Loss on the first `num_privileged` held-out examples."""
        size = self._task.num_privileged
        return self._measured(self.data.held_out_x[:size], self.data.held_out_y[:size])

    def evaluate(self) -> dict[str, float]:
        """Mean loss on the whole held-out split, and on the test split if there is one."""
        metrics = {"held_out_loss": self._mean_loss(self.data.held_out_x, self.data.held_out_y)}
        if self.data.test_x is not None and self.data.test_y is not None:
            metrics["test_loss"] = self._mean_loss(self.data.test_x, self.data.test_y)
        return metrics

    def _mean_loss(self, inputs: Tensor, targets: Tensor) -> float:
        batches = zip(inputs.split(EVALUATION_BATCH), targets.split(EVALUATION_BATCH), strict=True)
        return sum(len(x) * self._measured(x, y) for x, y in batches) / len(inputs)

    def state_dict(self) -> dict[str, Any]:
        """The state, with buffers, frozen parameters, and the order of the current epoch."""
        return {
            **super().state_dict(),
            "fixed": [tensor.detach().clone() for tensor in self._fixed],
            **self._epoch.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task."""
        super().load_state_dict(state)
        with torch.no_grad():
            for tensor, value in zip(self._fixed, state["fixed"], strict=True):
                tensor.copy_(value)
        self._epoch.load_state_dict(state)


class BatchedSupervisedRuns(BatchedNetworkRuns):
    """B networks of a `SupervisedTask` as one computation; they share one copy of the examples.

    Args:
        task: what is trained.
        num_runs: B, at least 1.

    Raises:
        ValueError: if network and loss are not what `torch.func.vmap` maps, networks of different
            seeds have different frozen parameters, and as `BatchedNetworkRuns` does.
    """

    def __init__(self, task: SupervisedTask, num_runs: int) -> None:
        super().__init__(
            task.make_model(0),
            optimizer=task.optimizer,
            num_runs=num_runs,
            device=task.device,
            precision=task.precision,
        )
        self._task = task
        self.data = task.load()
        self._minibatches = Minibatches(
            self.generators, num_examples=len(self.data.train_x), batch_size=task.batch_size
        )
        self._check_frozen(task.make_model(1))
        self._check_mapping()

    def _check_frozen(self, other: nn.Module) -> None:
        for (name, mine), theirs in zip(
            self._model.named_parameters(), other.parameters(), strict=True
        ):
            if not mine.requires_grad and not torch.equal(mine, theirs):
                raise ValueError(
                    "`model` of batched runs must have the same frozen parameters for every seed, "
                    f"got another {name!r} for another seed"
                )

    def _check_mapping(self) -> None:
        """Map the loss of one step, so that what cannot be mapped says so now."""
        size = self._task.batch_size
        inputs, targets = self.data.train_x[:size], self.data.train_y[:size]
        trained = [value for value in self._model.parameters() if value.requires_grad]
        parameters = [value.detach().unsqueeze(0) for value in trained]
        buffers = [buffer.clone().unsqueeze(0) for buffer in self._model.buffers()]
        try:
            self._mapped(parameters, buffers, inputs[None], targets[None], dim=0)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                "`model` and `loss` of batched runs must be what torch.func.vmap maps (without "
                f"random draws, branches on values or calls of `.item()`), got: {error}"
            ) from error

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        super().reset(rows, seeds)
        self._minibatches.start(rows)

    def _start(self, row: int, seed: int) -> UpdateSettings:
        self._take(row, self._task.make_model(seed))
        return self._settings

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._task.loss(outputs, targets)

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        index = self._minibatches.next(rows.cpu()).to(self.device, non_blocking=True)
        return self.data.train_x[index], self.data.train_y[index]

    def privileged_losses(self) -> Tensor:
        """Losses on the first `num_privileged` held-out examples."""
        size = self._task.num_privileged
        return self._measured(self.data.held_out_x[:size], self.data.held_out_y[:size])

    def state_dict(self) -> dict[str, Any]:
        """The state, with the orders of the current epochs."""
        return {**super().state_dict(), "minibatches": self._minibatches.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        super().load_state_dict(state)
        self._minibatches.load_state_dict(state["minibatches"])

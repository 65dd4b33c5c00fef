"""Tasks on labelled examples: a network, a loss of its outputs and targets, shuffled minibatches.

A task of this kind says what its examples are (`load`) and how its network is made (`make_model`);
single runs, batched runs, measurements and their states follow from that.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrpilot.state import state_fields
from lrpilot.tasks.data.splits import Splits
from lrpilot.tasks.networks.batch import BatchedTaskRuns
from lrpilot.tasks.networks.minibatches import BatchedMinibatchSampler, MinibatchSampler
from lrpilot.tasks.networks.randomness import generator_states, seeded
from lrpilot.tasks.networks.task import (
    NetworkRun,
    NetworkTask,
    forward,
    measuring,
    scaled_size,
)
from lrpilot.tasks.task import shared_property

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SupervisedTask(NetworkTask):
    """Train a network on labelled examples; epochs are shuffled, an incomplete batch is dropped.

    Args:
        loss: called as `loss(outputs, targets)` on a minibatch; returns its mean loss, a tensor of
            shape (). Torch's cross-entropy, where the targets are numbers of classes, makes the
            task a classification, whose accuracy is measured, too.
    """

    loss: LossFunction = functional.cross_entropy
    evaluation_batch: ClassVar[int] = 1000

    @abstractmethod
    def load(self) -> Splits:
        """The examples on the device; one copy per process."""

    def _check_sizes(self, data: Splits) -> None:
        for name, part, available in (
            ("batch_size", "training", len(data.train_x)),
            ("num_privileged", "held-out", len(data.held_out_x)),
        ):
            is_met = getattr(self, name) <= available
            self._require(name, is_met, f"be at most the {available} {part} examples")

    def privileged_batch(self) -> tuple[Tensor, Tensor]:
        """The first `num_privileged` held-out examples."""
        data = self.load()
        return data.held_out_x[: self.num_privileged], data.held_out_y[: self.num_privileged]

    @shared_property
    def is_classification(self) -> bool:
        """Whether the loss is torch's cross-entropy of class numbers, (examples,)."""
        targets = self.load().train_y
        is_numbers = targets.dtype == torch.int64 and targets.dim() == 1
        return self.loss is functional.cross_entropy and is_numbers and bool((targets >= 0).all())

    @shared_property
    def draws_globally(self) -> bool:
        """Whether a forward pass in training draws from torch's global generators, as dropout does.

        Raises:
            ValueError: if the network's output is not one tensor, or the loss is not a number that
                depends on the weights.
        """
        data, model = self.load(), self.make_model(0)
        # asked for the first time where a loss is measured, too
        with torch.enable_grad(), seeded(0, self.device):
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
        """B runs as one computation; see `BatchedSupervisedRuns`."""
        return BatchedSupervisedRuns(self, num_runs)


class SupervisedRun(NetworkRun):
    """One network in training on labelled examples."""

    _state_fields = state_fields(**NetworkRun._state_fields, fixed="_fixed")
    _task: SupervisedTask

    def __init__(self, task: SupervisedTask, seed: int) -> None:
        super().__init__(task, seed)
        self.data = task.load()
        self._sampler = MinibatchSampler(len(self.data.train_x), task.batch_size, self.generator)
        frozen = [value for value in self.model.parameters() if not value.requires_grad]
        self._fixed = [*frozen, *self.model.buffers()]

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        index = self._sampler.next().to(self._task.device, non_blocking=True)
        return self.data.train_x.index_select(0, index), self.data.train_y.index_select(0, index)

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._task.loss(self._outputs(inputs), targets)

    def scale_batch_size(self, factor: float) -> None:
        """Draw minibatches of another size; what is left of the epoch is cut into such."""
        self._sampler.resize(scaled_size(self._task.batch_size, factor))
        super().scale_batch_size(factor)

    def shift_labels(self, shift: int) -> None:
        """Rename the classes of all data.

        Raises:
            ValueError: if the loss is not torch's cross-entropy of class numbers.
        """
        if not self._task.is_classification:
            raise ValueError(
                "`shift_labels` must be asked of a classification by cross-entropy, got task "
                f"{self._task.name!r}"
            )
        super().shift_labels(shift)

    def evaluate(self) -> dict[str, float]:
        """Mean loss, and accuracy of a classification, on the whole held-out and test splits."""
        metrics = {}
        for split in ("held_out", "test"):
            inputs, targets = getattr(self.data, f"{split}_x"), getattr(self.data, f"{split}_y")
            if inputs is not None:
                loss, num_correct = self._totals(inputs, targets)
                metrics[f"{split}_loss"] = loss / len(inputs)
                if self._task.is_classification:
                    metrics[f"{split}_accuracy"] = num_correct / len(inputs)
        return metrics

    def _totals(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """The sum of the losses, and the number of correct answers of a classification."""
        size, task = self._task.evaluation_batch, self._task
        loss = correct = 0.0
        with measuring(self.model):
            for x, y in zip(inputs.split(size), targets.split(size), strict=True):
                with self._seeded(0):
                    outputs = self._outputs(x)
                    if task.is_classification:
                        loss += float(functional.cross_entropy(outputs, y, reduction="sum"))
                        correct += float((outputs.argmax(1) == y).sum())
                    else:
                        loss += len(x) * float(task.loss(outputs, y))
        return loss, correct

    def state_dict(self) -> dict[str, Any]:
        """The state, with the order of the current epoch."""
        return {**super().state_dict(), **self._sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a run of the same task."""
        super().load_state_dict(state)
        self._sampler.load_state_dict(state)


class BatchedSupervisedRuns(BatchedTaskRuns):
    """B networks of a `SupervisedTask` as one computation; they share one copy of the examples.

    Args:
        task: what is trained.
        num_runs: B, at least 1.

    Raises:
        ValueError: if network and loss are not what `torch.func.vmap` maps, networks of different
            seeds have different frozen parameters, and as `BatchedTaskRuns` does.
    """

    _state_fields = state_fields(**BatchedTaskRuns._state_fields, minibatches="_sampler")
    _task: SupervisedTask

    def __init__(self, task: SupervisedTask, num_runs: int) -> None:
        super().__init__(task, num_runs)
        self.data = task.load()
        self._sampler = BatchedMinibatchSampler(
            self.generators, num_examples=len(self.data.train_x), batch_size=task.batch_size
        )
        self._check_frozen(task.make_model(1))
        self._check_mapping()

    def _check_frozen(self, other: nn.Module) -> None:
        theirs = dict(other.named_parameters())
        for name, mine in self._model.named_parameters():
            if not mine.requires_grad and not torch.equal(mine, theirs[name]):
                raise ValueError(
                    "`model` of batched runs must have the same frozen parameters for every seed, "
                    f"got another {name!r} for another seed"
                )

    def _check_mapping(self) -> None:
        """Map the loss of one step, so that what cannot be mapped says so now."""
        size = self._task.batch_size
        inputs, targets = self.data.train_x[None, :size], self.data.train_y[None, :size]
        try:
            self._losses(torch.arange(1), self._stacked(self.parameters[:1]), inputs, targets)
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
        self._sampler.start(rows)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._task.is_classification:
            return super()._loss(outputs, targets)
        return self._task.loss(outputs, targets)

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        index = self._sampler.next(rows.cpu()).to(self.device, non_blocking=True)
        return self.data.train_x[index], self.data.train_y[index]

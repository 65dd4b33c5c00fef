"""Many networks of one architecture as one tensor computation."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lrpilot.observation import ObservationSpec
from lrpilot.parameter_sample import sample_positions
from tasks.augmentation import crop_and_flip, draw_crops
from tasks.minibatches import Minibatches
from tasks.runs import BatchedRuns, OptimizerFactory
from tasks.stacked_optimizer import StackedOptimizer, UpdateSettings, extend, read_settings

if TYPE_CHECKING:
    from tasks.cnn import ImageTask

_TENSORS = ("parameters", "_gradients")
# their forward pass depends on more than parameters and inputs
_REFUSED = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RNNBase)


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Stacked tensors (B, ...) side by side as one matrix (B, entries)."""
    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each example, (...), of logits (..., classes).

    With few classes, several times as fast as torch's, to rounding equal.
    """
    return logits.logsumexp(-1) - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


class BatchedNetworkRuns(BatchedRuns):
    """B networks in training as one computation, equal to the single runs to rounding.

    The parameters of all runs are one matrix, a run a row. The losses of all runs are computed
    through `torch.func.vmap`, and differentiated together: their sum has in each row the gradient
    of that run's loss.

    Layers whose forward pass does more than to map inputs by parameters (batch normalization with
    its running statistics, dropout, recurrent layers) are refused; layer and group normalization
    are computed per run.

    Args:
        model: a network of the architecture.
        optimizer: called as `optimizer(parameters, lr=...)`: torch's SGD (with momentum, Nesterov's
            too, and weight decay), Adam or AdamW.
        num_runs: B, at least 1.
        device: where the runs live.

    Raises:
        ValueError: if the model or the optimizer cannot be batched, or `num_runs` is below 1.
    """

    def __init__(
        self, model: nn.Module, *, optimizer: OptimizerFactory, num_runs: int, device: str = "cpu"
    ) -> None:
        super().__init__(num_runs, device=device)
        for module in model.modules():
            if isinstance(module, _REFUSED):
                raise ValueError(
                    "`model` of batched runs must be without batch normalization, dropout and "
                    f"recurrent layers, got {module}"
                )
        parameters = dict(model.named_parameters())
        self._model = model
        self._names = list(parameters)
        self._shapes = [parameter.shape for parameter in parameters.values()]
        self._sizes = [parameter.numel() for parameter in parameters.values()]
        (dtype,) = {parameter.dtype for parameter in parameters.values()}
        num_entries = sum(self._sizes)
        self.parameters = torch.zeros(num_runs, num_entries, dtype=dtype, device=device)
        self._gradients = torch.zeros_like(self.parameters)
        self._settings = read_settings(optimizer(model.parameters(), lr=1.0))
        self.optimizer = StackedOptimizer(num_runs, num_entries, dtype=dtype, device=device)
        self.generators = [torch.Generator() for _ in range(num_runs)]
        self._sample = sample_positions(num_entries, ObservationSpec().num_entries)

    @abstractmethod
    def _start(self, row: int, seed: int) -> UpdateSettings:
        """Begin a run, whose generator is seeded: fill its parameters; returns its optimizer's."""

    @abstractmethod
    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The next inputs and targets, (rows, batch, ...) each, of the runs of these indices."""

    @abstractmethod
    def privileged_losses(self) -> Tensor:
        """Each run's privileged loss."""

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one run's batch, of shape ()."""
        return cross_entropies(outputs, targets).mean()

    @torch.no_grad()
    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        settings = []
        for row, seed in zip(rows, seeds, strict=True):
            self.generators[row].manual_seed(seed)
            settings.append(self._start(row, seed))
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self._gradients[index] = 0.0
        self.optimizer.start(index, settings)

    def grow(self, num_runs: int) -> None:
        """Make room for as many runs; those that are here keep their indices."""
        for name in _TENSORS:
            setattr(self, name, extend(getattr(self, name), num_runs))
        self.optimizer.grow(num_runs)
        self.generators += [torch.Generator() for _ in range(num_runs - self.num_runs)]
        self.num_runs = num_runs

    def _stacked(self, parameters: Tensor) -> list[Tensor]:
        """The rows of the matrix as one tensor (rows, ...) per parameter of the network."""
        parts = parameters.split(self._sizes, dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _losses(
        self, rows: Tensor, parameters: list[Tensor], inputs: Tensor, targets: Tensor
    ) -> Tensor:
        """Losses (rows,) of the runs of these indices on what `_next_batches` gave."""
        return self._mapped(parameters, inputs, targets, dim=0)

    def _mapped(
        self, parameters: list[Tensor], inputs: Tensor, targets: Tensor, *, dim: int | None
    ) -> Tensor:
        """Losses (rows,) on a batch of each run's own, or (dim=None) on one that all share."""

        def loss(values: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            named = dict(zip(self._names, values, strict=True))
            return self._loss(functional_call(self._model, named, (x,)), y)

        losses: Tensor = vmap(loss, in_dims=(0, dim, dim))(parameters, inputs, targets)
        return losses

    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs; returns the losses before it, 0 for the other runs."""
        rows = active.nonzero().squeeze(1)
        everyone = len(rows) == self.num_runs
        weights = self.parameters if everyone else self.parameters[rows]
        leaves = [part.detach().requires_grad_() for part in self._stacked(weights)]
        with torch.enable_grad():
            losses = self._losses(rows, leaves, *self._next_batches(rows))
            gradients = flatten(torch.autograd.grad(losses.sum(), leaves))
        with torch.no_grad():
            some = None if everyone else rows
            new = self.optimizer.step(weights, gradients, lrs[rows], some)
            if everyone:
                self.parameters, self._gradients = new, gradients
                return losses.detach()
            self.parameters[rows], self._gradients[rows] = new, gradients
            return losses.new_zeros(self.num_runs).index_copy(0, rows, losses.detach())

    def cap(self) -> tuple[Tensor, str]:
        """Networks have none.

        Raises:
            ValueError: always.
        """
        raise ValueError("`cap` must be asked of runs that have one, got networks")

    def weights(self) -> Tensor:
        """Each run's parameters (or their sample), as a single run's observer sees them."""
        return self._read(self.parameters)

    def gradients(self) -> Tensor:
        """The last gradients of these entries."""
        return self._read(self._gradients)

    def _read(self, entries: Tensor) -> Tensor:
        picked = entries.clone() if self._sample is None else entries[:, self._sample]
        return picked.float()

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors (loads with `weights_only=True`)."""
        return {
            **{name: getattr(self, name).clone() for name in _TENSORS},
            "optimizer": self.optimizer.state_dict(),
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        for name in _TENSORS:
            setattr(self, name, state[name].clone())
        self.optimizer.load_state_dict(state["optimizer"])
        for generator, generator_state in zip(self.generators, state["generators"], strict=True):
            generator.set_state(generator_state)


class BatchedImageRuns(BatchedNetworkRuns):
    """B networks of an `ImageTask`; they share one copy of the data.

    Args:
        task: what is trained, in float32 (or in the precision of the network's parameters).
        num_runs: B, at least 1.

    Raises:
        ValueError: see `BatchedNetworkRuns`, or if the task trains in bfloat16.
    """

    def __init__(self, task: "ImageTask", num_runs: int) -> None:
        if task.precision != "float32":
            raise ValueError(f"`precision` of batched runs must be float32, got {task.precision!r}")
        super().__init__(
            task.make_model(0), optimizer=task.optimizer, num_runs=num_runs, device=task.device
        )
        self._task = task
        self.data = task.load()
        self._minibatches = Minibatches(
            self.generators, num_examples=len(self.data.train_x), batch_size=task.batch_size
        )

    def reset(self, rows: list[int], seeds: list[int]) -> None:
        """Start the runs of these indices anew, from these seeds."""
        super().reset(rows, seeds)
        self._minibatches.start(rows)

    def _start(self, row: int, seed: int) -> UpdateSettings:
        model = self._task.make_model(seed)
        self.parameters[row] = torch.cat([value.flatten() for value in model.parameters()])
        return self._settings

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.cpu()
        index = self._minibatches.next(rows).to(self.device, non_blocking=True)
        images = self.data.train_x[index]
        if self._task.augment:
            images = self._augmented(images, rows.tolist())
        return images, self.data.train_y[index]

    def _augmented(self, images: Tensor, rows: list[int]) -> Tensor:
        task = self._task
        crops = [
            draw_crops(task.batch_size, padding=task.crop_padding, generator=self.generators[row])
            for row in rows
        ]
        augmented = crop_and_flip(
            images.flatten(0, 1),
            torch.cat(crops, dim=1).to(self.device, non_blocking=True),
            padding=task.crop_padding,
            padding_mode=task.padding_mode,
        )
        return augmented.view(images.shape)

    @torch.no_grad()
    def privileged_losses(self) -> Tensor:
        """Cross-entropies on the first `num_privileged` held-out images."""
        size = self._task.num_privileged
        images, labels = self.data.held_out_x[:size], self.data.held_out_y[:size]
        return self._mapped(self._stacked(self.parameters), images, labels, dim=None)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the orders of the current epochs."""
        return {**super().state_dict(), "minibatches": self._minibatches.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many runs of the same task."""
        super().load_state_dict(state)
        self._minibatches.load_state_dict(state["minibatches"])

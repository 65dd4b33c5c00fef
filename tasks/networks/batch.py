"""Many networks of one architecture as one tensor computation."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrpilot.policy.observation import ObservationSpec
from lrpilot.policy.parameter_sample import sample_positions
from lrpilot.state import state_fields
from lrpilot.tasks.networks.randomness import RunDropout
from lrpilot.tasks.networks.stacked_optimizer import (
    StackedOptimizer,
    UpdateSettings,
    clip_norms,
    extend,
    read_settings,
)
from lrpilot.tasks.networks.task import NetworkTask, measuring
from lrpilot.tasks.runs import BatchedRuns, OptimizerFactory

_TENSORS = ("parameters", "_gradients")


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each example, (...), of logits (..., classes).

    With few classes, several times as fast as torch's, to rounding equal.
    """
    return logits.logsumexp(-1) - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _check(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            raise ValueError(
                f"`model` of batched runs must be without recurrent layers, got {module}"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd):
            raise ValueError(
                "`model` of batched runs must drop by `RunDropout`, which draws "
                f"from the run's generator, got {module}"
            )
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum is None:
            raise ValueError(
                "`momentum` of batch normalization in batched runs must be a number, got None in "
                f"{module}"
            )
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if len(dtypes) != 1:
        raise ValueError(f"`model` of batched runs must have one dtype, got {dtypes or 'none'}")


class BatchedNetworkRuns(BatchedRuns):
    """B networks in training as one computation, equal to the single runs to rounding.

    The parameters of all runs are one matrix, a run a row; those that need no gradient are shared.
    The losses of all runs are computed through `torch.func.vmap`, and differentiated together:
    their sum has in each row the gradient of that run's loss. Buffers (the running statistics of
    batch normalization) are kept per run. Recurrent layers are refused, and so is torch's dropout,
    which draws for all runs from one generator; `RunDropout` draws from each run's own.

    Args:
        model: a network of the architecture.
        optimizer: called as `optimizer(parameters, lr=...)`: torch's SGD (with momentum, Nesterov's
            too, and weight decay), Adam, AdamW or RMSprop.
        num_runs: B, at least 1.
        device: where the runs live.
        max_gradient_norm: a run's gradients of a larger norm are shortened to it before its step;
            None leaves them.
        precision: of the forward pass and its gradients: "float32", or "bfloat16" by autocast
            (normalization is computed in float32, and on a CPU so are convolutions).

    Raises:
        ValueError: if the model or the optimizer cannot be batched, or `num_runs` is below 1.
    """

    _state_fields = state_fields(*_TENSORS, "optimizer", "generators", buffers="_buffers")

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerFactory,
        num_runs: int,
        device: str = "cpu",
        max_gradient_norm: float | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__(num_runs, device=device)
        _check(model)
        if precision == "bfloat16":
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    # mapped, it refuses inputs of lower precision than its statistics
                    module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        buffers = dict(model.named_buffers())
        self._model = model
        self._dropouts = [
            module
            for module in model.modules()
            if isinstance(module, RunDropout) and module.probability > 0.0
        ]
        self._names = [*trained, *buffers]
        self._shapes = [parameter.shape for parameter in trained.values()]
        self._sizes = [parameter.numel() for parameter in trained.values()]
        dtype = next(iter(trained.values())).dtype
        num_entries = sum(self._sizes)
        self.parameters = torch.zeros(num_runs, num_entries, dtype=dtype, device=device)
        self._gradients = torch.zeros_like(self.parameters)
        self._buffers = [buffer.new_zeros(num_runs, *buffer.shape) for buffer in buffers.values()]
        self._max_gradient_norm = max_gradient_norm
        self._precision = precision
        self._settings = read_settings(optimizer(trained.values(), lr=1.0))
        self.optimizer = StackedOptimizer(num_runs, num_entries, dtype=dtype, device=device)
        self.generators = [torch.Generator() for _ in range(num_runs)]
        self._sample = sample_positions(num_entries, ObservationSpec().num_entries)

    @abstractmethod
    def _start(self, row: int, seed: int) -> UpdateSettings:
        """Begin a run, whose generator is seeded: fill its parameters; returns its optimizer's."""

    def _take(self, row: int, model: nn.Module) -> None:
        """Let the run of this index begin with what this network holds."""
        trained = [value.flatten() for value in model.parameters() if value.requires_grad]
        self.parameters[row] = torch.cat(trained)
        for buffers, buffer in zip(self._buffers, model.buffers(), strict=True):
            buffers[row] = buffer

    @abstractmethod
    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The next inputs and targets, (rows, batch, ...) each, of the runs of these indices."""

    @abstractmethod
    def privileged_losses(self) -> Tensor:
        """Each run's privileged loss."""

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one run's batch, of shape ()."""
        return cross_entropies(outputs, targets).mean()

    def _lengths(self, inputs: Tensor) -> list[int] | list[None]:
        """Of each run's inputs, (rows, batch, length, ...), the length that it alone would see.

        None stands for all of it.
        """
        return [None] * len(inputs)

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
        self._buffers = [extend(buffer, num_runs) for buffer in self._buffers]
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
        if self._dropouts:
            generators = [self.generators[row] for row in rows.tolist()]
            streams = list(zip(generators, self._lengths(inputs), strict=True))
            for dropout in self._dropouts:
                dropout.streams = streams
        if len(rows) == self.num_runs:
            return self._mapped(parameters, self._buffers, inputs, targets, dim=0)
        buffers = [buffer[rows] for buffer in self._buffers]
        losses = self._mapped(parameters, buffers, inputs, targets, dim=0)
        for buffer, new in zip(self._buffers, buffers, strict=True):
            buffer[rows] = new
        return losses

    def _measured(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Losses (B,) on a batch that all runs share; nothing is dropped or kept."""
        with measuring(self._model):
            parameters = self._stacked(self.parameters)
            return self._mapped(parameters, self._buffers, inputs, targets, dim=None)

    def _mapped(
        self,
        parameters: list[Tensor],
        buffers: list[Tensor],
        inputs: Tensor,
        targets: Tensor,
        *,
        dim: int | None,
    ) -> Tensor:
        """Losses (rows,) on a batch of each run's own, or (dim=None) on one that all share.

        Buffers that the forward pass updates are updated in place.
        """

        def loss(values: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            named = dict(zip(self._names, values, strict=True))
            outputs = functional_call(self._model, named, (x,))
            return self._loss(outputs.to(self.parameters.dtype), y)

        mapped = vmap(loss, in_dims=(0, dim, dim))
        is_bfloat16 = self._precision == "bfloat16"
        autocast = torch.autocast(self.parameters.device.type, torch.bfloat16, enabled=is_bfloat16)
        # the CPU's flash attention is the one operation that cannot be mapped
        with autocast, sdpa_kernel(SDPBackend.MATH):
            losses: Tensor = mapped([*parameters, *buffers], inputs, targets)
        return losses

    def step(self, lrs: Tensor, active: Tensor) -> Tensor:
        """One step of the active runs; returns the losses before it, 0 for the other runs."""
        rows = active.nonzero().squeeze(1)
        everyone = len(rows) == self.num_runs
        weights = self.parameters if everyone else self.parameters[rows]
        leaves = [part.detach().requires_grad_() for part in self._stacked(weights)]
        with torch.enable_grad():
            losses = self._losses(rows, leaves, *self._next_batches(rows))
            stacked = torch.autograd.grad(losses.sum(), leaves)
            gradients = torch.cat([gradient.flatten(1) for gradient in stacked], dim=1)
        with torch.no_grad():
            gradients = self._clipped(rows, gradients)
            some = None if everyone else rows
            new = self.optimizer.step(weights, gradients, lrs[rows], some)
            if everyone:
                self.parameters, self._gradients = new, gradients
                return losses.detach()
            self.parameters[rows], self._gradients[rows] = new, gradients
            return losses.new_zeros(self.num_runs).index_copy(0, rows, losses.detach())

    def _clipped(self, rows: Tensor, gradients: Tensor) -> Tensor:
        """Gradients (rows, entries) of the runs of these indices, none too long."""
        if self._max_gradient_norm is None:
            return gradients
        return clip_norms(gradients, self._max_gradient_norm)

    def weights(self) -> Tensor:
        """Each run's parameters (or their sample), as a single run's observer sees them."""
        return self._read(self.parameters)

    def gradients(self) -> Tensor:
        """The last gradients of these entries."""
        return self._read(self._gradients)

    def _read(self, entries: Tensor) -> Tensor:
        picked = entries.clone() if self._sample is None else entries[:, self._sample]
        return picked.float()


class BatchedTaskRuns(BatchedNetworkRuns):
    """B networks of a `NetworkTask` in training as one computation.

    Args:
        task: what is trained.
        num_runs: B, at least 1.

    Raises:
        ValueError: as `BatchedNetworkRuns` does.
    """

    def __init__(self, task: NetworkTask, num_runs: int) -> None:
        super().__init__(
            task.make_model(0),
            optimizer=task.optimizer,
            num_runs=num_runs,
            device=task.device,
            max_gradient_norm=task.max_gradient_norm,
            precision=task.precision,
        )
        self._task = task

    def _start(self, row: int, seed: int) -> UpdateSettings:
        self._take(row, self._task.make_model(seed))
        return self._settings

    def privileged_losses(self) -> Tensor:
        """Losses on the `num_privileged` held-out examples."""
        return self._measured(*self._task.privileged_batch())

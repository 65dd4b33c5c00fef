"""Wide networks in the kernel regime, whose largest stable learning rate is known in advance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrpilot.state import state_fields
from lrpilot.tasks.data.images import load_image_data
from lrpilot.tasks.devices import DeviceTask
from lrpilot.tasks.networks.batch import BatchedNetworkRuns
from lrpilot.tasks.networks.stacked_optimizer import UpdateSettings
from lrpilot.tasks.runs import Closure, ClosureRun
from lrpilot.tasks.theory.linearized import (
    LinearizedModel,
    Model,
    check_plain,
    half_mean_square,
    stable_lr,
)

# the gain keeps the mean square of the layers' outputs
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (torch.relu, math.sqrt(2.0)),
    "linear": (lambda inputs: inputs, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class LazyTask(DeviceTask):
    """Tell odd digits from even ones by least squares, full batch, in NTK parametrization.

    With h_0 = x, phi the activation and c its gain, all entries of the W_l and of v drawn from
    N(0, 1), and the labels y_i = 1 (odd) or -1 (even)::

        h_l = phi(c W_l h_{l-1} / sqrt(width of h_{l-1})),   f(x) = v . h_depth / sqrt(width)
        L = 1/(2n) sum_i (f(x_i) - y_i)^2

    The wider the network, the closer it stays to the linearized model f(w_0) + J (w - w_0), J the
    Jacobian of the n outputs at the start. Under gradient descent, the residual of that model is
    multiplied by 1 - eta K / n in every step, with the tangent kernel K = J J^T: it converges for
    eta < 2 n / lambda_max(K) and diverges above. A finite network whose loss grows may still end in
    a flatter place (the catapult): with one hidden layer and no activation below 4 n / lambda_max.

    Args:
        width: units of a hidden layer.
        depth: hidden layers.
        activation: "relu" or "linear" (none).
        num_train: n, the first images of the training split.
        linearized: train the linearized model instead of the network.

    References:
        Jacot, Gabriel, Hongler. Neural tangent kernel: convergence and generalization in neural
        networks. 2018.
        Lee, Xiao, Schoenholz, Bahri, Novak, Sohl-Dickstein, Pennington. Wide neural networks of any
        depth evolve as linear models under gradient descent. 2019.
        Lewkowycz, Bahri, Dyer, Sohl-Dickstein, Gur-Ari. The large learning rate phase of deep
        learning: the catapult mechanism. 2020.
    """

    width: int = 1024
    depth: int = 1
    activation: str = "relu"
    num_train: int = 64
    linearized: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("width", "depth", "num_train")
        known = tuple(ACTIVATIONS)
        self._require("activation", self.activation in known, f"be one of {known}")

    def start(self, seed: int) -> "LazyRun":
        """A new network, of this seed's weights; all seeds have the same data."""
        return LazyRun(self, seed)

    def start_batch(self, num_runs: int) -> "BatchedLazyRuns":
        """B networks as one computation; see `BatchedLazyRuns`."""
        return BatchedLazyRuns(self, num_runs)

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Inputs (examples, pixels) and labels 1 (odd) or -1, in float64, on the device."""
        data = load_image_data("digits")
        images, labels = getattr(data, f"{name}_x"), getattr(data, f"{name}_y")
        if name == "train":
            is_met = self.num_train <= len(labels)
            self._require("num_train", is_met, f"be at most {len(labels)}")
            images, labels = images[: self.num_train], labels[: self.num_train]
        inputs, targets = images.flatten(1).double(), (labels % 2 * 2 - 1).double()
        return inputs.to(self.device), targets.to(self.device)

    def draw_weights(self, num_inputs: int, generator: torch.Generator) -> list[Tensor]:
        """The W_l, each transposed to (inputs, width), and v (width,): float64, on the device."""
        rows = [num_inputs, *[self.width] * (self.depth - 1)]
        shapes = [*((size, self.width) for size in rows), (self.width,)]
        drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        return [weight.to(self.device) for weight in drawn]

    def network(self, inputs: Tensor) -> Model:
        """The function of the weights that gives the outputs (n,) at inputs (n, dimension)."""
        activation, gain = ACTIVATIONS[self.activation]

        def outputs(weights: Sequence[Tensor]) -> Tensor:
            hidden = inputs
            for weight in weights[:-1]:
                hidden = activation(hidden @ weight * (gain / math.sqrt(weight.shape[0])))
            return hidden @ weights[-1] / math.sqrt(self.width)

        return outputs


class LazyRun(ClosureRun):
    """One descent of a network, or of its linearized model."""

    _state_fields = state_fields(**ClosureRun._state_fields, start="_start")

    def __init__(self, task: LazyTask, seed: int) -> None:
        self._inputs, self._targets = task.split("train")
        generator = torch.Generator().manual_seed(seed)
        weights = task.draw_weights(self._inputs.shape[1], generator)
        parameters = map(nn.Parameter, weights)
        super().__init__(parameters, optimizer=task.optimizer, lr=task.base_lr, generator=generator)
        self._task = task
        self._start_from(weights)

    def _start_from(self, weights: Sequence[Tensor]) -> None:
        self._start = [weight.detach().clone() for weight in weights]
        self._cap: float | None = None
        self._model = self._model_of(self._inputs)

    def _model_of(self, inputs: Tensor) -> Model:
        network = self._task.network(inputs)
        return LinearizedModel(network, self._start) if self._task.linearized else network

    def _draw_loss(self) -> Closure:
        return lambda: half_mean_square(self._model(self.parameters) - self._targets)

    @torch.no_grad()
    def residuals(self) -> Tensor:
        """f(x_i) - y_i at the training images, (n,)."""
        return self._model(self.parameters) - self._targets

    def tangent_kernel(self) -> Tensor:
        """K = J J^T at the training images, (n, n); of a linearized run, that of its start."""
        return self._kernel_at(self._start if self._task.linearized else self.parameters)

    def _kernel_at(self, weights: Sequence[Tensor]) -> Tensor:
        return LinearizedModel(self._task.network(self._inputs), weights).kernel()

    def cap(self) -> tuple[float, str]:
        """2 n / lambda_max of the tangent kernel at the start of the run.

        For the linearized model it is a certificate, "deterministic": no step up to it raises the
        loss, and above it the loss grows without end. For the network, whose kernel moves, it is
        an "estimate".

        Raises:
            ValueError: if the optimizer is not plain gradient descent.
        """
        if self._cap is None:
            check_plain(self.optimizer)
            self._cap = stable_lr(self._kernel_at(self._start))
        return self._cap, "deterministic" if self._task.linearized else "estimate"

    def privileged_loss(self) -> float:
        """L, on the training images: nothing in this task is noisy."""
        return float(half_mean_square(self.residuals()))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss, and share of the right signs, on the held-out and test splits."""
        metrics = {}
        for split in ("held_out", "test"):
            inputs, targets = self._task.split(split)
            outputs = self._model_of(inputs)(self.parameters)
            metrics[f"{split}_loss"] = float(half_mean_square(outputs - targets))
            metrics[f"{split}_accuracy"] = float((outputs * targets > 0).double().mean())
        return metrics

    def _derive(self) -> None:
        self._start_from(self._start)


class _Network(nn.Module):
    """The task's network as a module."""

    def __init__(self, task: LazyTask, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self._task = task

    def forward(self, inputs: Tensor) -> Tensor:
        return self._task.network(inputs)(list(self.weights))


class BatchedLazyRuns(BatchedNetworkRuns):
    """B networks of a `LazyTask` that is not linearized, all on the same images, full batch.

    Raises:
        ValueError: if the model is linearized, and as `BatchedNetworkRuns` does.
    """

    _state_fields = state_fields(**BatchedNetworkRuns._state_fields, starts="_starts")

    def __init__(self, task: LazyTask, num_runs: int) -> None:
        if task.linearized:
            raise ValueError("`linearized` of batched runs must be False, got True")
        self._inputs, self._targets = task.split("train")
        self._task = task
        model = self._draw(torch.Generator())
        self._optimizer = task.optimizer(model.parameters(), lr=1.0)
        super().__init__(model, optimizer=task.optimizer, num_runs=num_runs, device=task.device)
        self._starts = torch.zeros_like(self.parameters)
        self._caps = torch.full_like(self._starts[:, 0], torch.nan)

    def _draw(self, generator: torch.Generator) -> _Network:
        return _Network(self._task, self._task.draw_weights(self._inputs.shape[1], generator))

    def _start(self, row: int, seed: int) -> UpdateSettings:
        self._take(row, self._draw(self.generators[row]))
        self._starts[row] = self.parameters[row]
        self._caps[row] = torch.nan
        return self._settings

    def _next_batches(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = self._inputs, self._targets
        return inputs.expand(len(rows), *inputs.shape), targets.expand(len(rows), *targets.shape)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return half_mean_square(outputs - targets)

    def cap(self) -> tuple[Tensor, str]:
        """2 n / lambda_max of the tangent kernel at the start of each run, as in `LazyRun.cap`.

        Raises:
            ValueError: if the optimizer is not plain gradient descent.
        """
        check_plain(self._optimizer)
        network = self._task.network(self._inputs)
        for row in self._caps.isnan().nonzero().flatten().tolist():
            weights = [part[0] for part in self._stacked(self._starts[row : row + 1])]
            self._caps[row] = stable_lr(LinearizedModel(network, weights).kernel())
        return self._caps, "estimate"

    def privileged_losses(self) -> Tensor:
        """L, on the training images."""
        return self._measured(self._inputs, self._targets)

    def _derive(self) -> None:
        self._caps.fill_(torch.nan)

"""Tasks that train a network by minibatches: what all of them share."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lrpilot.tasks.devices import DeviceTask
from lrpilot.tasks.networks.randomness import RunDropout, seeded
from lrpilot.tasks.runs import Closure, ClosureRun

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class NetworkTask(DeviceTask):
    """Train a network by minibatches.

    Args:
        batch_size: examples per step.
        num_privileged: held-out examples in the privileged loss.
        max_gradient_norm: gradients of a larger norm (of all parameters together) are shortened
            to it before the step; None leaves them. A line search sees them as they were.
        precision: of the forward pass and its gradients: "float32" (the network's own), or
            "bfloat16" by autocast.
    """

    batch_size: int = 64
    num_privileged: int = 256
    max_gradient_norm: float | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("batch_size", "num_privileged")
        norm = self.max_gradient_norm
        self._require("max_gradient_norm", norm is None or norm > 0.0, "be positive")
        self._require("precision", self.precision in PRECISIONS, f"be one of {PRECISIONS}")

    @abstractmethod
    def make_model(self, seed: int) -> nn.Module:
        """The network of this seed, on the device; no global generator is touched."""

    @abstractmethod
    def privileged_batch(self) -> tuple[Tensor, Tensor]:
        """The `num_privileged` held-out inputs and targets of the privileged loss."""

    @property
    def draws_globally(self) -> bool:
        """Whether a forward pass in training draws from torch's global generators."""
        return False


class NetworkRun(ClosureRun):
    """One network in training; parameters that need no gradient stay as they are."""

    def __init__(self, task: NetworkTask, seed: int) -> None:
        self.model = task.make_model(seed)
        super().__init__(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            optimizer=task.optimizer,
            lr=task.base_lr,
            generator=torch.Generator().manual_seed(seed),
        )
        self._task = task
        self._label_shift = 0
        dropouts = [part for part in self.model.modules() if isinstance(part, RunDropout)]
        self._has_dropout = any(dropout.probability > 0.0 for dropout in dropouts)
        for dropout in dropouts:
            dropout.generator = self.generator

    @abstractmethod
    def _next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the next step, on the device."""

    @abstractmethod
    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch, of shape ()."""

    def _outputs(self, inputs: Tensor) -> Tensor:
        outputs = forward(self.model, inputs, self._task.precision)
        # the loss of class y + k at these logits is that of y at the logits moved back by k
        return outputs.roll(-self._label_shift, -1) if self._label_shift else outputs

    def scale_batch_size(self, factor: float) -> None:
        """Draw minibatches of another size from the next step on."""
        self._task = replace(self._task, batch_size=scaled_size(self._task.batch_size, factor))

    def shift_labels(self, shift: int) -> None:
        """Rename the classes of all data from the next step on."""
        self._label_shift += shift

    def _seeded(self, seed: int) -> AbstractContextManager[None]:
        return seeded(seed, self._task.device) if self._task.draws_globally else nullcontext()

    def _draw_loss(self) -> Closure:
        inputs, targets = self._next_batch()
        # all dropout comes from the run's generator, and is the same in every call of the closure
        seed = 0
        if self._task.draws_globally:
            seed = int(torch.randint(2**62, (), generator=self.generator))
        state = self.generator.get_state() if self._has_dropout else None

        def closure() -> Tensor:
            if state is not None:
                self.generator.set_state(state)
            with self._seeded(seed):
                return self._loss(inputs, targets)

        return closure

    def _set_gradients(self) -> Tensor:
        loss = super()._set_gradients()
        if self._task.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self._task.max_gradient_norm)
        return loss

    def privileged_loss(self) -> float:
        """Mean loss of `num_privileged` held-out examples, the same in all runs."""
        with measuring(self.model), self._seeded(0):
            return float(self._loss(*self._task.privileged_batch()))


def scaled_size(batch_size: int, factor: float) -> int:
    """`factor` times a batch size, rounded, and at least 1.

    >>> scaled_size(64, 1 / 8), scaled_size(4, 1 / 8)
    (8, 1)
    """
    return max(1, round(factor * batch_size))


def forward(model: nn.Module, inputs: Tensor, precision: str) -> Tensor:
    """The model's outputs, computed in this precision, in float32."""
    if precision == "float32":
        outputs: Tensor = model(inputs)
        return outputs
    with torch.autocast(inputs.device.type, torch.bfloat16):
        outputs = model(inputs)
    return outputs.float()


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """No gradient is kept, nothing is dropped, and batch normalization keeps its statistics."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode

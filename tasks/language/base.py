"""What the language tasks share: a transformer in training."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrpilot.tasks.networks.supervised import check_precision, forward
from lrpilot.tasks.runs import Closure, ClosureRun
from lrpilot.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class LanguageTask(Task):
    """Train a transformer on text; the loss is the mean cross-entropy, in nats.

    Args:
        batch_size: windows or sentences per step.
        num_layers: blocks of the transformer.
        num_heads: attention heads, a divisor of `width`.
        width: size of a token's representation.
        dropout: probability, drawn from the run's generator; on the embeddings and at the end of
            every branch, not on the attention weights.
        max_gradient_norm: gradients of a larger norm (of all parameters together) are shortened
            to it before the step; None leaves them. A line search sees them as they were.
        num_privileged: held-out windows or sentences in the privileged loss.
        data_dir: folder of the data files (default: environment variable `LRPILOT_DATA`).
        device: where model and data live.
        precision: of the forward pass and its gradients: "float32", or "bfloat16" by autocast.

    Raises:
        ValueError: if an argument is out of range.
        lrpilot.tasks.data.archives.DataError: by `start`, if the data is missing or unreadable.
    """

    batch_size: int = 12
    num_layers: int = 4
    num_heads: int = 4
    width: int = 128
    dropout: float = 0.0
    max_gradient_norm: float | None = None
    num_privileged: int = 32
    data_dir: str | None = None
    device: str = "cpu"
    precision: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "num_layers", "num_heads", "width", "num_privileged"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(
                f"`width` must be a multiple of `num_heads` = {self.num_heads}, got {self.width}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0.0:
            raise ValueError(f"`max_gradient_norm` must be positive, got {self.max_gradient_norm}")
        check_precision(self.precision)

    @abstractmethod
    def make_model(self, seed: int, generator: torch.Generator) -> nn.Module:
        """The network of this seed, on the device; no global generator is touched.

        Args:
            seed: of the initial weights.
            generator: where dropout is drawn.
        """


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it torch's global CPU generator is seeded; after it, it is as it was."""
    with torch.random.fork_rng(devices=[]):
        # unlike torch.manual_seed, this leaves the generators of GPUs alone
        torch.default_generator.manual_seed(seed)
        yield


class LanguageRun(ClosureRun):
    """One transformer in training; parameters that need no gradient stay as they are."""

    def __init__(self, task: LanguageTask, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = task.make_model(seed, generator)
        super().__init__(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            optimizer=task.optimizer,
            lr=task.base_lr,
            generator=generator,
        )
        self._precision = task.precision
        self._has_dropout = task.dropout > 0.0
        self._max_gradient_norm = task.max_gradient_norm

    @abstractmethod
    def _next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the next step, on the device."""

    @abstractmethod
    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, in nats."""

    def _logits(self, inputs: Tensor) -> Tensor:
        return forward(self.model, inputs, self._precision)

    def _draw_loss(self) -> Closure:
        inputs, targets = self._next_batch()
        drawn = self.generator.get_state() if self._has_dropout else None

        def closure() -> Tensor:
            if drawn is not None:
                # a line search compares losses under one mask
                self.generator.set_state(drawn)
            return self._loss(inputs, targets)

        return closure

    def _set_gradients(self) -> Tensor:
        loss = super()._set_gradients()
        if self._max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self._max_gradient_norm)
        return loss

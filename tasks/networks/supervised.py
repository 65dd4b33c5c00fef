"""What runs on labelled examples share: the order of an epoch, and how a network is measured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> None:
    """Refuse a name that is not in `PRECISIONS`.

    Raises:
        ValueError: if it is not.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"`precision` must be one of {PRECISIONS}, got {precision!r}")


def forward(model: nn.Module, inputs: Tensor, precision: str) -> Tensor:
    """The model's outputs, computed in this precision, in float32."""
    if precision == "float32":
        outputs: Tensor = model(inputs)
        return outputs
    with torch.autocast(inputs.device.type, torch.bfloat16):
        outputs = model(inputs)
    return outputs.float()


class EpochOrder:
    """Shuffles the examples anew for every epoch; an incomplete batch is dropped.

    Args:
        num_examples: how many there are.
        batch_size: at most as many.
        generator: the run's own.
    """

    def __init__(self, num_examples: int, batch_size: int, generator: torch.Generator) -> None:
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def next(self) -> Tensor:
        """Indices of the next minibatch, (batch_size,), on the CPU."""
        if self._position + self._batch_size > len(self._order):
            self._order = torch.randperm(self._num_examples, generator=self._generator)
            self._position = 0
        self._position += self._batch_size
        return self._order[self._position - self._batch_size : self._position]

    def state_dict(self) -> dict[str, Any]:
        """The order of the current epoch, and the place in it."""
        return {"order": self._order.clone(), "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._order = state["order"].clone()
        self._position = state["position"]


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


def loss_and_accuracy(
    logits: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor, *, batch_size: int
) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the share of examples that are classified correctly.

    Args:
        logits: maps a batch of inputs to (batch, classes).
        inputs: all of them.
        labels: (examples,).
        batch_size: of the forward passes.
    """
    loss = correct = 0.0
    for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
        outputs = logits(x)
        loss += float(functional.cross_entropy(outputs, y, reduction="sum"))
        correct += float((outputs.argmax(1) == y).sum())
    return loss / len(labels), correct / len(labels)


def split_metrics(
    data: Any, logits: Callable[[Tensor], Tensor], *, batch_size: int
) -> dict[str, float]:
    """Loss and accuracy on the whole held-out and test splits of `data`."""
    metrics = {}
    for split in ("held_out", "test"):
        inputs, labels = getattr(data, f"{split}_x"), getattr(data, f"{split}_y")
        loss, accuracy = loss_and_accuracy(logits, inputs, labels, batch_size=batch_size)
        metrics[f"{split}_loss"] = loss
        metrics[f"{split}_accuracy"] = accuracy
    return metrics

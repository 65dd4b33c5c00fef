"""How the actor of a policy file lies in torch's layers: one place that reads and writes them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lrpilot import Policy

Array = NDArray[np.float32]
Layer = tuple[Array, Array]


def shapes_of(policy: Policy) -> list[tuple[int, ...]]:
    """Shapes of an actor's weights, an LSTM's first."""
    lstm = [] if policy.lstm is None else [policy.lstm]
    return [weight.shape for weight, _ in [*lstm, *policy.layers]]


def read_actor(
    layers: Sequence[nn.Linear], lstm: nn.LSTM | None
) -> tuple[list[Layer], Layer | None]:
    """The layers and the LSTM as a `Policy` takes them."""
    memory = None
    if lstm is not None:
        input_weight, hidden_weight, input_bias, hidden_bias = lstm.parameters()
        weight = torch.cat((input_weight, hidden_weight), dim=1)
        memory = _arrays(weight, input_bias + hidden_bias)
    return [_arrays(layer.weight, layer.bias) for layer in layers], memory


@torch.no_grad()
def write_actor(policy: Policy, layers: Sequence[nn.Linear], lstm: nn.LSTM | None) -> None:
    """Copy a policy into layers, and an LSTM, of its shapes."""
    if lstm is not None and policy.lstm is not None:
        input_weight, hidden_weight, input_bias, hidden_bias = lstm.parameters()
        weight, bias = map(torch.tensor, policy.lstm)
        input_weight.copy_(weight[: lstm.input_size].T)
        hidden_weight.copy_(weight[lstm.input_size :].T)
        input_bias.copy_(bias)
        hidden_bias.zero_()
    for module, layer in zip(layers, policy.layers, strict=True):
        weight, bias = map(torch.tensor, layer)
        module.weight.copy_(weight.T)
        module.bias.copy_(bias)


def _arrays(weight: torch.Tensor, bias: torch.Tensor) -> Layer:
    return weight.detach().cpu().numpy().T, bias.detach().cpu().numpy()

"""The network that learns by imitation, and the policy that it becomes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lrpilot import ControlSettings, Policy


class Actor(nn.Module):
    """Layers with tanh units, after an LSTM cell if there is one.

    Args:
        num_features: n, of an observation.
        lstm_units: u, of the cell; 0 for none.
        hidden_sizes: units of the layers.
    """

    def __init__(self, num_features: int, *, lstm_units: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(num_features, lstm_units) if lstm_units else None
        sizes = [lstm_units or num_features, *hidden_sizes]
        pairs = pairwise(sizes)
        self.hidden = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairs)
        self.action = nn.Linear(sizes[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Actions (S, M) of M runs in their first S decisions, before they are clipped.

        Args:
            x: observations, (S, M, n).
        """
        if self.cell is not None:
            state, states = None, []
            for observations in x:
                state = self.cell(observations, state)
                states.append(state[0])
            x = torch.stack(states)
        for layer in self.hidden:
            x = layer(x).tanh()
        actions: Tensor = self.action(x).squeeze(-1)
        return actions

    def load(self, policy: Policy, settings: ControlSettings) -> None:
        """Take the weights of a policy.

        Raises:
            ValueError: if it sees or does something else than `settings` say, or has other shapes.
        """
        mine = self.policy(settings, {})
        for name, expected, given in (
            ("observation", mine.observation, policy.observation),
            ("action", mine.action, policy.action),
            ("shapes", _shapes(mine), _shapes(policy)),
        ):
            if expected != given:
                raise ValueError(f"`init_from` must have the {name} {expected}, got {given}")
        with torch.no_grad():
            for layer, arrays in zip((*self.hidden, self.action), policy.layers, strict=True):
                weight, bias = map(torch.tensor, arrays)
                layer.weight.copy_(weight.T)
                layer.bias.copy_(bias)
            if self.cell is not None and policy.lstm is not None:
                weight, bias = map(torch.tensor, policy.lstm)
                self.cell.weight_ih.copy_(weight[: self.cell.input_size].T)
                self.cell.weight_hh.copy_(weight[self.cell.input_size :].T)
                self.cell.bias_ih.copy_(bias)
                self.cell.bias_hh.zero_()

    def policy(self, settings: ControlSettings, card: dict[str, Any]) -> Policy:
        """The frozen policy that acts as this network does."""
        lstm = None
        if self.cell is not None:
            weight = torch.cat((self.cell.weight_ih, self.cell.weight_hh), dim=1).T
            bias = self.cell.bias_ih + self.cell.bias_hh
            lstm = weight.detach().numpy(), bias.detach().numpy()
        layers = [
            (layer.weight.detach().T.numpy(), layer.bias.detach().numpy())
            for layer in (*self.hidden, self.action)
        ]
        return Policy(
            layers, settings.observation, settings.action, settings.clock, card=card, lstm=lstm
        )


def _shapes(policy: Policy) -> list[tuple[int, ...]]:
    lstm = [] if policy.lstm is None else [policy.lstm]
    return [weight.shape for weight, _ in [*lstm, *policy.layers]]

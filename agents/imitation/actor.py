"""The network that learns by imitation, and the policy that it becomes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from lrpilot import ControlSettings, Policy
from lrpilot.agents.actor_arrays import read_actor, shapes_of, write_actor


class Actor(nn.Module):
    """Layers with tanh units, after an LSTM cell if there is one.

    Args:
        num_features: n, of an observation.
        lstm_units: u, of the cell; 0 for none.
        hidden_sizes: units of the layers.
    """

    def __init__(self, num_features: int, *, lstm_units: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.lstm = nn.LSTM(num_features, lstm_units) if lstm_units else None
        sizes = [lstm_units or num_features, *hidden_sizes, 1]
        self._layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
        self.layers = nn.ModuleList(self._layers)

    def forward(self, x: Tensor) -> Tensor:
        """Actions (S, M) of M runs in their first S decisions, before they are clipped.

        Args:
            x: observations, (S, M, n).
        """
        if self.lstm is not None:
            x, _ = self.lstm(x)
        *hidden, last = self._layers
        for layer in hidden:
            x = layer(x).tanh()
        actions: Tensor = last(x).squeeze(-1)
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
            ("shapes", shapes_of(mine), shapes_of(policy)),
        ):
            if expected != given:
                raise ValueError(f"`init_from` must have the {name} {expected}, got {given}")
        write_actor(policy, self._layers, self.lstm)

    def policy(self, settings: ControlSettings, card: dict[str, Any]) -> Policy:
        """The frozen policy that acts as this network does."""
        layers, lstm = read_actor(self._layers, self.lstm)
        return Policy(
            layers, settings.observation, settings.action, settings.clock, card=card, lstm=lstm
        )

"""From a Stable-Baselines3 actor to a frozen policy in plain arrays."""

import platform
from typing import Any

import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

import lrpilot
from lrpilot import ActionSpec, ClockSpec, ObservationSpec, Policy


def versions() -> dict[str, str]:
    """Versions of what trains a policy, for its card."""
    return {
        "lrpilot": lrpilot.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "stable_baselines3": stable_baselines3.__version__,
        "torch": torch.__version__,
    }


def export_policy(
    model: PPO,
    *,
    observation: ObservationSpec,
    action: ActionSpec,
    clock: ClockSpec,
    card: dict[str, Any],
) -> Policy:
    """The deterministic actor (the mean action) of a trained agent.

    Args:
        model: an agent with SB3's `MlpPolicy` and tanh units.
        observation: what its environment showed.
        action: what its actions did.
        clock: how often it decided.
        card: what it was trained on.

    Raises:
        ValueError: if the actor is not a multilayer perceptron with tanh units.
    """
    actor = model.policy
    if not isinstance(actor, ActorCriticPolicy) or actor.activation_fn is not nn.Tanh:
        raise ValueError(f"`model` must have an MlpPolicy with tanh units, got {actor}")
    modules = [*actor.mlp_extractor.policy_net, actor.action_net]
    layers = [
        (
            module.weight.detach().cpu().numpy().T.copy(order="C"),
            module.bias.detach().cpu().numpy().copy(),
        )
        for module in modules
        if isinstance(module, nn.Linear)
    ]
    return Policy(layers, observation, action, clock, card={**card, "versions": versions()})

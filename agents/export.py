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


def _linear_layers(model: PPO) -> list[nn.Linear]:
    actor = model.policy
    if not isinstance(actor, ActorCriticPolicy) or actor.activation_fn is not nn.Tanh:
        raise ValueError(f"`model` must have an MlpPolicy with tanh units, got {actor}")
    modules = [*actor.mlp_extractor.policy_net, actor.action_net]
    return [module for module in modules if isinstance(module, nn.Linear)]


def import_policy(
    model: PPO, policy: Policy, *, observation: ObservationSpec, action: ActionSpec
) -> None:
    """Give an agent the actor of a policy, so that its training goes on from there.

    The critic, and the spread of the actions, stay as they are.

    Args:
        model: a new agent with SB3's `MlpPolicy` and tanh units.
        policy: what to start from.
        observation: what the agent's environment shows.
        action: what its actions do.

    Raises:
        ValueError: if the policy observes or does something else, or has other layers.
    """
    for name, mine, given in (
        ("observation", observation, policy.observation),
        ("action", action, policy.action),
    ):
        if mine != given:
            raise ValueError(f"`init_from` must have the {name} {mine}, got {given}")
    modules = _linear_layers(model)
    expected = [tuple(module.weight.shape[::-1]) for module in modules]
    shapes = [weight.shape for weight, _ in policy.layers]
    if expected != shapes or policy.output != "clip":
        raise ValueError(
            f"`init_from` must have layers {expected} and output 'clip', got {shapes}, "
            f"{policy.output!r}"
        )
    with torch.no_grad():
        for module, (weight, bias) in zip(modules, policy.layers, strict=True):
            module.weight.copy_(torch.from_numpy(weight.T.copy()))
            module.bias.copy_(torch.from_numpy(bias.copy()))


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
    layers = [
        (
            module.weight.detach().cpu().numpy().T.copy(order="C"),
            module.bias.detach().cpu().numpy().copy(),
        )
        for module in _linear_layers(model)
    ]
    return Policy(layers, observation, action, clock, card={**card, "versions": versions()})

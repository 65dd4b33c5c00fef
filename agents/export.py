"""From a Stable-Baselines3 actor to a frozen policy in plain arrays."""

import platform
from typing import Any

import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import SAC
from torch import nn

import lrpilot
from lrpilot import ActionSpec, ClockSpec, ObservationSpec, Policy
from lrpilot.agents.actor_arrays import read_actor, shapes_of, write_actor
from lrpilot.agents.algorithms import Agent


def versions() -> dict[str, str]:
    """Versions of what trains a policy, for its card."""
    return {
        "lrpilot": lrpilot.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "sb3_contrib": sb3_contrib.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "torch": torch.__version__,
    }


def _linear_layers(model: Agent) -> list[nn.Linear]:
    if isinstance(model, SAC):
        modules = [*model.actor.latent_pi, model.actor.mu]
    else:
        modules = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    kinds = [type(module) for module in modules]
    if kinds != [nn.Linear, nn.Tanh] * (len(kinds) // 2) + [nn.Linear]:
        raise ValueError(f"`model` must have an actor of layers with tanh units, got {modules}")
    return [module for module in modules if isinstance(module, nn.Linear)]


def _lstm(model: Agent) -> nn.LSTM | None:
    if not isinstance(model, RecurrentPPO):
        return None
    lstm = model.policy.lstm_actor
    assert isinstance(lstm, nn.LSTM)
    if lstm.num_layers != 1 or lstm.proj_size or not lstm.bias:
        raise ValueError(f"`model` must have an LSTM of one plain layer, got {lstm}")
    return lstm


def _output(model: Agent) -> str:
    return "tanh" if model.policy.squash_output else "clip"


def import_policy(
    model: Agent, policy: Policy, *, observation: ObservationSpec, action: ActionSpec
) -> None:
    """Give an agent the actor of a policy, so that its training goes on from there.

    The critic, and the spread of the actions, stay as they are.

    Args:
        model: a new agent whose actor has tanh units.
        policy: what to start from; its actor must have the same shapes and output.
        observation: what the agent's environment shows.
        action: what its actions do.

    Raises:
        ValueError: if the policy observes or does something else, or has another actor.
    """
    mine = export_policy(model, observation=observation, action=action, clock=policy.clock, card={})
    for name, expected, given in (
        ("observation", mine.observation, policy.observation),
        ("action", mine.action, policy.action),
        ("output", mine.output, policy.output),
        ("weights (an LSTM's first) of shapes", shapes_of(mine), shapes_of(policy)),
    ):
        if expected != given:
            raise ValueError(f"`init_from` must have the {name} {expected}, got {given}")
    write_actor(policy, _linear_layers(model), _lstm(model))


def export_policy(
    model: Agent,
    *,
    observation: ObservationSpec,
    action: ActionSpec,
    clock: ClockSpec,
    card: dict[str, Any],
) -> Policy:
    """The deterministic actor (the mean action) of a trained agent.

    Args:
        model: an agent whose actor has tanh units, after one LSTM layer if it is recurrent.
        observation: what its environment showed.
        action: what its actions did.
        clock: how often it decided.
        card: what it was trained on.

    Raises:
        ValueError: if the actor is of another kind.
    """
    layers, memory = read_actor(_linear_layers(model), _lstm(model))
    return Policy(
        layers,
        observation,
        action,
        clock,
        output=_output(model),
        card={**card, "versions": versions()},
        lstm=memory,
    )

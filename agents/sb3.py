"""The state of a Stable-Baselines3 agent: all that reaches for private names of SB3."""

import copy
from typing import Any

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import SAC
from torch import Tensor

from lrpilot.agents.algorithms import Agent

_COUNTERS = ("num_timesteps", "_episode_num", "_n_updates", "_current_progress_remaining")


def trained_state(model: Agent) -> dict[str, Any]:
    """Parameters and optimizers of an agent, copied."""
    state: dict[str, Any] = {"parameters": copy.deepcopy(model.get_parameters())}
    if isinstance(model, SAC) and model.log_ent_coef is not None:
        state["log_ent_coef"] = model.log_ent_coef.detach().clone()
    return state


def load_trained_state(model: Agent, state: dict[str, Any]) -> None:
    """Go back to what `trained_state()` gave."""
    model.set_parameters(state["parameters"], device="cpu")
    if isinstance(model, SAC) and model.log_ent_coef is not None:
        with torch.no_grad():
            model.log_ent_coef.copy_(state["log_ent_coef"])


def agent_state(model: Agent) -> dict[str, Any]:
    """What training has made of an agent between two rollouts, in plain values and copied tensors.

    SAC adds the filled part of its replay buffer: per env step 8 x features + 16 bytes, 2.2 MB in
    20,000 env steps of 12 features. Action noise that remembers (Ornstein-Uhlenbeck) is not kept:
    SB3 resets it when training goes on.
    """
    state: dict[str, Any] = {
        **trained_state(model),
        "counters": {name: getattr(model, name) for name in _COUNTERS},
        "last_observations": torch.tensor(np.asarray(model._last_obs)),
        "last_episode_starts": torch.tensor(np.asarray(model._last_episode_starts)),
    }
    if isinstance(model, RecurrentPPO):
        hidden: Any = model._last_lstm_states
        state["hidden"] = {
            name: [tensor.clone() for tensor in tensors]
            for name, tensors in hidden._asdict().items()
        }
    if isinstance(model, SAC):
        state["replay_buffer"] = _replay_buffer_state(model)
    return state


def load_agent_state(model: Agent, state: dict[str, Any]) -> None:
    """Continue from `agent_state()` of an agent built with the same arguments."""
    load_trained_state(model, state)
    for name in _COUNTERS:
        setattr(model, name, state["counters"][name])
    # with these, `learn` does not reset the environments
    model._last_obs = state["last_observations"].numpy()
    model._last_episode_starts = state["last_episode_starts"].numpy()
    if isinstance(model, RecurrentPPO):
        hidden: Any = RNNStates(**{name: tuple(t) for name, t in state["hidden"].items()})
        model._last_lstm_states = hidden
    if isinstance(model, SAC):
        _load_replay_buffer(model, state["replay_buffer"])


def _replay_buffer_state(model: SAC) -> dict[str, Any]:
    buffer = model.replay_buffer
    assert buffer is not None
    filled = buffer.size()
    arrays = {k: array for k, array in vars(buffer).items() if isinstance(array, np.ndarray)}
    return {
        "pos": buffer.pos,
        "full": buffer.full,
        "arrays": {name: torch.tensor(array[:filled]) for name, array in arrays.items()},
    }


def _load_replay_buffer(model: SAC, state: dict[str, Any]) -> None:
    buffer = model.replay_buffer
    assert buffer is not None
    arrays: dict[str, Tensor] = state["arrays"]
    buffer.pos, buffer.full = state["pos"], state["full"]
    for name, array in arrays.items():
        getattr(buffer, name)[: len(array)] = array.numpy()

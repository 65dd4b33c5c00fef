"""Snapshot: a model and its optimizer, put back when a training goes wrong."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Snapshot:
    """One copy of a model (parameters and buffers) and of an optimizer's state, on their devices.

    Its memory: the parameters and the buffers, and as much again as the optimizer keeps (SGD
    nothing, with momentum the parameters once, Adam twice). What an optimizer keeps in its
    parameter groups (learning rate, momentum) is not part of it.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> snapshot = Snapshot(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    >>> before = float(layer.weight.detach())
    >>> _ = nn.init.constant_(layer.weight, 7.0)
    >>> snapshot.restore()
    >>> float(layer.weight.detach()) == before
    True
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._tensors: list[Tensor] = []
        self._states: list[dict[str, Any]] = []
        self._copy()

    def _live(self) -> tuple[list[Tensor], list[Tensor]]:
        """All tensors of the model and the optimizer, and those of the optimizer alone."""
        own = [p for group in self._optimizer.param_groups for p in group["params"]]
        everything = [*self._model.parameters(), *self._model.buffers(), *own]
        return list({id(tensor): tensor for tensor in everything}.values()), own

    @torch.no_grad()
    def _copy(self) -> None:
        tensors, own = self._live()
        olds: list[Any] = self._tensors or [None] * len(tensors)
        self._tensors = [_copied(live, old) for live, old in zip(tensors, olds, strict=True)]
        states: list[dict[str, Any]] = self._states or [{} for _ in own]
        self._states = [
            {
                name: _copied(v, old.get(name))
                for name, v in self._optimizer.state.get(p, {}).items()
            }
            for p, old in zip(own, states, strict=True)
        ]

    def take(self) -> bool:
        """Replace the copy, unless a value is not finite; returns whether it was replaced."""
        tensors, own = self._live()
        states = [v for p in own for v in self._optimizer.state.get(p, {}).values()]
        values = [v for v in (*tensors, *states) if isinstance(v, Tensor)]
        if not all(bool(value.isfinite().all()) for value in values):
            return False
        self._copy()
        return True

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copy back, in place."""
        tensors, own = self._live()
        for live, saved in zip(tensors, self._tensors, strict=True):
            live.copy_(saved)
        for parameter, state in zip(own, self._states, strict=True):
            live_state = self._optimizer.state.pop(parameter, {})
            if state:
                self._optimizer.state[parameter] = {
                    name: _copied(saved, live_state.get(name)) for name, saved in state.items()
                }

    def state_dict(self) -> dict[str, Any]:
        """The copy, copied (loads with `weights_only=True`)."""
        return copy.deepcopy({"tensors": self._tensors, "states": self._states})

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError unless the state is of a model of the same shapes."""
        mine, theirs = ([tuple(t.shape) for t in ts] for ts in (self._tensors, state["tensors"]))
        if mine != theirs:
            raise ValueError(
                f"`state_dict` must have a snapshot of tensors of shapes {mine}, got {theirs}"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hold the copy of a `state_dict()`."""
        with torch.no_grad():
            for mine, saved in zip(self._tensors, state_dict["tensors"], strict=True):
                mine.copy_(saved)
        self._states = copy.deepcopy(state_dict["states"])


def _copied(value: Any, old: Any) -> Any:
    """A copy of a value, in the memory of an old tensor where there is one."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if isinstance(old, Tensor) and old.shape == value.shape and old.dtype == value.dtype:
        return old.copy_(value)
    return value.detach().clone()

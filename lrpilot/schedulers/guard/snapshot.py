"""Snapshot: a model and its optimizer, put back when a training goes wrong."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer


class Snapshot:
    """One copy of a model (parameters and buffers) and of an optimizer's state, on their devices.

    Tensors are held by name, and those that are there at the time: what a first forward pass
    creates (buffers, the parameters of lazy modules) is held from the next `take` or
    `take_missing` on. Frozen parameters of the model are left out. With an optimizer that wraps
    another (as SAM does) the state of the inner one is held, too; what else a wrapper keeps is not.

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
        self._optimizers = list(_with_inner(optimizer))
        self._tensors: dict[str, Tensor] = {}
        self._states: list[dict[str, dict[str, Any]]] = [{} for _ in self._optimizers]
        self._copy()

    def _live(self) -> dict[str, Tensor]:
        """All tensors that a training changes, by name; a shared one has one name."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        trained = {id(p) for group in groups for p in group["params"]}
        named = {
            **{
                f"model.{name}": p
                for name, p in self._model.named_parameters()
                if p.requires_grad or id(p) in trained
            },
            **{f"model.{name}": buffer for name, buffer in self._model.named_buffers()},
        }
        known = {id(tensor) for tensor in named.values()}
        for k, group in enumerate(groups):
            for i, p in enumerate(group["params"]):
                if id(p) not in known:
                    named[f"group.{k}.{i}"] = p
                    known.add(id(p))
        return {name: tensor for name, tensor in named.items() if not is_lazy(tensor)}

    @torch.no_grad()
    def _copy(self) -> None:
        live = self._live()
        self._tensors = {n: _copied(tensor, self._tensors.get(n)) for n, tensor in live.items()}
        self._states = [
            {
                name: {k: _copied(v, old.get(name, {}).get(k)) for k, v in state.items()}
                for name, tensor in live.items()
                if (state := optimizer.state.get(tensor))
            }
            for optimizer, old in zip(self._optimizers, self._states, strict=True)
        ]

    def take(self) -> bool:
        """Replace the copy, unless a value is not finite; returns whether it was replaced."""
        live = self._live().values()
        states = [optimizer.state.get(t, {}) for optimizer in self._optimizers for t in live]
        values = [*live, *(value for state in states for value in state.values())]
        if not all(_is_finite(value) for value in values):
            return False
        self._copy()
        return True

    @torch.no_grad()
    def take_missing(self) -> None:
        """Copy the tensors that have appeared since the last copy, and are finite."""
        for name, tensor in self._live().items():
            if name not in self._tensors and _is_finite(tensor):
                self._tensors[name] = _copied(tensor, None)

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copy back, in place, where there still is such a tensor."""
        for name, tensor in self._live().items():
            saved = self._tensors.get(name)
            if saved is None or saved.shape != tensor.shape:
                continue
            tensor.copy_(saved)
            for optimizer, states in zip(self._optimizers, self._states, strict=True):
                old = optimizer.state.pop(tensor, {})
                if state := states.get(name):
                    optimizer.state[tensor] = {k: _copied(v, old.get(k)) for k, v in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """The copy itself (loads with `weights_only=True`)."""
        return {"tensors": self._tensors, "states": self._states}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError unless the state has all tensors of this model, in their shapes."""
        theirs = {name: tuple(tensor.shape) for name, tensor in state["tensors"].items()}
        for name, tensor in self._tensors.items():
            if theirs.get(name) != tuple(tensor.shape):
                raise ValueError(
                    f"`state_dict` must have a snapshot with {name!r} of shape "
                    f"{tuple(tensor.shape)}, got {theirs.get(name, 'none')}"
                )

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hold the copy of a `state_dict()`."""
        for name, saved in state_dict["tensors"].items():
            self._tensors[name] = _copied(saved, self._tensors.get(name))
        self._states = state_dict["states"]


def _with_inner(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizer and those that it wraps."""
    yield optimizer
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer):
            yield from _with_inner(value)


def _is_finite(value: Any) -> bool:
    """Whether a value has no NaN or infinity; one that is no tensor of floats has none."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return True
    # torch tells it for no float of 8 bits
    return bool((value.float() if value.element_size() == 1 else value).isfinite().all())


def _copied(value: Any, old: Any) -> Any:
    """A copy of a value, in the memory of an old tensor where there is one."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if isinstance(old, Tensor) and old.shape == value.shape and old.dtype == value.dtype:
        return old.copy_(value)
    return value.detach().clone()

"""States: named fields that continue a run, apart from the attributes that hold them."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor


def state_fields(*names: str, **attributes: str) -> Mapping[str, str]:
    """The attribute of every field of a state.

    Args:
        names: fields that are held in attributes of the same name.
        attributes: the attribute of every other field.

    >>> state_fields("factor", num_calls="_count")
    {'factor': 'factor', 'num_calls': '_count'}
    """
    return {**{name: name for name in names}, **attributes}


def read_fields(owner: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    """Copies of attributes under the names of fields; of what has a state, that one.

    Args:
        owner: the object with the attributes.
        fields: the attribute by the name of its field.
    """
    return {field: _copied(getattr(owner, attribute)) for field, attribute in fields.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return copy.deepcopy(value.state_dict() if hasattr(value, "state_dict") else value)


def write_fields(owner: Any, fields: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Set attributes to copies of what `read_fields` has read.

    What has a state takes it, and tensors in a list are filled, as others may hold them, too.
    """
    for field, attribute in fields.items():
        value, own = state[field], getattr(owner, attribute)
        is_list = isinstance(own, list)
        parts, values = (own, value) if is_list else ([own], [value])
        if parts and (_has_state(parts[0]) or (is_list and isinstance(parts[0], Tensor))):
            for part, part_value in zip(parts, values, strict=True):
                _fill(part, part_value)
        else:
            copied = _copied(value)
            setattr(owner, attribute, copied.to(own.device) if isinstance(own, Tensor) else copied)


def _has_state(value: Any) -> bool:
    return isinstance(value, torch.Generator) or hasattr(value, "load_state_dict")


@torch.no_grad()
def _fill(own: Any, value: Any) -> None:
    if isinstance(own, Tensor):
        own.copy_(value)
    elif isinstance(own, torch.Generator):
        own.set_state(value)
    else:
        own.load_state_dict(copy.deepcopy(value))


class Stateful:
    """An object whose state is plain: `_state_fields` says what continues it.

    >>> class Counter(Stateful):
    ...     _state_fields = state_fields(num_calls="_count")
    ...     _count = 3
    >>> Counter().state_dict()
    {'num_calls': 3}
    """

    _state_fields: ClassVar[Mapping[str, str]] = state_fields()

    def state_dict(self) -> dict[str, Any]:
        """The state in plain values and copied tensors (loads with `weights_only=True`)."""
        return read_fields(self, self._state_fields)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        write_fields(self, self._state_fields, state)
        self._derive()

    def _derive(self) -> None:
        """Compute anew what follows from the fields of a state that was loaded."""

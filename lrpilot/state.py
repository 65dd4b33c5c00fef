"""States: named fields that continue a run, apart from the attributes that hold them."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar


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
    """Copies of attributes under the names of fields; of those with a `state_dict`, that one.

    Args:
        owner: the object with the attributes.
        fields: the attribute by the name of its field.
    """
    values = {field: getattr(owner, attribute) for field, attribute in fields.items()}
    return {
        field: copy.deepcopy(value.state_dict() if hasattr(value, "state_dict") else value)
        for field, value in values.items()
    }


def write_fields(owner: Any, fields: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Set attributes to copies of what `read_fields` has read."""
    for field, attribute in fields.items():
        value, own = copy.deepcopy(state[field]), getattr(owner, attribute)
        if hasattr(own, "load_state_dict"):
            own.load_state_dict(value)
        else:
            setattr(owner, attribute, value)


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

"""What a run is made of, in plain values that are the same in every process.

A finished run is found again by its identity: task, method, initial learning rate, seed and steps.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch

from lrpilot import Policy

# where data lie says nothing about them
_UNREAD = ("data_dir",)


def fingerprint(value: object) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `describe(value)`."""
    text = json.dumps(describe(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe(value: Any) -> Any:
    """Plain values that are equal where, and only where, two objects are made alike.

    Dataclasses, `functools.partial` and other objects are described by their class and what they
    hold; functions of this package by their name, since the commit tells the rest, and others by
    their code, defaults and closure, too; arrays and policies by a hash of their content.

    >>> describe(functools.partial(max, 1, key=abs))
    {'partial': 'builtins.max', 'args': [1], 'keywords': {'key': 'builtins.abs'}}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Policy):
        return {"policy": value.fingerprint}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        array = np.ascontiguousarray(torch.as_tensor(value).detach().cpu().numpy())
        content = hashlib.sha256(array.tobytes()).hexdigest()
        return {"array": content, "shape": list(array.shape), "dtype": str(array.dtype)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [describe(item) for item in value]
    if isinstance(value, functools.partial):
        return {
            "partial": describe(value.func),
            "args": describe(value.args),
            "keywords": describe(value.keywords),
        }
    if isinstance(value, type | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, MethodType):
        return {"method": describe(value.__func__), "of": describe(value.__self__)}
    if isinstance(value, FunctionType):
        return _describe_function(value)
    kind = describe(type(value))
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name not in _UNREAD]
        return {"class": kind, **{name: describe(getattr(value, name)) for name in names}}
    return {"class": kind, "state": describe(getattr(value, "__dict__", repr(value)))}


def _describe_function(function: FunctionType) -> Any:
    name = f"{function.__module__}.{function.__qualname__}"
    is_fixed = "<" not in function.__qualname__
    if is_fixed and function.__module__.split(".")[0] == "lrpilot":
        return name
    return {
        "function": name,
        "code": _describe_code(function.__code__),
        "defaults": describe(function.__defaults__),
        "keyword defaults": describe(function.__kwdefaults__),
        "closure": [describe(cell.cell_contents) for cell in function.__closure__ or ()],
    }


def _describe_code(code: CodeType) -> list[Any]:
    return [
        code.co_code.hex(),
        list(code.co_names),
        [_describe_constant(value) for value in code.co_consts],
    ]


def _describe_constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _describe_code(value)
    # the order of a set is another one in every process
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)

"""A device that is not the CPU, where there is none: it computes on the CPU, and says otherwise.

Its tensors refuse what those of a GPU refuse: to be combined with tensors of the CPU (but numbers
and indices), to be filled from a generator of the CPU, and to be read as an array. torch sees it as
the accelerator of this process, so that a process that has it needs to be one of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "second"
_INDEXING = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")


class Remote(Tensor):
    """A tensor of the second device, around one of the CPU."""

    local: Tensor

    @staticmethod
    def __new__(cls, local: Tensor) -> "Remote":
        """Around this one."""
        remote: Remote = Tensor._make_wrapper_subclass(
            cls,
            local.size(),
            strides=local.stride(),
            storage_offset=local.storage_offset(),
            dtype=local.dtype,
            device=torch.device(NAME, 0),
        )
        remote.local = local
        return remote

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute on the CPU what a GPU would compute."""
        given = dict(kwargs or {})
        name = func.overloadpacket.__name__
        moves = name in ("copy_", "_to_copy")
        for x in tree_leaves((args, given)):
            if isinstance(x, torch.Generator):
                raise RuntimeError(f"{func} has a generator of the CPU")
            is_index = name in _INDEXING and isinstance(x, Tensor) and not x.is_floating_point()
            is_local = isinstance(x, Tensor) and not isinstance(x, Remote) and x.dim() > 0
            if is_local and not is_index and not moves:
                raise RuntimeError(f"{func} has tensors of two devices")
        stays = _is_second(given["device"]) if given.get("device") is not None else True
        if "device" in given:
            given["device"] = torch.device("cpu")
        local_args, local_given = tree_map(_local, (args, given))
        found = func(*local_args, **local_given)
        if name == "copy_" and not isinstance(args[0], Remote):
            return args[0]
        if not stays:
            return found.clone()
        wrapped = tree_map(lambda x: Remote(x) if isinstance(x, Tensor) else x, found)
        return return_and_correct_aliasing(func, args, given, wrapped)


def _local(value: Any) -> Any:
    return value.local if isinstance(value, Remote) else value


def _is_second(device: Any) -> bool:
    return torch.device(device).type == NAME


# for what torch's own functions make within
_LIBRARY = torch.library.Library("aten", "IMPL")


def _made(name: str, *args: Any, **given: Any) -> Remote:
    packet, overload = name.split(".") if "." in name else (name, "default")
    make = getattr(getattr(torch.ops.aten, packet), overload)
    return Remote(make(*args, **{**given, "device": torch.device("cpu")}))


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _local(target).copy_(_local(source))
    return target


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return Remote(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.cpu()


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Makes(TorchFunctionMode):
    """Makes, and moves, tensors where a function of torch is given the second device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], Remote):
            return args[0].local.tolist()
        asked = [x for x in (*args, given.get("device")) if isinstance(x, str | torch.device)]
        if func is Tensor.to:
            asked += [x.device for x in args[1:] if isinstance(x, Tensor)]
        is_made = any(_is_second(x) for x in asked if not isinstance(x, str) or x.startswith(NAME))
        # `_parse_to` reads the arguments of `module.to`
        is_there = func in (torch._C._nn._parse_to, torch.device) or (
            args and isinstance(args[0], Remote)
        )
        if not is_made or is_there:
            return func(*args, **given)
        if "device" in given:
            given["device"] = "cpu"
        local = func(*(self._on_cpu(x, i) for i, x in enumerate(args)), **given)
        return _Send.apply(local)  # type: ignore[no-untyped-call]

    @staticmethod
    def _on_cpu(x: Any, place: int) -> Any:
        if place and isinstance(x, Remote):  # of `tensor.to(other)`
            return x.local
        return "cpu" if isinstance(x, str | torch.device) and _is_second(x) else x


def register() -> None:
    """From now on torch has this accelerator; to be called before the first gradient."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    for name in ("empty.memory_format", "empty_strided"):
        _LIBRARY.impl(name, partial(_made, name), "PrivateUse1")
    _LIBRARY.impl("_copy_from", _copied, "PrivateUse1")


@contextmanager
def second_device() -> Iterator[None]:
    """Within it torch's functions make tensors of the device."""
    with _Makes():
        yield

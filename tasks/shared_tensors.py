"""Tensors in a file that is mapped into memory, so that all processes share one copy of them."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lrpilot.files import write_whole
from tasks.files import cache_folder, one_at_a_time


def share_tensors(
    name: str, make: Callable[[], dict[str, Tensor]], *, source: str | None
) -> dict[str, Tensor]:
    """The tensors of a file in the cache; where it is missing, it is made and written first.

    The file is mapped, not read: what a process touches lies in memory once for all processes,
    can be dropped under memory pressure, and is there at once when a process starts. Whoever
    writes into a tensor gets a private copy of what it wrote to. Of processes that start at once,
    one makes the file and the others wait for it. Where the cache is full or read-only, each
    process has its own copy.

    Args:
        name: of the file, without its suffix.
        make: makes the tensors.
        source: what they are made from; a file that was made from something else is replaced.
            None makes them without a file.
    """
    if source is None:
        return make()
    path = cache_folder() / "tensors" / f"{name}.safetensors"
    mapped = _map(path, source)
    if mapped is not None:
        return mapped
    with one_at_a_time(path):
        mapped = _map(path, source)
        if mapped is not None:
            return mapped
        tensors = make()
        try:
            write_whole(path, save(tensors, metadata={"source": source}))
        except OSError:
            return tensors
        return _map(path, source) or tensors


def _map(path: Path, source: str) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"source": source}:
                return None
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError):
        return None

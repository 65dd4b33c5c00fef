"""Tensors in a file that is mapped into memory, so that all processes share one copy of them."""

import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lrpilot.files import remove_leftovers, write_whole

SECONDS_BEFORE_NOTICE = 5
# making the dearest file, a pretrained network, takes a few minutes
SECONDS_BEFORE_GOING_ON = 600

logger = logging.getLogger(__name__)


def share_tensors(
    path: Path, make: Callable[[], dict[str, Tensor]], *, source: str | None
) -> dict[str, Tensor]:
    """The tensors of a file in the cache; where it is missing, it is made and written first.

    The file is mapped, not read: what a process touches lies in memory once for all processes,
    can be dropped under memory pressure, and is there at once when a process starts. Whoever
    writes into a tensor gets a private copy of what it wrote to. Of processes that start at once,
    one makes the file and the others wait for it (see `one_at_a_time`). Where the cache is full
    or read-only, each process has its own copy.

    The file is believed only if a checksum over its tensors is the one that was taken when they
    were made, which takes half a second per gigabyte; a damaged file is made anew, with a warning.

    Args:
        path: of the file.
        make: makes the tensors.
        source: what they are made from; a file that was made from something else is replaced.
            None makes them without a file.
    """
    if source is None:
        return make()
    remove_leftovers(path.parent)
    mapped, _ = _map(path, source)
    if mapped is not None:
        return mapped
    with one_at_a_time(path) as may_write:
        mapped, damage = _map(path, source)
        if mapped is not None:
            return mapped
        if damage:
            logger.warning("%s is damaged and is made anew: %s", path, damage)
        tensors = make()
        if not may_write:
            return tensors
        try:
            metadata = {"source": source, "checksum": _checksum(tensors)}
            write_whole(path, save(tensors, metadata=metadata))
        except OSError as error:
            logger.warning("%s cannot be kept: %s", path, error)
            return tensors
        mapped, _ = _map(path, source)
        return mapped or tensors


def _map(path: Path, source: str) -> tuple[dict[str, Tensor] | None, str]:
    """The tensors of a file that was made from this source, else what is wrong with the file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("source") != source:
                return None, ""
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        return None, ""
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        return None, f"{type(error).__name__}: {error}"
    if metadata.get("checksum") != _checksum(tensors):
        return None, "its tensors are not those that were written"
    return tensors, ""


def _checksum(tensors: dict[str, Tensor]) -> str:
    """A CRC-32 over names, types, shapes and contents, the cheapest that finds what disks do."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        value = zlib.crc32(header.encode(), value)
        value = zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


@contextmanager
def one_at_a_time(path: Path) -> Iterator[bool]:
    """Wait until no other process is making this file, which then may be there.

    After five seconds a warning says what is waited for. Whoever has waited for ten minutes goes
    on as if there were no cache.

    Yields:
        Whether this process may write the file: not after waiting in vain, and not where the
        folder cannot be written.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, path)
    except (OSError, NotImplementedError) as error:  # full, read-only, or without locks
        logger.warning("going on without the cache folder %s: %s", path.parent, error)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path) -> None:
    try:
        lock.acquire(timeout=SECONDS_BEFORE_NOTICE)
    except Timeout:
        logger.warning(
            "waiting for another process that makes %s and holds %s; after %d seconds this one "
            "goes on without the cache",
            *(path, lock.lock_file, SECONDS_BEFORE_GOING_ON),
        )
        try:
            lock.acquire(timeout=SECONDS_BEFORE_GOING_ON - SECONDS_BEFORE_NOTICE)
        except Timeout:
            logger.warning(
                "%s has been held for %d seconds: going on without the cache. End the process "
                "that holds it, if it hangs",
                *(lock.lock_file, SECONDS_BEFORE_GOING_ON),
            )

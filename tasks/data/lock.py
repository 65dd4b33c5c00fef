"""A lock, so that a file of the cache is made by one process at a time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

SECONDS_BEFORE_NOTICE = 5
# making the dearest file, a pretrained network, takes a few minutes
SECONDS_BEFORE_GOING_ON = 600

logger = logging.getLogger(__name__)


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
    is_mine = _acquire(lock, path)
    try:
        yield is_mine
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=SECONDS_BEFORE_NOTICE)
        except Timeout:
            logger.warning(
                "waiting for another process that makes %s and holds %s; after %d seconds this "
                "one goes on without the cache",
                path,
                lock.lock_file,
                SECONDS_BEFORE_GOING_ON,
            )
            lock.acquire(timeout=SECONDS_BEFORE_GOING_ON - SECONDS_BEFORE_NOTICE)
    except Timeout:
        logger.warning(
            "%s has been held for %d seconds: going on without the cache. End the process that "
            "holds it, if it hangs",
            lock.lock_file,
            SECONDS_BEFORE_GOING_ON,
        )
        return False
    except (OSError, NotImplementedError) as error:  # full, read-only, or without locks
        logger.warning("going on without the cache folder %s: %s", path.parent, error)
        return False
    return True

"""How new processes are started where this one is a job of joblib."""

import contextlib
import multiprocessing
from collections.abc import Iterator


@contextlib.contextmanager
def known_start_method() -> Iterator[None]:
    """Processes that are started inside take over a default start method that they know.

    A new process is told the default of its parent, of whatever context it is. In joblib's jobs
    that is joblib's own, which a process that has not imported joblib lacks: it would end at once.
    """
    before = multiprocessing.get_start_method(allow_none=True)
    if before is None or before in multiprocessing.get_all_start_methods():
        yield
        return
    multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)

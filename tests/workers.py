"""The processes of workers, to be killed."""

import os
from typing import Any

from lrpilot.envs.process_workers import ProcessWorkers


def processes_of(env: Any) -> list[Any]:
    """The processes of a `WorkerVecEnv`, in the order of its workers."""
    assert isinstance(env.workers, ProcessWorkers)
    return [process for _, process in sorted(env.workers.processes.items())]


def kill(process: Any, number: int) -> None:
    """Send a signal to a worker."""
    os.kill(process.pid, number)

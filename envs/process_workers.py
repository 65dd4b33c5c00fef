"""Workers that are processes of this machine."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from stable_baselines3.common.vec_env import CloudpickleWrapper

from lrpilot.envs.start_method import known_start_method
from lrpilot.envs.workers import MakeEnvs, Worker, WorkerError

CLOSE_SECONDS = 5.0
# lrpilot is not among them: the server may know another one than this process
PRELOADED = ("torch._dynamo", "stable_baselines3", "gymnasium")


class ProcessWorkers:
    """One process each; Ctrl-C and SIGTERM are left to this one.

    Messages are copied, not sent as file descriptors, of which the states of many networks would
    need thousands.

    Args:
        make_envs: makes the environments of a worker.
        sizes: how many each of them has.
    """

    def __init__(self, make_envs: MakeEnvs, sizes: Sequence[int]) -> None:
        # a fork of this process could hang in torch's threads; one of a server that has only
        # imported what all workers import starts at once, and shares its memory
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context(
            "forkserver" if "forkserver" in methods else "spawn"
        )
        if "forkserver" in methods:
            self._context.set_forkserver_preload(list(PRELOADED))
        self._make_envs = CloudpickleWrapper(make_envs)
        self._sizes = sizes
        self.processes: dict[int, BaseProcess] = {}
        self._connections: dict[int, Connection] = {}
        self._have_answered: set[int] = set()

    def start(self, worker: int) -> None:
        """Start a process."""
        connection, remote = self._context.Pipe()
        args = (remote, dict(os.environ), self._make_envs, self._sizes[worker])
        process = self._context.Process(target=_work, args=args, daemon=True)
        with _deaf_to_ctrl_c(), known_start_method():
            process.start()
            # before Ctrl-C is heard again, so that `close` ends it
            self.processes[worker] = process
            self._connections[worker] = connection
        remote.close()

    def send(self, worker: int, message: bytes) -> None:
        """Send a message; a process that has ended is noticed when its answer is read."""
        with contextlib.suppress(BrokenPipeError):
            self._connections[worker].send_bytes(message)

    def ready(self, workers: list[int], seconds: float) -> list[int]:
        """Those that have answered, or ended."""
        ready = wait([self._connections[worker] for worker in workers], timeout=seconds)
        return [worker for worker in workers if self._connections[worker] in ready]

    def receive(self, worker: int) -> bytes:
        """The answer of a process."""
        try:
            answer = self._connections[worker].recv_bytes()
        except (EOFError, ConnectionResetError):
            process = self.processes[worker]
            process.join()
            hint = ""
            if process.exitcode == -signal.SIGKILL:
                hint = ": it was killed, perhaps for want of memory"
            elif worker not in self._have_answered:
                hint = (
                    '; a script that starts workers must do so under `if __name__ == "__main__":`'
                )
            raise WorkerError(
                f"{self.name(worker)} ended with exit code {process.exitcode}{hint}"
            ) from None
        self._have_answered.add(worker)
        return answer

    def name(self, worker: int) -> str:
        """Number and process."""
        return f"worker {worker} (process {self.processes[worker].pid})"

    def stop(self, worker: int) -> None:
        """Kill a process."""
        self._connections[worker].close()
        self.processes[worker].kill()
        self.processes[worker].join()

    def close(self) -> None:
        """End the processes; one that does not end by itself is killed."""
        for connection in self._connections.values():
            connection.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for process in self.processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started here is not ended by Ctrl-C while it imports; this process is, afterwards."""
    # where this starts, it lets the signals through
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    connection: Connection,
    variables: dict[str, str],
    make_envs: CloudpickleWrapper,
    num_envs: int,
) -> None:
    """Answer until the connection is closed."""
    # not those that the server was started with
    os.environ.clear()
    os.environ.update(variables)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # a closed connection ends the worker, wherever it is
    with contextlib.suppress(EOFError, OSError):
        worker = Worker(make_envs.var, num_envs)
        connection.send_bytes(worker.say_hello())
        while True:
            connection.send_bytes(worker.answer(connection.recv_bytes()))
    # nothing is left to be saved, and to take the interpreter down would last a second
    os._exit(0)

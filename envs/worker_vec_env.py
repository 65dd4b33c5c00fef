"""WorkerVecEnv: environments in a few worker processes."""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import CloudpickleWrapper, DummyVecEnv, VecEnv

from lrpilot.envs.indices import selected

Array = NDArray[np.float32]


# to make environments and to start them for the first time, which may read gigabytes
FIRST_PATIENCE_SECONDS = 3600.0
STEPS_OF_PATIENCE = 100.0
CLOSE_SECONDS = 5.0


class WorkerError(RuntimeError):
    """A worker ended or does not answer: its environments, and the training on them, are lost."""


class WorkerVecEnv(VecEnv):
    """B environments in W processes, each of which steps its share one after the other.

    It gives exactly what SB3's `DummyVecEnv` gives with one torch thread. It differs from SB3's
    `SubprocVecEnv` in what long trainings need: a process may have many environments; an exception
    in a worker is raised here; Ctrl-C and SIGTERM are left to this process, so that a training
    that they end can still be saved; and messages are copied, not sent as file descriptors, of
    which the states of many networks would need thousands.

    Args:
        make_env: makes one environment.
        num_envs: B, at least 1.
        num_workers: W, 1 to `num_envs`; each has one torch thread.
        patience: seconds without an answer after which the workers count as stuck, once a step
            has been made; at least a hundred times the slowest step. The first step is waited for
            an hour.

    Raises:
        ValueError: if a count is out of range.
        WorkerError: by any method, if a worker has ended or is stuck.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env[Any, Any]],
        num_envs: int,
        *,
        num_workers: int,
        patience: float = 600.0,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"`num_envs` must be at least 1, got {num_envs}")
        if not 1 <= num_workers <= num_envs:
            raise ValueError(f"`num_workers` must be 1 to {num_envs}, got {num_workers}")
        shares = np.array_split(np.arange(num_envs), num_workers)
        self._patience = patience
        self._slowest_step: float | None = None
        self._shares: list[list[int]] = [share.tolist() for share in shares]
        # a forked process could hang in torch's threads; a fork server would keep old variables
        context = multiprocessing.get_context("spawn")
        self.processes = []
        self._connections: list[Connection] = []
        atexit.register(self.close)
        try:
            for share in self._shares:
                connection, remote = context.Pipe()
                args = (remote, CloudpickleWrapper(make_env), len(share))
                process = context.Process(target=_work, args=args, daemon=True)
                with _deaf_to_ctrl_c():
                    process.start()
                remote.close()
                self.processes.append(process)
                self._connections.append(connection)
            observation_space, action_space = self._receive(range(num_workers))[0]
        except BaseException:
            self.close()
            raise
        super().__init__(num_envs, observation_space, action_space)

    def _send(self, worker: int, name: str, *args: Any, **kwargs: Any) -> None:
        if self._connections[worker].closed:
            raise WorkerError("the workers have ended: make the environments anew")
        # a worker that has ended is noticed when its answer is read
        with contextlib.suppress(BrokenPipeError):
            self._connections[worker].send_bytes(pickle.dumps((name, args, kwargs)))

    def _receive(self, workers: Iterable[int]) -> list[Any]:
        """The answers of these workers; all are read before an error among them is raised."""
        workers = list(workers)
        try:
            answers = self._read(workers)
        except WorkerError:
            self.close()
            raise
        for answer in answers.values():
            if isinstance(answer, Exception):
                raise answer
        return [answers[worker] for worker in workers]

    def _read(self, workers: list[int]) -> dict[int, Any]:
        """The answers as they come in, errors of the environments among them."""
        pending = {self._connections[worker]: worker for worker in workers}
        answers: dict[int, Any] = {}
        # seconds are counted one by one: those in which this process itself is stopped are not
        waited = 0
        while pending:
            ready = wait(list(pending), timeout=1.0)
            waited = 0 if ready else waited + 1
            if waited >= self._patience_now():
                raise WorkerError(self._silence(sorted(pending.values()), waited))
            for connection in ready:
                assert isinstance(connection, Connection)
                worker = pending.pop(connection)
                answers[worker] = self._answer(worker)
        return answers

    def _patience_now(self) -> float:
        if self._slowest_step is None:
            return FIRST_PATIENCE_SECONDS
        return max(self._patience, STEPS_OF_PATIENCE * self._slowest_step)

    def _silence(self, workers: list[int], seconds: int) -> str:
        named = ", ".join(f"{i} (process {self.processes[i].pid})" for i in workers)
        slowest = "" if self._slowest_step is None else f"; a step took {self._slowest_step:.3g} s"
        return (
            f"no answer for {seconds} s from worker {named}{slowest}: it was stopped, or waits for "
            "something that does not come"
        )

    def _answer(self, worker: int) -> Any:
        try:
            return pickle.loads(self._connections[worker].recv_bytes())
        except (EOFError, ConnectionResetError):
            process = self.processes[worker]
            process.join()
            hint = ""
            if process.exitcode == -signal.SIGKILL:
                hint = ": it was killed, perhaps for want of memory"
            elif self._slowest_step is None:
                hint = (
                    '; a script that starts workers must do so under `if __name__ == "__main__":`'
                )
            raise WorkerError(
                f"worker {worker} (process {process.pid}) ended with exit code "
                f"{process.exitcode}{hint}"
            ) from None

    def seed(self, seed: int | None = None) -> list[int]:
        """Seed environment i with seed + i at the next reset."""
        seeds = [int(drawn) for drawn in super().seed(seed) if drawn is not None]
        for worker, share in enumerate(self._shares):
            self._send(worker, "seed", seeds[share[0]])
        self._receive(range(len(self._shares)))
        return seeds

    def reset(self) -> Array:
        """Start all episodes; returns observations of shape (B, features)."""
        for worker in range(len(self._shares)):
            self._send(worker, "reset")
        return np.concatenate(self._receive(range(len(self._shares))))

    def step_async(self, actions: Array) -> None:
        """Send the actions, of shape (B, 1), to the workers."""
        for worker, share in enumerate(self._shares):
            self._send(worker, "step", actions[share])

    def step_wait(self) -> tuple[Array, Array, NDArray[np.bool_], list[dict[str, Any]]]:
        """Wait until every environment has made its step."""
        start = time.monotonic()
        answers = self._receive(range(len(self._shares)))
        self._slowest_step = max(self._slowest_step or 0.0, time.monotonic() - start)
        observations, rewards, dones, infos = zip(*answers, strict=True)
        return (
            np.concatenate(observations),
            np.concatenate(rewards),
            np.concatenate(dones),
            [info for part in infos for info in part],
        )

    def close(self) -> None:
        """End the workers; one that does not end by itself is killed."""
        for connection in self._connections:
            connection.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        atexit.unregister(self.close)

    def _ask(self, name: str, *args: Any, indices: Any, **kwargs: Any) -> list[Any]:
        """Call a `DummyVecEnv` method that answers with a list, once per worker concerned."""
        wanted = selected(indices, self.num_envs)
        asked = []
        for worker, share in enumerate(self._shares):
            mine = [i for i in wanted if i in share]
            if mine:
                self._send(worker, name, *args, indices=[i - share[0] for i in mine], **kwargs)
                asked.append((worker, mine))
        answers = self._receive(worker for worker, _ in asked)
        found = {
            i: value
            for (_, mine), values in zip(asked, answers, strict=True)
            for i, value in zip(mine, values, strict=True)
        }
        return [found[i] for i in wanted]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of each environment, copied."""
        return self._ask("get_attr", attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of each environment."""
        self.env_method("__setattr__", attr_name, value, indices=indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment."""
        return self._ask("env_method", method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """Whether each environment has this wrapper."""
        return self._ask("env_is_wrapped", wrapper_class, indices=indices)


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


def _work(connection: Connection, make_env: CloudpickleWrapper, num_envs: int) -> None:
    """Answer a `WorkerVecEnv` until it closes the connection."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    # a closed connection ends the worker, wherever it is
    with contextlib.suppress(EOFError, OSError):
        try:
            env = DummyVecEnv([make_env.var] * num_envs)
            answer: Any = (env.observation_space, env.action_space)
        except Exception as error:
            answer = _with_traceback(error)
        while True:
            connection.send_bytes(pickle.dumps(answer))
            name, args, kwargs = pickle.loads(connection.recv_bytes())
            try:
                answer = getattr(env, name)(*args, **kwargs)
            except Exception as error:
                answer = _with_traceback(error)
    # nothing is left to be saved, and to take the interpreter down would last a second
    os._exit(0)


def _with_traceback(error: Exception) -> Exception:
    error.add_note(f"in a worker:\n{traceback.format_exc()}")
    return error

"""WorkerVecEnv: environments in a few worker processes."""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import CloudpickleWrapper, DummyVecEnv, VecEnv

Array = NDArray[np.float32]


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

    Raises:
        ValueError: if a count is out of range.
        RuntimeError: if a worker cannot start.
    """

    def __init__(
        self, make_env: Callable[[], gymnasium.Env[Any, Any]], num_envs: int, *, num_workers: int
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"`num_envs` must be at least 1, got {num_envs}")
        if not 1 <= num_workers <= num_envs:
            raise ValueError(f"`num_workers` must be 1 to {num_envs}, got {num_workers}")
        shares = np.array_split(np.arange(num_envs), num_workers)
        self._shares: list[list[int]] = [share.tolist() for share in shares]
        # a forked process could hang in torch's threads; a fork server would keep old variables
        context = multiprocessing.get_context("spawn")
        self.processes = []
        self._connections: list[Connection] = []
        atexit.register(self.close)
        for share in self._shares:
            connection, remote = context.Pipe()
            process = context.Process(
                target=_work, args=(remote, CloudpickleWrapper(make_env), len(share)), daemon=True
            )
            process.start()
            remote.close()
            self.processes.append(process)
            self._connections.append(connection)
        try:
            observation_space, action_space = self._receive(range(num_workers))[0]
        except Exception:
            self.close()
            raise
        super().__init__(num_envs, observation_space, action_space)

    def _send(self, worker: int, name: str, *args: Any, **kwargs: Any) -> None:
        # a worker that has ended is noticed when its answer is read
        with contextlib.suppress(BrokenPipeError):
            self._connections[worker].send_bytes(pickle.dumps((name, args, kwargs)))

    def _receive(self, workers: Any) -> list[Any]:
        """The answers of these workers; all are read before an error among them is raised."""
        answers = [self._answer(worker) for worker in workers]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _answer(self, worker: int) -> Any:
        try:
            return pickle.loads(self._connections[worker].recv_bytes())
        except (EOFError, ConnectionResetError):
            self.processes[worker].join()
            return RuntimeError(
                f"worker {worker} ended with exit code {self.processes[worker].exitcode}; a script "
                'that starts workers must do so under `if __name__ == "__main__":`'
            )

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
        self._reset_seeds()
        return np.concatenate(self._receive(range(len(self._shares))))

    def step_async(self, actions: Array) -> None:
        """Send the actions, of shape (B, 1), to the workers."""
        for worker, share in enumerate(self._shares):
            self._send(worker, "step", actions[share])

    def step_wait(self) -> tuple[Array, Array, NDArray[np.bool_], list[dict[str, Any]]]:
        """Wait until every environment has made its step."""
        parts = zip(*self._receive(range(len(self._shares))), strict=True)
        observations, rewards, dones, infos = parts
        return (
            np.concatenate(observations),
            np.concatenate(rewards),
            np.concatenate(dones),
            [info for part in infos for info in part],
        )

    def close(self) -> None:
        """End the workers."""
        for connection in self._connections:
            connection.close()
        for process in self.processes:
            process.join()
        atexit.unregister(self.close)

    def _ask(self, name: str, *args: Any, indices: Any, **kwargs: Any) -> list[Any]:
        """Call a `DummyVecEnv` method that answers with a list, once per worker concerned."""
        wanted = list(self._get_indices(indices))
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

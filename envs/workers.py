"""What a worker does, wherever it runs, and how a `WorkerVecEnv` speaks to workers."""

import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gymnasium
import torch
from stable_baselines3.common.vec_env import VecEnv

MakeEnvs = Callable[[int], VecEnv]
"""Makes so many environments."""


class WorkerError(RuntimeError):
    """A worker ended or does not answer, and to start it again did not help."""


class Hello(NamedTuple):
    """The first answer of a worker."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    num_states: int
    """How many states the environments have together."""
    pid: int
    """The process, on whatever machine."""


class Workers(Protocol):
    """Workers by their numbers. Each answers one message after the other; its start is the first.

    A worker that has died is noticed when its answer is received.
    """

    def start(self, worker: int) -> None:
        """Start a worker, or one in its place; its first answer is `Worker.say_hello()`."""

    def send(self, worker: int, message: bytes) -> None:
        """Send a message."""

    def ready(self, workers: list[int], seconds: float) -> list[int]:
        """Those whose answer, or death, can be received now; waits for one so long."""

    def receive(self, worker: int) -> bytes:
        """The answer. Raises `WorkerError` if the worker has ended."""

    def name(self, worker: int) -> str:
        """Which worker it is, for a message."""

    def stop(self, worker: int) -> None:
        """End a worker, whatever state it is in."""

    def close(self) -> None:
        """End all of them."""


class Worker:
    """Has environments, and does with them what messages say, with one torch thread.

    Args:
        make_envs: makes them.
        num_envs: how many.
    """

    def __init__(self, make_envs: MakeEnvs, num_envs: int) -> None:
        torch.set_num_threads(1)
        try:
            self._envs = make_envs(num_envs)
            answer: Any = Hello(
                self._envs.observation_space,
                self._envs.action_space,
                len(self._keepers()),
                os.getpid(),
            )
        except Exception as error:
            answer = _with_traceback(error)
        self._hello = pickle.dumps(answer)

    def say_hello(self) -> bytes:
        """A pickled `Hello`, or the error with which the environments could not be made."""
        return self._hello

    def answer(self, message: bytes) -> bytes:
        """Do what a message says; an error is an answer, too."""
        name, args, kwargs = pickle.loads(message)
        own: dict[str, Callable[..., Any]] = {
            "begin": self._begin,
            "states": self._states,
            "load_states": self._load_states,
        }
        try:
            answer = (own.get(name) or getattr(self._envs, name))(*args, **kwargs)
        except Exception as error:
            answer = _with_traceback(error)
        return pickle.dumps(answer)

    def _begin(self, seed: int | None) -> Any:
        if seed is not None:
            self._envs.seed(seed)
        return self._envs.reset()

    def _keepers(self) -> list[Any]:
        """What has states: the environments, or all of them together where they are one batch."""
        if hasattr(self._envs, "state_dict"):
            return [self._envs]
        return [env.unwrapped for env in getattr(self._envs, "envs", [])]

    def _states(self) -> list[Any]:
        return [keeper.state_dict() for keeper in self._keepers()]

    def _load_states(self, states: list[Any]) -> None:
        for keeper, state in zip(self._keepers(), states, strict=True):
            keeper.load_state_dict(state)


def _with_traceback(error: Exception) -> Exception:
    error.add_note(f"in a worker:\n{traceback.format_exc()}")
    return error

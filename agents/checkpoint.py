"""Checkpoints of an agent in training, taken between rollouts, that resume bit-identically."""

import copy
import io
import random
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms import ALGORITHMS, Agent

FILE_NAME = "checkpoint.pt"


def take_snapshot(model: Agent) -> dict[str, Any]:
    """Everything that the rest of training depends on: agent, environments, generators.

    Size: that of the agent's file and of the runs' tensors. SAC adds the filled part of its replay
    buffer: per env step 8 x features + 16 bytes, 2.2 MB in 20,000 env steps of 12 features. Action
    noise that remembers (Ornstein-Uhlenbeck) is not kept: SB3 resets it when training goes on.
    """
    buffer = io.BytesIO()
    model.save(buffer)
    assert model.env is not None
    numpy_rng = np.random.get_state(legacy=False)
    numpy_rng["state"]["key"] = numpy_rng["state"]["key"].tolist()
    return {
        "num_env_steps": model.num_timesteps,
        "algorithm": type(model).__name__,
        "agent": torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).clone(),
        "memory": _memory(model),
        "envs": _env_states(model.env),
        "action_space_rng": copy.deepcopy(model.action_space.np_random.bit_generator.state),
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": numpy_rng,
        "python_rng": random.getstate(),
    }


def _memory(model: Agent) -> dict[str, Any]:
    """What the agent's own file leaves out: hidden states, and past transitions."""
    if isinstance(model, RecurrentPPO):
        hidden: Any = model._last_lstm_states
        return {
            name: [tensor.clone() for tensor in states] for name, states in hidden._asdict().items()
        }
    if isinstance(model, SAC):
        buffer = model.replay_buffer
        assert buffer is not None
        return {
            "pos": buffer.pos,
            "full": buffer.full,
            **{
                name: torch.tensor(array[: buffer.size()])
                for name, array in vars(buffer).items()
                if isinstance(array, np.ndarray)
            },
        }
    return {}


def _load_memory(model: Agent, memory: dict[str, Any]) -> None:
    if isinstance(model, RecurrentPPO):
        hidden: Any = RNNStates(**{name: tuple(states) for name, states in memory.items()})
        model._last_lstm_states = hidden
    if isinstance(model, SAC):
        buffer = model.replay_buffer
        assert buffer is not None
        buffer.pos, buffer.full = memory["pos"], memory["full"]
        for name, value in memory.items():
            if isinstance(value, torch.Tensor):
                getattr(buffer, name)[: len(value)] = value.numpy()


def _env_states(env: VecEnv) -> list[dict[str, Any]]:
    if hasattr(env, "state_dict"):
        return [env.state_dict()]
    return env.env_method("state_dict")


def _load_env_states(env: VecEnv, states: list[dict[str, Any]]) -> None:
    if hasattr(env, "load_state_dict"):
        env.load_state_dict(states[0])
        return
    for i, state in enumerate(states):
        env.env_method("load_state_dict", state, indices=i)


def write_snapshot(snapshot: dict[str, Any], path: Path) -> None:
    """Write a snapshot; it replaces an older one only when it is complete."""
    unfinished = path.with_name(path.name + ".part")
    torch.save(snapshot, unfinished)
    unfinished.replace(path)


def read_snapshot(path: Path) -> dict[str, Any]:
    """Read a snapshot; no code from the file is run until `restore_agent`."""
    snapshot: dict[str, Any] = torch.load(path, weights_only=True)
    return snapshot


def restore_agent(snapshot: dict[str, Any], env: VecEnv) -> Agent:
    """The agent as it was, on environments built with the same arguments."""
    buffer = io.BytesIO(snapshot["agent"].numpy().tobytes())
    algorithm = ALGORITHMS[snapshot["algorithm"]]
    model = algorithm.load(buffer, env=env, device="cpu", force_reset=False)
    _load_memory(model, snapshot["memory"])
    _load_env_states(env, snapshot["envs"])
    model.action_space.np_random.bit_generator.state = snapshot["action_space_rng"]
    torch.set_rng_state(snapshot["torch_rng"])
    key = np.array(snapshot["numpy_rng"]["state"]["key"], dtype=np.uint32)
    position = snapshot["numpy_rng"]["state"]["pos"]
    np.random.set_state({**snapshot["numpy_rng"], "state": {"key": key, "pos": position}})
    random.setstate(snapshot["python_rng"])
    return model


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a flag; the second acts as usual."""

    def __init__(self) -> None:
        self.received: str | None = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __enter__(self) -> Self:
        self._previous = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()


class Checkpointer(BaseCallback):
    """Keeps the snapshot of the last rollout's end, and writes it every so many env steps.

    Args:
        path: the checkpoint file.
        interval_env_steps: env steps between two writes.
        stop: when it has received a signal, training stops and the last snapshot is written.
    """

    def __init__(self, path: Path, *, interval_env_steps: int, stop: StopSignal) -> None:
        super().__init__()
        if interval_env_steps < 1:
            raise ValueError(f"`interval_env_steps` must be at least 1, got {interval_env_steps}")
        self._path = path
        self._interval = interval_env_steps
        self._stop = stop
        self._snapshot: dict[str, Any] | None = None
        self._written = 0

    def _on_training_start(self) -> None:
        self._written = self.num_timesteps

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, Agent)
        self._snapshot = take_snapshot(self.model)
        if self.num_timesteps - self._written >= self._interval:
            self.write()

    def _on_step(self) -> bool:
        return self._stop.received is None

    def write(self) -> None:
        """Write the last snapshot, if there is one."""
        if self._snapshot is not None:
            write_snapshot(self._snapshot, self._path)
            self._written = self._snapshot["num_env_steps"]

    def finish(self) -> None:
        """Write the state after the last rollout of a completed training."""
        assert isinstance(self.model, Agent)
        self._snapshot = take_snapshot(self.model)
        self.write()

"""Checkpoints of an agent in training, taken between rollouts, that resume bit-identically.

A checkpoint file is one line with a name, a format and the SHA-256 of the rest, which is what
`torch.save` writes: plain values and tensors alone. No code is run by reading it.
"""

import copy
import hashlib
import io
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from lrpilot.agents.algorithms import Agent
from lrpilot.agents.metrics import RolloutRecorder
from lrpilot.agents.sb3 import agent_state, load_agent_state
from lrpilot.agents.stop_signal import StopSignal
from lrpilot.files import write_whole

FILE_NAME = "checkpoint.pt"
# a killed process loses at most so much training, or one rollout where that takes longer
SECONDS_BETWEEN_WRITES = 60.0

_TITLE = b"lrpilot checkpoint 3 "
_HEADER_SIZE = len(_TITLE) + 2 * hashlib.sha256().digest_size + 1


class CheckpointError(ValueError):
    """A file that is no whole checkpoint, or one of another training."""


def take_snapshot(model: Agent) -> dict[str, Any]:
    """Everything that the rest of training depends on: agent, environments, generators."""
    assert model.env is not None
    numpy_rng = np.random.get_state(legacy=False)
    numpy_rng["state"]["key"] = numpy_rng["state"]["key"].tolist()
    return {
        "num_env_steps": model.num_timesteps,
        "algorithm": type(model).__name__,
        "agent": agent_state(model),
        "envs": _env_states(model.env),
        "action_space_rng": copy.deepcopy(model.action_space.np_random.bit_generator.state),
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": numpy_rng,
        "python_rng": random.getstate(),
    }


def load_snapshot(model: Agent, snapshot: dict[str, Any]) -> None:
    """Continue from a snapshot of an agent and environments built with the same arguments.

    Raises:
        CheckpointError: if it is one of another agent, or of other environments.
    """
    assert model.env is not None
    try:
        if snapshot["algorithm"] != type(model).__name__:
            raise ValueError(f"it is one of {snapshot['algorithm']}")
        load_agent_state(model, snapshot["agent"])
        _load_env_states(model.env, snapshot["envs"])
        model.action_space.np_random.bit_generator.state = snapshot["action_space_rng"]
        torch.set_rng_state(snapshot["torch_rng"])
        key = np.array(snapshot["numpy_rng"]["state"]["key"], dtype=np.uint32)
        position = snapshot["numpy_rng"]["state"]["pos"]
        np.random.set_state({**snapshot["numpy_rng"], "state": {"key": key, "pos": position}})
        random.setstate(snapshot["python_rng"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint does not fit this {type(model).__name__} and these environments; "
            "resume with the configuration that it was written with "
            f"({type(error).__name__}: {error})"
        ) from error


def _env_states(env: VecEnv) -> list[dict[str, Any]]:
    if hasattr(env, "state_dict"):
        return [env.state_dict()]
    return env.env_method("state_dict")


def _load_env_states(env: VecEnv, states: list[dict[str, Any]]) -> None:
    if hasattr(env, "load_state_dict"):
        env.load_state_dict(states[0])
        return
    if len(states) != env.num_envs:
        raise ValueError(f"it is one of {len(states)} environments")
    for i, state in enumerate(states):
        env.env_method("load_state_dict", state, indices=i)


def write_snapshot(snapshot: dict[str, Any], path: Path) -> None:
    """Write a snapshot; it replaces an older one only when it is complete."""
    buffer = io.BytesIO()
    torch.save(snapshot, buffer)
    payload = buffer.getvalue()
    write_whole(path, _header(payload) + payload)


def _header(payload: bytes) -> bytes:
    return _TITLE + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def read_snapshot(path: Path) -> dict[str, Any]:
    """Read a snapshot; no code from the file is run.

    Raises:
        FileNotFoundError: if there is none.
        CheckpointError: if it is damaged, or no checkpoint of this version.
    """
    content = path.read_bytes()
    cure = "resume another run folder, or train anew"
    if not content.startswith(_TITLE):
        what = "is no checkpoint of this version of lrpilot" if content else "is empty"
        raise CheckpointError(f"{path} {what}; {cure}")
    payload = content[_HEADER_SIZE:]
    if content[:_HEADER_SIZE] != _header(payload):
        raise CheckpointError(
            f"{path} is damaged: its content does not have the SHA-256 that its first line names; "
            f"{cure}"
        )
    try:
        snapshot: dict[str, Any] = torch.load(
            io.BytesIO(payload), map_location="cpu", weights_only=True
        )
    except Exception as error:  # a foreign content may fail in any way
        raise CheckpointError(
            f"{path} holds something else than plain values and tensors "
            f"({type(error).__name__}); {cure}"
        ) from error
    if not isinstance(snapshot, dict):
        raise CheckpointError(f"{path} holds no snapshot but a {type(snapshot).__name__}; {cure}")
    return snapshot


class Checkpointer(BaseCallback):
    """Keeps the snapshot of the last rollout's end, and writes it now and then.

    It is written where `interval_env_steps` env steps or `SECONDS_BETWEEN_WRITES` seconds have
    passed, and by `write`, which costs no rollout where a training breaks off.

    Args:
        path: the checkpoint file.
        interval_env_steps: env steps between two writes.
        recorder: its rows are part of the snapshots.
        kept: plain values that are part of the snapshots, too.
        stop: when it has received a signal, training stops in mid-rollout.
    """

    def __init__(
        self,
        path: Path,
        *,
        interval_env_steps: int,
        recorder: RolloutRecorder,
        kept: dict[str, Any],
        stop: StopSignal,
    ) -> None:
        super().__init__()
        if interval_env_steps < 1:
            raise ValueError(f"`interval_env_steps` must be at least 1, got {interval_env_steps}")
        self._path = path
        self._interval = interval_env_steps
        self._recorder = recorder
        self._kept = kept
        self._stop = stop
        self._snapshot: dict[str, Any] | None = None
        self.is_stopped = False

    def _on_training_start(self) -> None:
        self._written, self._written_at = self.num_timesteps, time.monotonic()

    def _on_rollout_start(self) -> None:
        self._take()
        seconds = time.monotonic() - self._written_at
        if (
            self.num_timesteps - self._written >= self._interval
            or seconds >= SECONDS_BETWEEN_WRITES
        ):
            self.write()

    def _on_step(self) -> bool:
        self.is_stopped = self._stop.received is not None
        return not self.is_stopped

    def _take(self) -> None:
        assert isinstance(self.model, Agent)
        recorder = self._recorder
        metrics = {"metrics": recorder.text(), "feature_range": recorder.feature_range}
        self._snapshot = {**take_snapshot(self.model), **metrics, **self._kept}

    def write(self) -> None:
        """Write the last snapshot, if there is one."""
        if self._snapshot is not None:
            write_snapshot(self._snapshot, self._path)
            self._written, self._written_at = self._snapshot["num_env_steps"], time.monotonic()

    def finish(self) -> None:
        """Write the state after the last rollout of a completed training."""
        self._take()
        self.write()

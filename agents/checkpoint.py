"""Checkpoints of an agent in training, taken between rollouts, that resume bit-identically.

A checkpoint file is one line with a name, a format and the SHA-256 of the rest, which is what
`torch.save` writes: plain values and tensors alone. No code is run by reading it. Beside it lies
the one before it, which is taken where the newest is damaged.
"""

import copy
import hashlib
import io
import random
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from lrpilot.agents.algorithms import Agent
from lrpilot.agents.metrics import FILE_NAME as METRICS_FILE
from lrpilot.agents.metrics import RolloutRecorder, env_steps_reached
from lrpilot.agents.sb3 import agent_state, load_agent_state
from lrpilot.agents.stop_signal import StopSignal
from lrpilot.files import write_whole

FILE_NAME = "checkpoint.pt"
PREVIOUS_NAME = "checkpoint_previous.pt"
# a killed process loses at most so much training, or one rollout where that takes longer
SECONDS_BETWEEN_WRITES = 60.0

CURE = "resume another run folder, or train anew"
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


def write_snapshot(snapshot: dict[str, Any], path: Path, *, previous: Path | None = None) -> None:
    """Write a snapshot; it replaces an older one only when it is complete.

    Args:
        snapshot: what is written.
        path: the file.
        previous: where the file that is replaced is kept.
    """
    buffer = io.BytesIO()
    torch.save(snapshot, buffer)
    payload = buffer.getvalue()
    write_whole(path, _header(payload) + payload, previous=previous)


def _header(payload: bytes) -> bytes:
    return _TITLE + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def read_snapshot(path: Path) -> dict[str, Any]:
    """Read a snapshot; no code from the file is run.

    Raises:
        FileNotFoundError: if there is none.
        CheckpointError: if it is damaged, or no checkpoint of this version.
    """
    content = path.read_bytes()
    if not content.startswith(_TITLE):
        what = "is no checkpoint of this version of lrpilot" if content else "is empty"
        raise CheckpointError(f"{path} {what}; {CURE}")
    payload = content[_HEADER_SIZE:]
    if content[:_HEADER_SIZE] != _header(payload):
        raise CheckpointError(
            f"{path} is damaged: its content does not have the SHA-256 that its first line names; "
            f"{CURE}"
        )
    try:
        snapshot: dict[str, Any] = torch.load(
            io.BytesIO(payload), map_location="cpu", weights_only=True
        )
    except Exception as error:  # a foreign content may fail in any way
        raise CheckpointError(
            f"{path} holds something else than plain values and tensors "
            f"({type(error).__name__}); {CURE}"
        ) from error
    if not isinstance(snapshot, dict):
        raise CheckpointError(f"{path} holds no snapshot but a {type(snapshot).__name__}; {CURE}")
    return snapshot


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run folder holds a checkpoint, or the one before it."""
    return any((run_dir / name).is_file() for name in (FILE_NAME, PREVIOUS_NAME))


def read_newest(run_dir: Path) -> dict[str, Any]:
    """The snapshot of a run folder: the newest, or the one before it where that is damaged.

    A warning then names the damaged file and how many env steps are made again.

    Raises:
        FileNotFoundError: if there is none.
        CheckpointError: if what there is is damaged, or no checkpoint of this version.
    """
    try:
        return read_snapshot(run_dir / FILE_NAME)
    except (CheckpointError, FileNotFoundError) as error:
        if not (run_dir / PREVIOUS_NAME).is_file():
            raise
        newest = error
    try:
        snapshot = read_snapshot(run_dir / PREVIOUS_NAME)
    except CheckpointError as error:
        raise CheckpointError(f"no checkpoint is left: {newest}; and {error}") from error
    what = f"{run_dir / FILE_NAME} is missing"
    if isinstance(newest, CheckpointError):
        what = str(newest).removesuffix(f"; {CURE}")
    done = snapshot["num_env_steps"]
    reached = env_steps_reached(run_dir / METRICS_FILE)
    lost = "an unknown number of" if reached is None else f"{max(0, reached - done)}"
    warnings.warn(
        f"{what}: the training goes on from {PREVIOUS_NAME}, at env step {done}, and {lost} env "
        "steps are made again",
        RuntimeWarning,
        stacklevel=2,
    )
    return snapshot


class Checkpointer(BaseCallback):
    """Keeps the snapshot of the last rollout's end, and writes it now and then.

    It is written where `interval_env_steps` env steps or `SECONDS_BETWEEN_WRITES` seconds have
    passed, and by `write`, which costs no rollout where a training breaks off. Where that fails
    in a training that goes on, as on a full disk, a warning says so, and it is tried again at the
    next time. The first write leaves the file before it alone: what another process has left
    under the name of the newest may be damaged.

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
        self._kept_in_file: dict[str, Any] | None = None
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
            self.try_to_write()

    def _on_step(self) -> bool:
        self.is_stopped = self._stop.received is not None
        return not self.is_stopped

    def _take(self) -> None:
        assert isinstance(self.model, Agent)
        recorder = self._recorder
        metrics = {"metrics": recorder.text(), "feature_range": recorder.feature_range}
        self._snapshot = {**take_snapshot(self.model), **metrics, **self._kept}

    def write(self) -> None:
        """Write the last snapshot, if there is one.

        Raises:
            OSError: if that fails; it names the file.
        """
        if self._snapshot is None:
            return
        is_next = self._kept_in_file is not None and self._kept_in_file is not self._snapshot
        # where it cannot be written, it is not tried again at once
        self._written, self._written_at = self._snapshot["num_env_steps"], time.monotonic()
        previous = self._path.with_name(PREVIOUS_NAME) if is_next else None
        write_snapshot(self._snapshot, self._path, previous=previous)
        self._kept_in_file = self._snapshot

    def try_to_write(self) -> None:
        """Write the last snapshot; a warning says if that fails."""
        try:
            self.write()
        except OSError as error:
            warnings.warn(
                f"the checkpoint cannot be written and training goes on without: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    def finish(self) -> None:
        """Write the state after the last rollout of a completed training, if that is possible.

        The results, which are more, are still to be written.
        """
        self._take()
        self.try_to_write()

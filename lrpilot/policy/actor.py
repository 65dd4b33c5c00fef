"""A learned learning-rate policy: plain arrays, its specifications and its card, in one file."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from lrpilot.arguments import require_count
from lrpilot.files import write_whole
from lrpilot.policy.action import ActionSpec
from lrpilot.policy.clock import ClockSpec
from lrpilot.policy.lstm import lstm_step
from lrpilot.policy.observation import FEATURE_LIMIT, LATER_GROUPS, ObservationSpec
from lrpilot.policy.policy_file import PolicyFileError, content_digest, read_policy_file

FILE_NAME = "policy.safetensors"
SHIPPED = Path(__file__).parent / "shipped"
DEFAULT_POLICY = "small_trainings"
"""The shipped policy that runs where none is named."""
FORMAT_VERSION = 3
OUTPUTS = ("clip", "tanh")
KINDS = ("mlp", "lstm")

Array = NDArray[np.float32]

_LARGEST_SUM = 1e38  # float32 ends at 3.4e38


def _plain(layer: tuple[Array, Array]) -> tuple[Array, Array]:
    """A float32 copy in one memory order: the order decides how a product rounds."""
    return np.array(layer[0], np.float32, order="C"), np.array(layer[1], np.float32)


def _check_range(name: str, layer: tuple[Array, Array], largest: Array) -> None:
    """Refuse a layer whose sums could leave float32 for inputs up to `largest` in size."""
    weight, bias = (np.abs(array.astype(np.float64)) for array in layer)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    reach = float((largest @ weight + bias).max())
    if reach > _LARGEST_SUM:
        raise ValueError(f"{name} must not overflow, got sums of up to {reach:.3g}")


@dataclass(frozen=True, eq=False)
class Policy:
    """A frozen actor with everything that is needed to run it as it was trained.

    The actor is a multilayer perceptron with tanh units: h_0 = observation,
    h_i = tanh(h_{i-1} W_i + b_i), and the action is the last layer's output, clipped to [-1, 1]
    (`output="clip"`, PPO) or squashed by tanh (`output="tanh"`, SAC). A recurrent actor
    (RecurrentPPO) has an LSTM cell before its layers, and remembers within a run::

        memory = policy.initial_memory()
        for observation in observations:
            action = policy.act(observation, memory)

    Args:
        layers: (W_i, b_i) of shapes (inputs, outputs) and (outputs,), float32.
        observation: what it sees.
        action: what its action does.
        clock: how often it decides.
        output: "clip" or "tanh".
        card: what it was trained on: task, seeds, budget, versions (JSON values).
        lstm: (W, b) of an LSTM cell that reads the observation, as in `lstm_step`; None without.

    Raises:
        ValueError: if the layers do not fit each other or the observation, or could overflow: an
            action is finite whatever is observed; or if the card is no dictionary.
    """

    layers: Sequence[tuple[Array, Array]]
    observation: ObservationSpec
    action: ActionSpec
    clock: ClockSpec
    output: str = "clip"
    card: dict[str, Any] = field(default_factory=dict)
    lstm: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"`output` must be one of {OUTPUTS}, got {self.output!r}")
        if not isinstance(self.card, dict):
            raise ValueError(f"`card` must be a dictionary, got {self.card!r}")
        if not self.layers:
            raise ValueError("`layers` must hold at least one layer, got none")
        size, inputs = len(self.observation.names), "features of the observation"
        largest = np.full(size, FEATURE_LIMIT)
        if self.lstm is not None:
            lstm = _plain(self.lstm)
            object.__setattr__(self, "lstm", lstm)
            shapes, units = [array.shape for array in lstm], lstm[1].size // 4
            if units < 1 or shapes != [(size + units, 4 * units), (4 * units,)]:
                raise ValueError(
                    f"`lstm` must have shapes ({size} + n, 4 n) and (4 n,), got {shapes}"
                )
            _check_range("`lstm`", lstm, np.append(largest, np.ones(units)))
            size, inputs = units, "units of the LSTM"
            largest = np.ones(size)
        object.__setattr__(self, "layers", [_plain(layer) for layer in self.layers])
        for i, (weight, bias) in enumerate(self.layers):
            if weight.ndim != 2 or weight.shape[0] != size or bias.shape != weight.shape[1:]:
                raise ValueError(
                    f"layer {i} of the policy must take the {size} {inputs}, got shapes "
                    f"{weight.shape} and {bias.shape}"
                )
            if bias.size == 0:
                raise ValueError(f"layer {i} of the policy must have outputs, got none")
            _check_range(f"layer {i} of the policy", (weight, bias), largest)
            size, inputs = weight.shape[1], "outputs of the layer before"
            largest = np.ones(size)
        if size != 1:
            raise ValueError(f"`layers` must end in one action, got {size}")

    @property
    def is_recurrent(self) -> bool:
        """Whether actions depend on earlier observations, through a memory."""
        return self.lstm is not None

    def initial_memory(self, num_runs: int | None = None) -> Array:
        """What is remembered at the start of a run, or of several: zeros.

        Returns:
            Shape (2, n), or (2, num_runs, n), with n the units of the LSTM: 0 if there is none.
        """
        units = 0 if self.lstm is None else self.lstm[1].size // 4
        return np.zeros((2, units) if num_runs is None else (2, num_runs, units), np.float32)

    def _recall(self, inputs: Array, memory: Array | None) -> Array:
        assert self.lstm is not None
        if memory is None:
            raise ValueError("`memory` is required by a recurrent policy: see `initial_memory()`")
        return lstm_step(*self.lstm, inputs, memory)

    def act(self, observation: Array, memory: Array | None = None) -> float:
        """The action in [-1, 1] for one observation of shape (len(names),).

        Args:
            observation: what is seen now.
            memory: of this run, and updated in place; needed by recurrent policies alone.
        """
        hidden = observation if self.lstm is None else self._recall(observation, memory)
        for weight, bias in self.layers[:-1]:
            hidden = np.tanh(hidden @ weight + bias)
        weight, bias = self.layers[-1]
        value = float((hidden @ weight + bias)[0])
        if self.output == "tanh":
            return float(np.tanh(value))
        return max(-1.0, min(1.0, value))

    def act_batch(self, observations: Array, memory: Array | None = None) -> Array:
        """The actions in [-1, 1], (B,), for observations of shape (B, len(names)); as `act`."""
        hidden = observations if self.lstm is None else self._recall(observations, memory)
        for weight, bias in self.layers[:-1]:
            hidden = np.tanh(hidden @ weight + bias)
        weight, bias = self.layers[-1]
        values: Array = (hidden @ weight + bias)[:, 0]
        return np.tanh(values) if self.output == "tanh" else values.clip(-1.0, 1.0)

    def __repr__(self) -> str:
        task = self.card.get("task", "unknown")
        if isinstance(task, dict):
            task = task.get("name", "unknown")
        return (
            f"Policy(task={task!r}, groups={self.observation.groups}, action={self.action}, "
            f"fingerprint={self.fingerprint[:12]!r})"
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and the specifications (not of the card)."""
        digest = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for array in self._tensors().values():
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _header(self) -> dict[str, Any]:
        kind = "lstm" if self.is_recurrent else "mlp"
        return {
            "architecture": {"kind": kind, "activation": "tanh", "output": self.output},
            "observation": self.observation.to_dict(),
            "action": self.action.to_dict(),
            "clock": self.clock.to_dict(),
        }

    @property
    def _needs_newest_format(self) -> bool:
        """Whether a reader of the format before lacks what the policy sees, or its clock."""
        is_grown = self.clock.growth is not None or self.clock.least_interval > 1
        return is_grown or not LATER_GROUPS.isdisjoint(self.observation.groups)

    def _tensors(self) -> dict[str, Array]:
        """The arrays by their names in a file, in the order of the fingerprint."""
        named = {f"layers.{i}": layer for i, layer in enumerate(self.layers)}
        if self.lstm is not None:
            named = {"lstm": self.lstm, **named}
        return {
            f"{name}.{part}": array
            for name, layer in named.items()
            for part, array in zip(("weight", "bias"), layer, strict=True)
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file; it replaces an older one only when it is complete."""
        tensors = self._tensors()
        version = FORMAT_VERSION if self._needs_newest_format else FORMAT_VERSION - 1
        header = {"format_version": version, **self._header(), "card": self.card}
        header["sha256"] = content_digest(header, tensors)
        # one entry, since safetensors writes several in any order
        write_whole(path, save(tensors, {"lrpilot": json.dumps(header, sort_keys=True)}))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a policy file, the policy in a run folder, or one that ships with lrpilot.

        No code from the file is run, and its content is checked against the digest in it, which
        files of format 1 lack.

        Args:
            path: the name of a policy that ships ("cifar"; a file or folder that is called so is
                given as "./cifar" or as a `Path`), a file, or a folder.

        Raises:
            FileNotFoundError: if there is no such file; it names the policies that ship.
            PolicyFileError: if it is foreign, damaged, or of a newer format.
        """
        shipped = {file.stem: file for file in SHIPPED.glob("*.safetensors")}
        if isinstance(path, str) and path in shipped:
            path = shipped[path]
        path = Path(path).expanduser()
        if path.is_dir():
            path = path / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"no policy at {path}; shipped are {sorted(shipped)}")
        return cls._from_file(path, *read_policy_file(path))

    @classmethod
    def _from_file(cls, path: Path, text: str, tensors: dict[str, Array]) -> Self:
        try:
            header = json.loads(text)
            version = header["format_version"]
            require_count("format_version", version)
            if version > FORMAT_VERSION:
                raise PolicyFileError(
                    f"{path} has policy format {version}, this lrpilot reads up to "
                    f"{FORMAT_VERSION}: upgrade lrpilot"
                )
            if version > 1 and header.pop("sha256") != content_digest(header, tensors):
                raise PolicyFileError(
                    f"{path} is damaged: its content does not have the digest that it names; "
                    "fetch or save it again"
                )
            architecture = header["architecture"]
            if architecture["kind"] not in KINDS or architecture["activation"] != "tanh":
                raise PolicyFileError(f"{path} holds an unknown architecture: {architecture}")

            def layer(name: str) -> tuple[Array, Array]:
                return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

            num_layers = sum(name.startswith("layers.") for name in tensors) // 2
            return cls(
                layers=[layer(f"layers.{i}") for i in range(num_layers)],
                lstm=layer("lstm") if architecture["kind"] == "lstm" else None,
                observation=ObservationSpec.from_dict(header["observation"]),
                action=ActionSpec.from_dict(header["action"]),
                clock=ClockSpec.from_dict(header["clock"]),
                output=architecture["output"],
                card=header["card"],
            )
        except PolicyFileError:
            raise
        except KeyError as error:
            raise PolicyFileError(
                f"{path} is not a valid lrpilot policy: it lacks {error}"
            ) from error
        except (OverflowError, RecursionError, TypeError, ValueError) as error:
            raise PolicyFileError(f"{path} is not a valid lrpilot policy: {error}") from error

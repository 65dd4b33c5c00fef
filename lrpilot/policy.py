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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lrpilot.action import ActionSpec
from lrpilot.controller import ClockSpec
from lrpilot.observation import ObservationSpec

FILE_NAME = "policy.safetensors"
SHIPPED = Path(__file__).parent / "policies"
FORMAT_VERSION = 1
OUTPUTS = ("clip", "tanh")

Array = NDArray[np.float32]


class PolicyFileError(ValueError):
    """A file that is not a readable lrpilot policy."""


@dataclass(frozen=True, eq=False)
class Policy:
    """A frozen actor with everything that is needed to run it as it was trained.

    The actor is a multilayer perceptron with tanh units: h_0 = observation,
    h_i = tanh(h_{i-1} W_i + b_i), and the action is the last layer's output, clipped to [-1, 1]
    (`output="clip"`, PPO) or squashed by tanh (`output="tanh"`, SAC).

    Args:
        layers: (W_i, b_i) of shapes (inputs, outputs) and (outputs,), float32.
        observation: what it sees.
        action: what its action does.
        clock: how often it decides.
        output: "clip" or "tanh".
        card: what it was trained on: task, seeds, budget, versions (JSON values).

    Raises:
        ValueError: if the layers do not fit each other or the observation.
    """

    layers: Sequence[tuple[Array, Array]]
    observation: ObservationSpec
    action: ActionSpec
    clock: ClockSpec
    output: str = "clip"
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"`output` must be one of {OUTPUTS}, got {self.output!r}")
        if not self.layers:
            raise ValueError("`layers` must hold at least one layer, got none")
        # in one memory order: the order decides how a product rounds
        layers = [
            (np.array(weight, np.float32, order="C"), np.array(bias, np.float32))
            for weight, bias in self.layers
        ]
        object.__setattr__(self, "layers", layers)
        size = len(self.observation.names)
        for i, (weight, bias) in enumerate(self.layers):
            if weight.ndim != 2 or weight.shape[0] != size or bias.shape != weight.shape[1:]:
                what = "features of the observation" if i == 0 else "outputs of the layer before"
                raise ValueError(
                    f"layer {i} of the policy must take the {size} {what}, got shapes "
                    f"{weight.shape} and {bias.shape}"
                )
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise ValueError(f"`layers` must be finite, got NaN or infinity in layer {i}")
            size = weight.shape[1]
        if size != 1:
            raise ValueError(f"`layers` must end in one action, got {size}")

    def act(self, observation: Array) -> float:
        """The action in [-1, 1] for one observation of shape (len(names),)."""
        hidden = observation
        for weight, bias in self.layers[:-1]:
            hidden = np.tanh(hidden @ weight + bias)
        weight, bias = self.layers[-1]
        value = float((hidden @ weight + bias)[0])
        if self.output == "tanh":
            return float(np.tanh(value))
        return max(-1.0, min(1.0, value))

    def act_batch(self, observations: Array) -> Array:
        """The actions in [-1, 1], (B,), for observations of shape (B, len(names))."""
        hidden = observations
        for weight, bias in self.layers[:-1]:
            hidden = np.tanh(hidden @ weight + bias)
        weight, bias = self.layers[-1]
        values: Array = (hidden @ weight + bias)[:, 0]
        return np.tanh(values) if self.output == "tanh" else values.clip(-1.0, 1.0)

    def __repr__(self) -> str:
        task = self.card.get("task", {}).get("name", "unknown")
        return (
            f"Policy(task={task!r}, groups={self.observation.groups}, action={self.action}, "
            f"fingerprint={self.fingerprint[:12]!r})"
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and the specifications (not of the card)."""
        digest = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for weight, bias in self.layers:
            digest.update(weight.tobytes())
            digest.update(bias.tobytes())
        return digest.hexdigest()

    def _header(self) -> dict[str, Any]:
        return {
            "architecture": {"kind": "mlp", "activation": "tanh", "output": self.output},
            "observation": self.observation.to_dict(),
            "action": self.action.to_dict(),
            "clock": self.clock.to_dict(),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file; it replaces an older one only when it is complete."""
        path = Path(path)
        header = {"format_version": FORMAT_VERSION, **self._header(), "card": self.card}
        tensors = {}
        for i, (weight, bias) in enumerate(self.layers):
            tensors[f"layers.{i}.weight"] = np.ascontiguousarray(weight, dtype=np.float32)
            tensors[f"layers.{i}.bias"] = np.ascontiguousarray(bias, dtype=np.float32)
        unfinished = path.with_name(path.name + ".part")
        unfinished.write_bytes(save(tensors, {"lrpilot": json.dumps(header, sort_keys=True)}))
        unfinished.replace(path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a policy file, the policy in a run folder, or one that ships with lrpilot.

        No code from the file is run.

        Args:
            path: a file, a folder, or the name of a file in `lrpilot/policies`, without suffix.

        Raises:
            FileNotFoundError: if there is no such file.
            PolicyFileError: if it is foreign, truncated, or of a newer format.
        """
        path = Path(path)
        shipped = {file.stem: file for file in SHIPPED.glob("*.safetensors")}
        if path.is_dir():
            path = path / FILE_NAME
        elif not path.exists():
            path = shipped.get(str(path), path)
        if not path.is_file():
            raise FileNotFoundError(f"no policy at {path}; shipped are {sorted(shipped)}")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if "lrpilot" not in metadata:
                    raise PolicyFileError(
                        f"{path} is a safetensors file, but not an lrpilot policy"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise PolicyFileError(
                f"{path} is not a safetensors file, or is truncated: {error}"
            ) from error
        return cls._from_file(path, tensors, metadata["lrpilot"])

    @classmethod
    def _from_file(cls, path: Path, tensors: dict[str, Array], text: str) -> Self:
        try:
            header = json.loads(text)
            version = int(header["format_version"])
            if version > FORMAT_VERSION:
                raise PolicyFileError(
                    f"{path} has policy format {version}, this lrpilot reads up to "
                    f"{FORMAT_VERSION}: upgrade lrpilot"
                )
            architecture = header["architecture"]
            if (architecture["kind"], architecture["activation"]) != ("mlp", "tanh"):
                raise PolicyFileError(f"{path} holds an unknown architecture: {architecture}")
            layers = [
                (tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"])
                for i in range(len(tensors) // 2)
            ]
            return cls(
                layers=layers,
                observation=ObservationSpec.from_dict(header["observation"]),
                action=ActionSpec.from_dict(header["action"]),
                clock=ClockSpec.from_dict(header["clock"]),
                output=architecture["output"],
                card=header["card"],
            )
        except PolicyFileError:
            raise
        except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise PolicyFileError(f"{path} is not a valid lrpilot policy: {error}") from error

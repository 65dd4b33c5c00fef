"""The file of a policy: one JSON header and float32 arrays, in safetensors."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

LARGEST_FILE = 64 * 2**20
LARGEST_HEADER = 2**20

Array = NDArray[np.float32]


class PolicyFileError(ValueError):
    """A file that is not a readable lrpilot policy."""


def content_digest(header: dict[str, Any], tensors: dict[str, Array]) -> str:
    """SHA-256 of everything that a policy file says: the header with the card, and the arrays."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def read_policy_file(path: Path) -> tuple[str, dict[str, Array]]:
    """The header, as JSON, and the arrays of a policy file.

    Raises:
        PolicyFileError: if it is foreign, damaged or too large.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise PolicyFileError(f"{path} is no lrpilot policy: it has {path.stat().st_size} bytes")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if "lrpilot" not in metadata:
                raise PolicyFileError(f"{path} is a safetensors file, but not an lrpilot policy")
            if len(metadata["lrpilot"]) > LARGEST_HEADER:
                raise PolicyFileError(f"{path} is no lrpilot policy: its header is too long")
            tensors = {}
            for name in file.keys():  # noqa: SIM118 (no mapping)
                kind = file.get_slice(name).get_dtype()
                if kind != "F32":
                    raise PolicyFileError(
                        f"{path} must hold float32 arrays alone, got {name!r} of {kind}"
                    )
                tensors[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise PolicyFileError(
            f"{path} is not a safetensors file, or is truncated: {error}"
        ) from error
    return metadata["lrpilot"], tensors

"""What an offline run of Weights & Biases holds, read from its file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_RECORD: Any = wandb_internal_pb2

_BLOCK = 32 * 1024
_FILE_HEADER = 7
_CHUNK_HEADER = 7
_FIRST, _MIDDLE, _LAST = 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, which is a log of LevelDB's after seven bytes."""
    content, position, kept = path.read_bytes(), _FILE_HEADER, b""
    while position + _CHUNK_HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _CHUNK_HEADER:
            position += left
            continue
        size = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        position += _CHUNK_HEADER
        kept += content[position : position + size]
        position += size
        if kind not in (_FIRST, _MIDDLE):
            yield _RECORD.Record.FromString(kept)
            kept = b""


def read_run(folder: Path) -> dict[str, Any]:
    """Labels, configuration, last history and artifacts of the one offline run in a folder."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, Any] = {"history": {}, "artifacts": []}
    for record in records(path):
        if record.HasField("run"):
            run = record.run
            found |= {
                "name": run.display_name,
                "group": run.run_group,
                "job_type": run.job_type,
                "tags": list(run.tags),
                "config": {item.key: json.loads(item.value_json) for item in run.config.update},
            }
        elif record.HasField("history"):
            for item in record.history.item:
                key = item.key or ".".join(item.nested_key)
                found["history"][key] = json.loads(item.value_json)
        elif record.HasField("artifact"):
            artifact = record.artifact
            found["artifacts"].append(
                {
                    "type": artifact.type,
                    "metadata": json.loads(artifact.metadata or "{}"),
                    "files": [entry.path for entry in artifact.manifest.contents],
                }
            )
    return found

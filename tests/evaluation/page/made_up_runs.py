"""Files as evaluations write them, with made-up curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

FACTORS = (0.1, 1.0, 10.0)
ORIGIN = {
    "part": "report",
    "command": "python scripts/evaluate.py task=digits",
    "lrpilot": "0.9.0",
    "torch": "2.13.0",
    "commit": "0123456789ab",
    "machine": "Linux x86_64",
}


def make_row(
    scheduler: str = "policy",
    factor: float = 1.0,
    seed: int = 0,
    *,
    total_steps: int = 300,
    num_steps: int | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The row of a training that decays; with `num_steps` below `total_steps` it diverged."""
    rng = np.random.default_rng([len(scheduler), int(10 * factor), seed])
    diverged = num_steps is not None
    left = 1 - np.arange(num_steps or total_steps) / total_steps
    losses = 0.3 + 2 * left**2 + rng.uniform(0, 0.1, len(left))
    held_out = math.inf if diverged else 0.3 + abs(math.log10(factor)) / 4 + rng.uniform(0, 0.1)
    return {
        "task": "digits",
        "scheduler": scheduler,
        "initial_lr_factor": factor,
        "initial_lr": 0.05 * factor,
        "seed": seed,
        "total_steps": total_steps,
        "first_loss": float(losses[0]),
        "train_loss": float(losses[-1]),
        "held_out_loss": held_out,
        "diverged": int(diverged),
        "seconds": 0.5,
        **ORIGIN,
        "lrs": (0.05 * factor * left).tolist(),
        "losses": losses.tolist(),
        **changes,
    }


def make_rows(
    schedulers: Sequence[str] = ("policy", "constant", "cosine"),
    *,
    tasks: Sequence[str] = ("digits",),
    factors: Sequence[float] = FACTORS,
    num_seeds: int = 2,
    **changes: Any,
) -> list[dict[str, Any]]:
    """The rows of a whole grid."""
    return [
        make_row(scheduler, factor, seed, task=task, **changes)
        for task in tasks
        for seed in range(num_seeds)
        for factor in factors
        for scheduler in schedulers
    ]


def write_runs(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Write the rows as the `runs.parquet` of a folder; returns the folder."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, folder / "runs.parquet")
    return folder

"""However many environments there are, their data set lies in memory once."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrpilot.envs import WorkerVecEnv, make_vec_env
from lrpilot.tasks.images.models import mlp, small_cnn
from lrpilot.tasks.images.task import ImageTask

NEIGHBOUR = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDER = os.environ.get("LRPILOT_DATA") or (str(NEIGHBOUR) if NEIGHBOUR.is_dir() else None)
BATCH_SIZE = 5_500


def image_task(data: Any, **changes: Any) -> Any:
    return ImageTask(
        name=data,
        data=data,
        optimizer=torch.optim.SGD,
        base_lr=0.01,
        total_steps=10,
        **changes,
    )


def private_bytes(pid: int) -> Any:
    """Memory of a process that no other one has a share in (unique set size)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = [line.split()[1] for line in lines if line.startswith("Private_")]
    return 1024 * sum(map(int, sizes))


@pytest.mark.parametrize("model", [small_cnn, partial(mlp, width=8)])
def test_looped_environments_share_one_copy(model: Any) -> None:
    task = image_task("digits", model=model)
    env = make_vec_env(task, 3, runner="looped")
    env.reset()
    runs = env.get_attr("run")
    assert len({id(run) for run in runs}) == 3
    for name in ("train_x", "held_out_x", "test_x"):
        assert len({getattr(run.data, name).data_ptr() for run in runs}) == 1


def private_bytes_per_worker(num_train: Any) -> Any:
    """Of workers that have each gone through the training images once, and the rest of the set."""
    task = image_task(
        "fashion_mnist",
        model=partial(mlp, width=8),
        batch_size=BATCH_SIZE,
        num_train=num_train,
        num_privileged=5_000,
        data_dir=FOLDER,
    )
    env = make_vec_env(task, 2, runner="subprocess", num_decisions=2, initial_lr_factors=(1, 1))
    assert isinstance(env, WorkerVecEnv)
    assert len(env.pids) == min(2, os.cpu_count() or 1)
    env.seed(0)
    env.reset()
    env.step(np.zeros((2, 1), np.float32))
    found = [private_bytes(pid) for pid in env.pids]
    env.close()
    return max(found)


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="needs the image files: set LRPILOT_DATA")
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
def test_a_worker_has_no_copy_of_its_own() -> None:
    num_bytes = (55_000 - BATCH_SIZE) * 28 * 28 * 4
    least = private_bytes_per_worker(BATCH_SIZE)
    # what an allocator keeps comes and goes; a copy would be there every time
    more = min(private_bytes_per_worker(55_000) - least for _ in range(2))
    assert more < num_bytes / 5

"""Cells that Ray's workers train."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrpilot.envs.ray_connection import connect
from lrpilot.evaluation.methods.schedules import constant, cosine
from lrpilot.evaluation.runs.cell import Cell, grid_of
from lrpilot.evaluation.runs.cluster import NUM_RETRIES, Cluster
from lrpilot.evaluation.runs.grid import Method
from lrpilot.evaluation.runs.runner import Runner
from lrpilot.evaluation.runs.store import Store
from lrpilot.tasks.quadratic import QuadraticTask
from tests.evaluation.runs.test_runner import no_bar, without_seconds

pytest.importorskip("ray")


@dataclass(frozen=True)
class Killed:
    """Kills its process, so many times in all, as when a system runs out of memory."""

    folder: Path
    num_kills: int

    def __call__(self, optimizer: Optimizer, *, total_steps: int) -> LRScheduler:
        num = len(list(self.folder.iterdir()))
        if num < self.num_kills:
            (self.folder / str(num)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return constant(optimizer, total_steps=total_steps)


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    """Of this process, which all comparisons use."""
    ray, _ = connect("local", num_cpus=2)
    yield ray
    ray.shutdown()


@pytest.fixture
def on_ray(tmp_path: Path) -> Callable[..., Runner]:
    return lambda **cluster: Runner(Store(tmp_path / "store"), no_bar, 2, Cluster(**cluster))


@pytest.mark.slow
def test_what_no_machine_has_is_refused(task: QuadraticTask, on_ray: Callable[..., Runner]) -> None:
    with pytest.raises(ValueError, match="`num_gpus` must be at most the 0 of the cluster, got 8"):
        on_ray(num_gpus=8).run([Cell(task, Method("cosine", cosine), 1.0, 3)], "")


@pytest.mark.slow
def test_an_address_without_a_cluster_is_named() -> None:
    with pytest.raises(ValueError, match="`ray_address` must be local, or that of a running"):
        connect("auto", num_cpus=1)


@pytest.mark.slow
@pytest.mark.usefixtures("connection")
def test_ray_gives_the_same_runs_though_a_worker_is_killed(
    task: QuadraticTask, tmp_path: Path, on_ray: Callable[..., Runner]
) -> None:
    (tmp_path / "kills").mkdir()
    methods = [Method("cosine", cosine), Method("killed", Killed(tmp_path / "kills", 1))]
    cells = grid_of(task, methods, initial_lr_factors=[0.1, 1.0], seeds=[3])
    found = on_ray().run(cells, "")
    assert len(list((tmp_path / "kills").iterdir())) == 1
    here = Runner(Store(tmp_path / "here"), no_bar).run(cells, "")
    assert repr(without_seconds(found)) == repr(without_seconds(here))
    assert len(list((tmp_path / "store").glob("*.parquet"))) == len(cells)


@pytest.mark.slow
@pytest.mark.usefixtures("connection")
def test_a_worker_that_is_killed_again_and_again_ends_the_comparison(
    task: QuadraticTask, tmp_path: Path, on_ray: Callable[..., Runner]
) -> None:
    (tmp_path / "kills").mkdir()
    cell = Cell(task, Method("killed", Killed(tmp_path / "kills", 99)), 1.0, 3)
    with pytest.raises(RuntimeError, match=f"was killed {1 + NUM_RETRIES} times"):
        on_ray().run([cell], "")
    assert len(list((tmp_path / "kills").iterdir())) == 1 + NUM_RETRIES


@pytest.mark.slow
def test_a_connection_of_this_process_is_used_and_kept(connection: Any) -> None:
    assert dict(Cluster().map(len, {"a": "x", "b": "xy"}, num_workers=2)) == {"a": 1, "b": 2}
    assert connection.is_initialized()


@pytest.mark.parametrize("given", [{"num_cpus": 0}, {"num_gpus": -1.0}, {"num_gpus": 1.5}])
def test_a_bad_number_is_named(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` must be"):
        Cluster(**given)  # type: ignore[arg-type]


def test_a_cluster_needs_a_worker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`num_workers` must be at least 1 on a cluster, got 0"):
        Runner(Store(tmp_path), no_bar, 0, Cluster())

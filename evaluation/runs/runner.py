"""Train the cells of a comparison, here, in processes or on Ray; none that is finished, twice."""

import dataclasses
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from lrpilot.envs.start_method import known_start_method
from lrpilot.evaluation.runs.cell import Cell
from lrpilot.evaluation.runs.cluster import Cluster
from lrpilot.evaluation.runs.grid import Result
from lrpilot.evaluation.runs.store import Store

Progress = Callable[..., Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Runner:
    """Trains what its store does not hold yet, and keeps every run as soon as it is finished.

    Args:
        store: of finished runs.
        progress: called as `progress(iterable, total=..., desc=...)`; shows how far it is.
        num_workers: processes that train side by side, each on as many threads as this one; with
            0, this one trains.
        cluster: where to train instead; the workers are then Ray's, `num_workers` at a time.

    Raises:
        ValueError: if `num_workers` is negative, or 0 with a cluster.
    """

    store: Store
    progress: Progress
    num_workers: int = 0
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        least = 0 if self.cluster is None else 1
        if self.num_workers < least:
            where = "" if self.cluster is None else " on a cluster"
            raise ValueError(
                f"`num_workers` must be at least {least}{where}, got {self.num_workers}"
            )

    def run(self, cells: Sequence[Cell], desc: str) -> list[Result]:
        """The results of the cells, in their order.

        A process that is killed loses the runs in flight alone: with the same store, the same
        cells go on from there, and end with the same results.

        Raises:
            ValueError: if a kept run is damaged or of another version, or a cell cannot be sent
                to another process.
            RuntimeError: if a worker was killed; on a cluster, again and again.
        """
        known = {cell.name: self.store.read(cell.name) for cell in cells}
        missing = {cell.name: cell for cell in cells if known[cell.name] is None}
        if self.cluster is not None and missing:
            train = self._train_on_cluster
        else:
            train = self._train_in_processes if self.num_workers else self._train_here
        for name, result in self.progress(train(missing), total=len(missing), desc=desc):
            known[name] = result
        results = []
        for cell in cells:
            finished = known[cell.name]
            assert finished is not None
            row = {**cell.labels, **finished.row, "part": cell.part}
            results.append(dataclasses.replace(finished, row=row))
        return results

    def _train_here(self, missing: dict[str, Cell]) -> Iterator[tuple[str, Result]]:
        for name, cell in missing.items():
            yield name, _train(self.store, cell)

    def _train_on_cluster(self, missing: dict[str, Cell]) -> Iterator[tuple[str, Result]]:
        assert self.cluster is not None
        trained = self.cluster.map(Cell.train, missing, num_workers=self.num_workers)
        for name, result in trained:
            # here: another machine may not see this folder
            self.store.write(name, result)
            yield name, result

    def _train_in_processes(self, missing: dict[str, Cell]) -> Iterator[tuple[str, Result]]:
        for cell in missing.values():
            try:
                pickle.dumps(cell)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"`num_workers` must be 0 for {cell.method.name!r} on {cell.task.name!r}, "
                    f"which cannot be sent to another process: {error}"
                ) from error
        with ProcessPoolExecutor(
            self.num_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(torch.get_num_threads(),),
        ) as pool:
            with known_start_method():
                names = {pool.submit(_train, self.store, c): name for name, c in missing.items()}
            num_done = 0
            try:
                for future in as_completed(names):
                    result = future.result()
                    num_done += 1
                    yield names[future], result
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"a worker process was killed; {num_done} of {len(missing)} runs are finished "
                    f"and kept in {self.store.folder}, and the same command with this store goes on"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


def _train(store: Store, cell: Cell) -> Result:
    result = cell.train()
    store.write(cell.name, result)
    return result

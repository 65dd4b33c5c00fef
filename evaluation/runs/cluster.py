"""A cluster of Ray that trains the cells of a comparison."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from lrpilot.envs.ray_connection import connect

Item = TypeVar("Item")
Value = TypeVar("Value")

NUM_RETRIES = 2
"""How often an item is begun again whose worker was killed, or whose machine went."""


@dataclass(frozen=True)
class Cluster:
    """Where Ray runs, and what one of its workers needs. It needs the extra `sweep`.

    Args:
        address: as that of `connect`.
        num_cpus: of a worker, and its threads in torch; at least 1.
        num_gpus: of a worker: a share of one that several workers have, or whole ones. Ray shows a
            worker its own GPUs alone.

    Raises:
        ValueError: if a number is out of range.
    """

    address: str = "local"
    num_cpus: int = 1
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.num_cpus < 1:
            raise ValueError(f"`num_cpus` must be at least 1, got {self.num_cpus}")
        is_possible = self.num_gpus in range(1024) or 0 < self.num_gpus < 1
        if not is_possible:
            raise ValueError(f"`num_gpus` must be a share of 1 or whole, got {self.num_gpus}")

    def map(
        self, work: Callable[[Item], Value], items: Mapping[str, Item], *, num_workers: int
    ) -> Iterator[tuple[str, Value]]:
        """Name and result of every item, as they come in.

        Args:
            work: called with each item in a worker, which is sent both.
            items: by name.
            num_workers: items that are worked on at the same time.

        Raises:
            ImportError: if Ray is not installed.
            ValueError: if there is no cluster at the address, or nowhere what a worker needs.
            RuntimeError: if the worker of an item was killed again and again.
        """
        ray, is_own = connect(self.address, num_cpus=num_workers * self.num_cpus)
        try:
            self._require_resources(ray)
            needs = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
            task = ray.remote(max_retries=NUM_RETRIES, **needs)(_work)
            shared, waiting = ray.put(work), list(items)
            running: dict[Any, str] = {}
            while waiting or running:
                while waiting and len(running) < num_workers:
                    name = waiting.pop(0)
                    running[task.remote(shared, items[name], self.num_cpus)] = name
                (done, *_), _ = ray.wait(list(running))
                name = running.pop(done)
                try:
                    result = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    raise RuntimeError(
                        f"the worker of {name} was killed {1 + NUM_RETRIES} times: {error}"
                    ) from error
                yield name, result
        finally:
            if is_own:
                ray.shutdown()

    def _require_resources(self, ray: Any) -> None:
        """A task that fits nowhere would wait for ever."""
        there = ray.cluster_resources()
        for kind, needed in (("CPU", self.num_cpus), ("GPU", self.num_gpus)):
            if there.get(kind, 0) < needed:
                raise ValueError(
                    f"`num_{kind.lower()}s` must be at most the {there.get(kind, 0):g} of the "
                    f"cluster, got {needed:g}"
                )


def _work(work: Callable[[Item], Value], item: Item, num_threads: int) -> Value:
    torch.set_num_threads(num_threads)
    return work(item)

"""Workers that are actors of Ray, on this machine or on those of a cluster."""

from collections.abc import Sequence
from typing import Any

from lrpilot.envs.ray_connection import connect
from lrpilot.envs.workers import MakeEnvs, Worker, WorkerError


class RayWorkers:
    """One actor each, with one processor core, and where that is wanted with a GPU of its own.

    What makes the environments is put once into Ray's object store, so that it lies in memory once
    per machine; data sets lie once per machine in the files of the cache (`share_tensors`).

    Args:
        make_envs: makes the environments of a worker.
        sizes: how many each of them has.
        address: as that of `connect`.
        use_gpu: whether a worker needs a GPU; where there are more workers than GPUs, several
            share one.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: if there is no cluster at the address, or it has fewer cores than there are
            workers, or no GPU where one is needed.
    """

    def __init__(
        self,
        make_envs: MakeEnvs,
        sizes: Sequence[int],
        *,
        address: str = "local",
        use_gpu: bool = False,
    ) -> None:
        self._ray, self._is_own = connect(address, num_cpus=len(sizes))
        self._sizes = sizes
        try:
            needed = self._resources(use_gpu)
        except ValueError:
            self.close()
            raise
        self._actor_class = self._ray.remote(max_restarts=0, **needed)(Worker)
        self._make_envs = self._ray.put(make_envs)
        self._actors: dict[int, Any] = {}
        self._answers: dict[int, Any] = {}

    def _resources(self, use_gpu: bool) -> dict[str, float]:
        available = self._ray.cluster_resources()
        num_cores, num_gpus = available.get("CPU", 0), available.get("GPU", 0)
        if num_cores < len(self._sizes):
            raise ValueError(
                f"`num_workers` must be at most the {num_cores:.0f} cores of the Ray cluster, got "
                f"{len(self._sizes)}"
            )
        if not use_gpu:
            return {"num_cpus": 1}
        if num_gpus == 0:
            raise ValueError("`task.device` must be cpu in a Ray cluster without a GPU, got cuda")
        return {"num_cpus": 1, "num_gpus": min(1.0, num_gpus / len(self._sizes))}

    def start(self, worker: int) -> None:
        """Start an actor."""
        actor = self._actor_class.remote(self._make_envs, self._sizes[worker])
        self._actors[worker] = actor
        self._answers[worker] = actor.say_hello.remote()

    def send(self, worker: int, message: bytes) -> None:
        """Send a message."""
        self._answers[worker] = self._actors[worker].answer.remote(message)

    def ready(self, workers: list[int], seconds: float) -> list[int]:
        """Those that have answered, or ended."""
        answers = [self._answers[worker] for worker in workers]
        if not self._ray.wait(answers, num_returns=1, timeout=seconds)[0]:
            return []
        ready, _ = self._ray.wait(answers, num_returns=len(answers), timeout=0)
        return [worker for worker in workers if self._answers[worker] in ready]

    def receive(self, worker: int) -> bytes:
        """The answer of an actor."""
        try:
            answer: bytes = self._ray.get(self._answers[worker])
        except self._ray.exceptions.RayError as error:
            # paragraphs on what may have happened follow
            what = [*str(error).strip().splitlines(), type(error).__name__][0]
            raise WorkerError(f"{self.name(worker)} ended: {what}") from None
        return answer

    def name(self, worker: int) -> str:
        """Its number."""
        return f"worker {worker} (an actor of Ray)"

    def stop(self, worker: int) -> None:
        """Kill an actor."""
        self._ray.kill(self._actors[worker], no_restart=True)

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        if self._is_own:
            self._ray.shutdown()
            return
        for worker in self._actors:
            self.stop(worker)

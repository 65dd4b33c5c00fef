"""A crew of workers in which those that die are started again."""

import logging
import pickle
from collections.abc import Callable, Iterable
from typing import Any

from lrpilot.envs.workers import Hello, WorkerError, Workers

Message = tuple[str, tuple[Any, ...], dict[str, Any]]
"""The name of a method, its arguments and its keyword arguments."""

# to make environments and to start episodes, which may read gigabytes
FIRST_PATIENCE_SECONDS = 3600.0
STEPS_OF_PATIENCE = 100.0
MOST_RESTARTS_IN_A_ROW = 3

logger = logging.getLogger(__name__)


class Crew:
    """Speaks to workers, and starts those again that die or are stuck.

    Args:
        workers: how they are started and spoken to.
        num_workers: how many.
        patience: seconds without an answer after which they count as stuck, once a step has been
            made; at least a hundred times the slowest step.

    Raises:
        WorkerError: by any method, if a worker that has been started again three times dies before
            its next step; all are then ended.
    """

    def __init__(self, workers: Workers, num_workers: int, *, patience: float) -> None:
        self._workers = workers
        self._patience = patience
        self._slowest_step: float | None = None
        self._is_closed = False
        self._num_in_a_row = [0] * num_workers
        # what ended them, of those that are to be started again
        self._dead: dict[int, str] = {}
        self.lost: set[int] = set()
        """Those that have died since their environments have last begun episodes."""
        self.hello: dict[int, Hello] = {}
        """What each of them has said at its last start."""
        self.num_deaths = 0
        """How many have died so far."""

    def start(self) -> None:
        """Start them all."""
        self._start(range(len(self._num_in_a_row)))
        while self._dead:
            self._start_again()

    def _start(self, workers: Iterable[int]) -> None:
        for worker in workers:
            self._workers.start(worker)
        self.hello |= self._receive(workers, FIRST_PATIENCE_SECONDS)

    def _start_again(self) -> None:
        """Start the workers again that have died."""
        dead, self._dead = self._dead, {}
        for worker, reason in dead.items():
            if self._num_in_a_row[worker] == MOST_RESTARTS_IN_A_ROW:
                self.close()
                raise WorkerError(
                    f"{reason}; it had been started again {MOST_RESTARTS_IN_A_ROW} times since its "
                    "last step"
                )
            self._num_in_a_row[worker] += 1
        self._start(dead)

    def send(self, worker: int, name: str, *args: Any, **kwargs: Any) -> None:
        """Send a message to a worker that is not lost."""
        if self._is_closed:
            raise WorkerError("the workers have ended: make the environments anew")
        self._workers.send(worker, pickle.dumps((name, args, kwargs)))

    def _receive(self, workers: Iterable[int], patience: float) -> dict[int, Any]:
        """The answers of those that do not die; all are read before an error is raised."""
        answers: dict[int, Any] = {}
        pending = list(workers)
        # seconds are counted one by one: those in which this process itself is stopped are not
        waited = 0
        while pending:
            ready = self._workers.ready(pending, 1.0)
            waited = 0 if ready else waited + 1
            if waited >= patience:
                ready = pending
            for worker in ready:
                try:
                    if waited >= patience:
                        raise WorkerError(self._silence(worker, waited))
                    answers[worker] = pickle.loads(self._workers.receive(worker))
                except WorkerError as error:
                    self._bury(worker, error)
            pending = [worker for worker in pending if worker not in ready]
        for answer in answers.values():
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _silence(self, worker: int, seconds: int) -> str:
        slowest = "" if self._slowest_step is None else f"; a step took {self._slowest_step:.3g} s"
        return (
            f"no answer for {seconds} s from {self._workers.name(worker)}{slowest}: it was stopped "
            "or waits for something that does not come"
        )

    def _bury(self, worker: int, error: WorkerError) -> None:
        logger.warning("%s; it is started again, and its episodes are lost", error)
        self._workers.stop(worker)
        self._dead[worker] = str(error)
        self.num_deaths += 1
        self.lost.add(worker)

    def ask(
        self, workers: Iterable[int], message: Callable[[int], Message], *, is_first: bool = False
    ) -> dict[int, Any]:
        """The answers of all these workers, of those that die when they have been started again."""
        answers: dict[int, Any] = {}
        while waiting := [worker for worker in workers if worker not in answers]:
            while self._dead:
                self._start_again()
            for worker in waiting:
                name, args, kwargs = message(worker)
                self.send(worker, name, *args, **kwargs)
            patience = FIRST_PATIENCE_SECONDS if is_first else self._patience_now()
            answers |= self._receive(waiting, patience)
        return answers

    def receive(self, workers: Iterable[int]) -> dict[int, Any]:
        """The answers of those among these workers that do not die."""
        return self._receive(workers, self._patience_now())

    def have_stepped(self, workers: Iterable[int]) -> None:
        """Note that these workers have made a step."""
        for worker in workers:
            self._num_in_a_row[worker] = 0

    def took(self, seconds: float) -> None:
        """Note how long a step of all of them took."""
        self._slowest_step = max(self._slowest_step or 0.0, seconds)

    def _patience_now(self) -> float:
        if self._slowest_step is None:
            return FIRST_PATIENCE_SECONDS
        return max(self._patience, STEPS_OF_PATIENCE * self._slowest_step)

    def close(self) -> None:
        """End the workers; one that does not end by itself is killed."""
        self._is_closed = True
        self._workers.close()

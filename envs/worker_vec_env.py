"""WorkerVecEnv: environments in a few workers, of which any may die."""

import atexit
import time
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from lrpilot.envs.crew import Crew, Message
from lrpilot.envs.indices import selected
from lrpilot.envs.lost_episodes import lost_info
from lrpilot.envs.process_workers import ProcessWorkers
from lrpilot.envs.workers import MakeEnvs, Workers

Array = NDArray[np.float32]
Step = tuple[Array, Array, NDArray[np.bool_], list[dict[str, Any]]]


def looped(make_env: Callable[[], gymnasium.Env[Any, Any]], num_envs: int) -> VecEnv:
    """So many environments, which step one after the other."""
    return DummyVecEnv([make_env] * num_envs)


class WorkerVecEnv(VecEnv):
    """B environments in W workers, which step side by side.

    Where the workers loop over their environments (`looped`), it gives exactly what SB3's
    `DummyVecEnv` gives with one torch thread. It differs from SB3's `SubprocVecEnv` in what long
    trainings need: a worker may have many environments; an exception in an environment is raised
    here; and a worker may die, or be stuck, without an end of the training.

    **A worker that dies** (killed, out of memory, stuck for longer than `patience`, or with its
    machine) is started again, while the others wait, and the episodes of its environments are
    lost. At the step in which that is noticed, these environments give the first observation of
    new episodes, reward 0, done, and the info of `lost_info`: a truncation at the last observation
    before. In the rollout of an agent, the last transition of a lost episode is therefore worth
    what the critic expects of the state it was in, whatever the action; with a discount of 1 its
    advantage is 0, and the transitions before it are valued as where a rollout ends in mid-episode.
    The new episodes are drawn by generators seeded with `SeedSequence([seed, i, n])`, where `seed`
    is that of `seed`, i the first environment of the worker and n the number of workers that have
    died so far, so that the same deaths at the same steps give the same training. What `set_attr`
    has set in a worker that dies is lost. A worker that has been started again three times and
    then dies before its next step is an error.

    Args:
        make_envs: makes the environments of one worker, as `partial(looped, make_env)` does.
        num_envs: B, at least 1.
        num_workers: W, 1 to `num_envs`; each has one torch thread.
        patience: seconds without an answer after which the workers count as stuck, once a step
            has been made; at least a hundred times the slowest step. The start of workers and of
            episodes is waited for an hour.
        start_workers: called as `start_workers(make_envs, sizes)`; default processes.

    Raises:
        ValueError: if a count is out of range.
        WorkerError: by any method, if a worker dies again and again.
    """

    def __init__(
        self,
        make_envs: MakeEnvs,
        num_envs: int,
        *,
        num_workers: int,
        patience: float = 600.0,
        start_workers: Callable[[MakeEnvs, list[int]], Workers] = ProcessWorkers,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"`num_envs` must be at least 1, got {num_envs}")
        if not 1 <= num_workers <= num_envs:
            raise ValueError(f"`num_workers` must be 1 to {num_envs}, got {num_workers}")
        shares = np.array_split(np.arange(num_envs), num_workers)
        self._shares: list[list[int]] = [share.tolist() for share in shares]
        self._first_seed: int | None = None
        workers = start_workers(make_envs, [len(share) for share in self._shares])
        self._crew = Crew(workers, num_workers, patience=patience)
        atexit.register(self.close)
        try:
            self._crew.start()
        except BaseException:
            self.close()
            raise
        hello = self._crew.hello
        self._num_states = [hello[worker].num_states for worker in range(num_workers)]
        # of the last step or reset, which comes before this is read
        self._last = np.zeros((num_envs, 0), np.float32)
        super().__init__(num_envs, hello[0].observation_space, hello[0].action_space)

    def seed(self, seed: int | None = None) -> list[int]:
        """Seed environment i with seed + i at the next reset."""
        seeds = [int(drawn) for drawn in super().seed(seed) if drawn is not None]
        self._first_seed = seeds[0]
        self._crew.ask(
            range(len(self._shares)),
            lambda worker: ("seed", (seeds[self._shares[worker][0]],), {}),
        )
        return seeds

    def reset(self) -> Array:
        """Start all episodes; returns observations of shape (B, features)."""
        everyone = range(len(self._shares))
        begun = self._begin(everyone)
        self._last = np.concatenate([begun[worker] for worker in everyone])
        return self._last.copy()

    def _begin(self, workers: Iterable[int]) -> dict[int, Array]:
        """First observations of new episodes."""
        begun = self._crew.ask(
            workers, lambda worker: ("begin", (self._new_seed(worker),), {}), is_first=True
        )
        self._crew.lost -= begun.keys()
        return begun

    def _new_seed(self, worker: int) -> int | None:
        """For the generators of a worker that has been started again."""
        if worker not in self._crew.lost or self._first_seed is None:
            return None
        entropy = [self._first_seed, self._shares[worker][0], self._crew.num_deaths]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def step_async(self, actions: Array) -> None:
        """Send the actions, of shape (B, 1), to the workers."""
        for worker in self._sound():
            self._crew.send(worker, "step", actions[self._shares[worker]])

    def _sound(self) -> list[int]:
        """The workers whose environments are in the episodes that the agent knows."""
        return [worker for worker in range(len(self._shares)) if worker not in self._crew.lost]

    def step_wait(self) -> Step:
        """Wait until every environment has made its step, or has lost its episode."""
        start = time.monotonic()
        asked = self._sound()
        steps: dict[int, Step] = self._crew.receive(asked)
        if len(steps) == len(asked):
            self._crew.took(time.monotonic() - start)
        self._crew.have_stepped(steps)
        for worker, observations in self._begin(sorted(self._crew.lost)).items():
            infos = [lost_info(self._last[i].copy()) for i in self._shares[worker]]
            size = len(infos)
            steps[worker] = observations, np.zeros(size, np.float32), np.ones(size, bool), infos
        in_order = [steps[worker] for worker in range(len(self._shares))]
        all_observations, rewards, dones, infos_of_each = zip(*in_order, strict=True)
        self._last = np.concatenate(all_observations)
        return (
            self._last.copy(),
            np.concatenate(rewards),
            np.concatenate(dones),
            [info for infos in infos_of_each for info in infos],
        )

    def state_dict(self) -> dict[str, Any]:
        """The states of all environments, of those that have just lost their episode None."""
        asked = self._sound()
        for worker in asked:
            self._crew.send(worker, "states")
        states = self._crew.receive(asked)
        return {
            "states": [
                state
                for worker, num_states in enumerate(self._num_states)
                for state in states.get(worker, [None] * num_states)
            ],
            "num_deaths": self._crew.num_deaths,
            "last_observations": self._last.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many environments, with as many workers if batched."""
        states, num_states = state["states"], sum(self._num_states)
        if len(states) != num_states:
            raise ValueError(f"it is one of {len(states)} states, and {num_states} are needed")
        ends = np.cumsum(self._num_states).tolist()
        parts = {
            worker: states[end - size : end]
            for worker, (end, size) in enumerate(zip(ends, self._num_states, strict=True))
        }
        self._crew.lost = {worker for worker, part in parts.items() if None in part}
        self._crew.num_deaths = state["num_deaths"]
        self._last = np.array(state["last_observations"], np.float32)
        asked = [worker for worker in parts if worker not in self._crew.lost]
        self._crew.ask(asked, lambda w: ("load_states", (parts[w],), {}), is_first=True)
        # also of those that had to be started again meanwhile
        self._crew.lost -= set(asked)

    @property
    def pids(self) -> list[int]:
        """The processes of the workers as they are now."""
        return [hello.pid for _, hello in sorted(self._crew.hello.items())]

    def close(self) -> None:
        """End the workers; one that does not end by itself is killed."""
        self._crew.close()
        atexit.unregister(self.close)

    def _call(self, name: str, *args: Any, indices: Any, **kwargs: Any) -> list[Any]:
        """Call a method that answers with a list, once per worker concerned."""
        wanted = selected(indices, self.num_envs)
        mine = {
            worker: [i for i in wanted if i in share]
            for worker, share in enumerate(self._shares)
            if not set(wanted).isdisjoint(share)
        }

        def message(worker: int) -> Message:
            inside = [i - self._shares[worker][0] for i in mine[worker]]
            return name, args, {**kwargs, "indices": inside}

        answers = self._crew.ask(mine, message)
        found = {
            i: value
            for worker, rows in mine.items()
            for i, value in zip(rows, answers[worker], strict=True)
        }
        return [found[i] for i in wanted]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of each environment, copied."""
        return self._call("get_attr", attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of each environment."""
        self.env_method("__setattr__", attr_name, value, indices=indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment."""
        return self._call("env_method", method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """Whether each environment has this wrapper."""
        return self._call("env_is_wrapped", wrapper_class, indices=indices)

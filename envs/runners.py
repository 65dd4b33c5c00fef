"""The ways of running many environments of one task, and which of them is fastest."""

import hashlib
import json
import logging
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

import lrpilot
from lrpilot.envs.episodes import settings_for
from lrpilot.envs.lr_control import LRControlEnv
from lrpilot.envs.process_workers import ProcessWorkers
from lrpilot.envs.ray_workers import RayWorkers
from lrpilot.envs.vec_lr_control import LRControlVecEnv
from lrpilot.envs.worker_vec_env import WorkerVecEnv, looped
from lrpilot.envs.workers import MakeEnvs, Workers
from lrpilot.files import write_whole
from lrpilot.policy.settings import ControlSettings
from lrpilot.tasks.data.files import cache_folder
from lrpilot.tasks.shipped import load_task
from lrpilot.tasks.task import Task

# in the order in which a tie is decided
MEASURED = ("looped", "subprocess", "batched")
RUNNERS = (*MEASURED, "ray")
MARGIN = 1.1
# where jobs share a machine: the cores of each
CORES_VARIABLE = "LRPILOT_NUM_CORES"
RATES = "inner_steps_per_second"

# how long one decision interval of all environments, looped, is measured; it is shortened to that
INTERVAL_SECONDS = 0.3
MIN_INTERVAL_STEPS = 2

logger = logging.getLogger(__name__)


def make_vec_env(
    task: Task | str,
    num_envs: int,
    settings: ControlSettings | None = None,
    *,
    runner: str = "auto",
    num_workers: int | None = None,
    worker_runner: str = "looped",
    ray_address: str = "local",
    **arguments: Any,
) -> VecEnv:
    """Environments of one task for Stable-Baselines3.

    | runner       | how they run                                   | equal to looped           |
    |--------------|------------------------------------------------|---------------------------|
    | "looped"     | one after the other                            |                           |
    | "subprocess" | in `num_workers` processes, each with one      | exactly, if that has one  |
    |              | torch thread                                   | thread                    |
    | "batched"    | as one tensor computation (`LRControlVecEnv`), | to rounding               |
    |              | if the task has one                            |                           |
    | "ray"        | in `num_workers` actors of Ray, on this        | as "subprocess"           |
    |              | machine or those of a cluster                  |                           |
    | "auto"       | in the fastest of the first three, as it was   |                           |
    |              | once measured; see `fastest_runner`            |                           |
    | "measure"    | the same, measured anew                        |                           |

    Close the environments after use: that ends the workers. A worker that dies is started again;
    see `WorkerVecEnv`.

    Args:
        task: the inner training problem, or the name of a shipped one.
        num_envs: how many, at least 1.
        settings: as those of `LRControlEnv`.
        runner: one of these six.
        num_workers: processes of "subprocess", or actors of "ray", at most `num_envs`; default as
            many as this process may use cores.
        worker_runner: how a worker runs its environments, "looped" or "batched".
        ray_address: of a Ray cluster, as "auto"; "local" starts Ray on this machine.
        **arguments: as those of `LRControlEnv`.

    Raises:
        ValueError: if an argument is out of range, or the task cannot be batched and should be.
    """
    if num_envs < 1:
        raise ValueError(f"`num_envs` must be at least 1, got {num_envs}")
    task = load_task(task)
    settings = settings_for(task, replace(settings or ControlSettings(), **arguments))
    if runner in ("auto", "measure"):
        runner = fastest_runner(task, num_envs, settings, anew=runner == "measure")
    if runner not in RUNNERS:
        names = ["auto", "measure", *RUNNERS]
        raise ValueError(f"`runner` must be one of {names}, got {runner!r}")
    if runner == "batched":
        return LRControlVecEnv(task, num_envs, settings)
    make_env = partial(LRControlEnv, task, settings)
    if runner == "looped":
        return looped(make_env, num_envs)
    if worker_runner not in ("looped", "batched"):
        raise ValueError(f"`worker_runner` must be looped or batched, got {worker_runner!r}")
    make_envs: MakeEnvs = partial(looped, make_env)
    if worker_runner == "batched":
        make_envs = partial(LRControlVecEnv, task, settings=settings)
    if num_workers is None:
        num_workers = min(num_envs, num_cores())
    start_workers: Callable[..., Workers] = ProcessWorkers
    if runner == "ray":
        start_workers = partial(RayWorkers, address=ray_address, use_gpu=not is_on_cpu(task))
    return WorkerVecEnv(make_envs, num_envs, num_workers=num_workers, start_workers=start_workers)


def is_on_cpu(task: Task) -> bool:
    """Whether no task of a mixture, or the one task, names another device."""
    return all(getattr(member, "device", "cpu") == "cpu" for member in task.members())


def num_cores() -> int:
    """Processor cores that this process may use; `CORES_VARIABLE` says of how few it is content."""
    has_affinity = hasattr(os, "sched_getaffinity")
    most = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(most, int(os.environ.get(CORES_VARIABLE, most)))


def fastest_runner(
    task: Task, num_envs: int, settings: ControlSettings, *, anew: bool = False
) -> str:
    """The runner that makes the most inner steps per second, measured once and then remembered.

    Each runner plays a reset and a few decisions, with the intervals shortened where a step is
    dear, and is judged by the time of a whole episode. A runner must be 10 % faster than the one
    before it in the table of `make_vec_env`. Workers are left out where they cannot win: on one
    core, with one environment, on a GPU, and where batching gains more than there are cores.
    Batched runs are left out where the task refuses them or they fail, and the log says why. No
    generator of torch, NumPy or Python is touched.

    What was found is kept with its date in the cache folder, under all that it may depend on: the
    task, the settings, the number of environments, of threads and of cores, the processor and the
    versions of torch and lrpilot. So the same call gives the same runner, also if it was measured
    on a busy machine; the runner "measure" of `make_vec_env` replaces it.

    Args:
        task: the inner training problem.
        num_envs: how many environments, at least 1.
        settings: of the environments.
        anew: whether to measure also what is remembered.

    Returns:
        "looped", "subprocess" or "batched"; the rates are logged.
    """
    settings = settings_for(task, settings)
    conditions = _conditions(task, num_envs, settings)
    name = hashlib.sha256(json.dumps(conditions).encode()).hexdigest()[:16]
    path = cache_folder() / "runners" / f"{name}.json"
    found = None if anew else _remembered(path, conditions)
    if is_new := found is None:
        logger.warning(
            "measuring which runner is fastest for %d environments of %s, once (seconds to "
            "minutes): leave the machine to it, or name the runner",
            num_envs,
            task.name,
        )
        rates, date = measure_runners(task, num_envs, settings), time.strftime("%Y-%m-%d %H:%M")
        kept = {"measured_on": date, RATES: rates, **conditions}
        try:
            write_whole(path, json.dumps(kept, indent=2) + "\n")
        except OSError:
            logger.warning("the choice of the runner cannot be kept in %s", path)
    else:
        rates, date = found
    chosen = choose_runner(rates)
    logger.info(
        "runner %s: %s inner steps per second (%s, in %s)",
        chosen,
        ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items()),
        "measured now" if is_new else f"measured on {date}; runner=measure measures anew",
        path,
    )
    return chosen


def choose_runner(rates: dict[str, float]) -> str:
    """The fastest; a later one must be 10 % faster than an earlier one.

    >>> choose_runner({"looped": 100.0, "subprocess": 105.0, "batched": 90.0})
    'looped'
    """
    chosen = next(iter(rates))
    for name, rate in rates.items():
        if rate > MARGIN * rates[chosen]:
            chosen = name
    return chosen


def measure_runners(task: Task, num_envs: int, settings: ControlSettings) -> dict[str, float]:
    """Inner steps per second of each runner that the task has and that may be the fastest."""
    settings = replace(settings, initial_lr_factors=(1.0, 1.0), max_decisions=None)
    settings = settings_for(task, _with_short_intervals(task, num_envs, settings))

    def measure(runner: str) -> float:
        env = make_vec_env(task, num_envs, settings, runner=runner)
        return _measure(env, settings.num_decisions)

    rates = {"looped": measure("looped")}
    try:
        batched = measure("batched")
    except (ValueError, RuntimeError) as error:
        # a task refuses by a ValueError; what torch cannot map, or a full GPU, has another cause
        is_refusal = isinstance(error, ValueError) and error.__cause__ is None
        level = logging.INFO if is_refusal else logging.WARNING
        logger.log(level, "batched runs of %s are left out: %s", task.name, error)
        batched = 0.0
    most = min(num_envs, num_cores())
    if is_on_cpu(task) and most > 1 and batched < most * rates["looped"]:
        rates["subprocess"] = measure("subprocess")
    return {**rates, "batched": batched} if batched else rates


def _with_short_intervals(task: Task, num_envs: int, settings: ControlSettings) -> ControlSettings:
    """The settings with a decision interval that is short enough to be measured."""
    env = LRControlEnv(task, settings)
    env.reset(seed=0)
    start = time.perf_counter()
    num_steps = env.reset(seed=0)[1]["num_steps"]
    seconds = num_envs * (time.perf_counter() - start)
    share = max(INTERVAL_SECONDS / seconds, MIN_INTERVAL_STEPS / num_steps)
    if share >= 1.0:
        return settings
    if settings.interval_steps is not None:
        return replace(settings, interval_steps=math.ceil(share * settings.interval_steps))
    return replace(settings, num_decisions=round(settings.num_decisions / share))


def _measure(env: VecEnv, num_decisions: int) -> float:
    """Inner steps per second of whole episodes, from a reset and a few decisions."""
    actions = np.zeros((env.num_envs, 1), np.float32)
    try:
        for _ in range(2):  # the first one reads data and fills caches
            start = time.perf_counter()
            env.seed(0)
            env.reset()
            reset_seconds = time.perf_counter() - start
        seconds: list[float] = []
        while not seconds or (sum(seconds) < INTERVAL_SECONDS and len(seconds) < num_decisions - 2):
            start = time.perf_counter()
            infos = env.step(actions)[3]
            seconds.append(time.perf_counter() - start)
    finally:
        env.close()
    steps_per_interval = sum(info["num_steps"] for info in infos) / (len(seconds) + 1)
    episode_seconds = reset_seconds + (num_decisions - 1) * statistics.median(seconds)
    rate: float = steps_per_interval * num_decisions / episode_seconds
    return rate


def _conditions(task: Task, num_envs: int, settings: ControlSettings) -> dict[str, Any]:
    """What the rates may depend on."""
    devices = sorted({getattr(member, "device", "cpu") for member in task.members()})
    return {
        # without the addresses of functions
        "task": re.sub(r" at 0x\w+", "", repr(task)),
        "settings": repr(settings),
        "num_envs": num_envs,
        "num_threads": torch.get_num_threads(),
        "num_cores": num_cores(),
        "devices": [
            torch.cuda.get_device_name(device) if device.startswith("cuda") else device
            for device in devices
        ],
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "lrpilot": lrpilot.__version__,
    }


def _remembered(path: Path, conditions: dict[str, Any]) -> tuple[dict[str, float], str] | None:
    """The rates and their date; None, and a notice, if the file is not one of this module."""
    try:
        kept = json.loads(path.read_bytes())
        rates = {name: float(rate) for name, rate in kept[RATES].items()}
        is_sound = all(0.0 < rate < math.inf and name in MEASURED for name, rate in rates.items())
        if is_sound and "looped" in rates and kept.items() >= conditions.items():
            return rates, str(kept["measured_on"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    logger.warning("%s is damaged, and is measured anew", path)
    return None

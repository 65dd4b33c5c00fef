"""What a job of a sweep uses: so many cores and GPUs, which no other job of it has meanwhile.

`cpus_per_job` and `gpus_per_job` say how many. Ray and Slurm count themselves, and set the visible
GPUs of a job. In processes of this machine a job has a slot: `job_slots` lists them, and a
process holds its slot by a lock on a file in the sweep's folder until it ends.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock, Timeout
from omegaconf import DictConfig

from lrpilot.envs.runners import CORES_VARIABLE, num_cores
from lrpilot.evaluation.runs.cluster import Cluster

VISIBLE = "CUDA_VISIBLE_DEVICES"
SLOTS_FOLDER = ".slots"
POLL_SECONDS = 0.2

# what this process holds; a lock that nothing names is released
_held: dict[Path, BaseFileLock] = {}


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that `CUDA_VISIBLE_DEVICES` has for them."""
    named = os.environ.get(VISIBLE)
    if named is None:
        return [str(i) for i in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]


def num_gpus(gpus_per_job: float | None) -> float:
    """GPUs of a job, checked; null is one where this machine has any, else none.

    Raises:
        ValueError: if it is neither null, 0, a share of one card, nor a number of whole cards.

    >>> num_gpus(0.25), num_gpus(2)
    (0.25, 2)
    """
    if gpus_per_job is None:
        return 1 if visible_gpus() else 0
    is_number = isinstance(gpus_per_job, int | float) and not isinstance(gpus_per_job, bool)
    if not is_number or not 0 <= gpus_per_job < math.inf:
        raise ValueError(f"`gpus_per_job` must be null, or 0 or more, got {gpus_per_job!r}")
    if gpus_per_job > 1 and gpus_per_job != int(gpus_per_job):
        raise ValueError(
            "`gpus_per_job` must be a share of one card, such as 0.25, or a number of whole cards, "
            f"got {gpus_per_job}"
        )
    return int(gpus_per_job) if gpus_per_job in (0, 1) or gpus_per_job > 1 else gpus_per_job


def cluster_of(cfg: DictConfig) -> Cluster | None:
    """Where the runs of a comparison are trained, if not in processes of this machine.

    Raises:
        ValueError: if `workers` or `gpus_per_job` is out of range.
    """
    if cfg.workers not in ("processes", "ray"):
        raise ValueError(f"`workers` must be processes or ray, got {cfg.workers!r}")
    if cfg.workers == "processes":
        return None
    return Cluster(cfg.ray_address, cfg.cpus_per_job, num_gpus(cfg.gpus_per_job))


def whole_gpus(gpus_per_job: float | None) -> int | None:
    """GPUs of a job where cards cannot be shared; None stands for none.

    Raises:
        ValueError: if it is a share of a card.
    """
    gpus = num_gpus(gpus_per_job)
    if gpus != int(gpus):
        raise ValueError(
            f"`gpus_per_job` must be a whole number for Slurm, which shares no card, got {gpus}; "
            "hydra/launcher=joblib shares the cards of one machine"
        )
    return int(gpus) or None


def job_slots(cpus_per_job: int, gpus_per_job: float | None) -> list[tuple[str, ...]]:
    """The GPUs of every job that this machine runs at once.

    Raises:
        ValueError: if no job fits on this machine.
    """
    most = num_cores() // cpus_per_job
    if most < 1:
        raise ValueError(
            f"`cpus_per_job` must be at most the {num_cores()} cores of this machine, "
            f"got {cpus_per_job}"
        )
    gpus, cards = num_gpus(gpus_per_job), visible_gpus()
    if gpus > len(cards):
        raise ValueError(
            f"`gpus_per_job` must be at most the {len(cards)} GPUs that this machine shows, "
            f"got {gpus}"
        )
    return gpu_shares(cards, gpus)[:most] if gpus else [()] * most


def gpu_shares(cards: Sequence[str], gpus: float) -> list[tuple[str, ...]]:
    """The cards of as many jobs as they suffice for; the first jobs are on different ones.

    Of a share s of a card, floor(1 / s) jobs have one: three for 0.3, one for 0.7.

    >>> gpu_shares(["0", "1"], 0.5), gpu_shares(["0", "1", "2"], 2)
    ([('0',), ('1',), ('0',), ('1',)], [('0', '1')])
    """
    if gpus <= 1:
        # 1 / 0.2 may lie below 5
        num_rounds = math.floor(1 / gpus + 1e-9)
        return [tuple([card]) for _ in range(num_rounds) for card in cards]
    size = int(gpus)
    starts = range(0, len(cards) - size + 1, size)
    return [tuple(cards[i : i + size]) for i in starts]


def take_slot(sweep_dir: Path, slots: Callable[[], Sequence[tuple[str, ...]]]) -> None:
    """Wait for a free slot of a sweep, keep it until this process ends, and show its GPUs alone.

    A process that has a slot already goes on with it. CUDA must not be initialized before.

    Args:
        sweep_dir: the folder of the sweep, where its slots are files.
        slots: gives the GPUs of every slot, as `job_slots` does.
    """
    folder = sweep_dir.resolve() / SLOTS_FOLDER
    if folder in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    numbered = list(enumerate(slots()))
    while folder not in _held:
        for i, gpus in numbered:
            lock = FileLock(folder / str(i))
            with suppress(Timeout):
                lock.acquire(blocking=False)
                _held[folder] = lock
                os.environ[VISIBLE] = ",".join(gpus)
                break
        else:
            time.sleep(POLL_SECONDS)


def limit_threads(num_threads: int) -> None:
    """Let torch, and OpenMP in processes that this one starts, have so many threads."""
    torch.set_num_threads(num_threads)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)


def limit_cores(cpus_per_job: int) -> None:
    """Let this process, and those that it starts, take no more of the cores for environments."""
    os.environ[CORES_VARIABLE] = str(cpus_per_job)

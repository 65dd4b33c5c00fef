"""The folder of a run: claimed by one run, and given back if nothing came of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from lrpilot.files import write_whole
from lrpilot.redaction import without_folders
from scripts.overrides import plain
from scripts.resuming import differences
from scripts.sweeps import ERROR_FILE, OVERRIDES_FILE, REFUSED_FILE

CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
# what a folder may hold that no run has claimed
UNCLAIMED = {OVERRIDES_FILE, ERROR_FILE, REFUSED_FILE, LOCK_FILE}
# what a job of a sweep may have otherwise when it goes on
OF_THE_MACHINE = {"cpus_per_job", "gpus_per_job", "ray_address", "num_threads", "num_workers"}
OF_THE_MACHINE |= {"workers", "show_progress", "output_root", "store", "logger"}


class OtherJobError(ValueError):
    """The folder of a job is that of another one."""


@contextmanager
def claimed(run_dir: Path, cfg: DictConfig, *, is_begun: bool = False) -> Iterator[None]:
    """Claim a folder by creating `config.yaml` in it; give it back if an error leaves no results.

    Args:
        run_dir: the folder.
        cfg: the configuration of the run.
        is_begun: whether it is the folder of this run already.

    Raises:
        ValueError: if the folder holds anything already, or another run claims it.
    """
    others = [] if is_begun else _results(run_dir)
    try:
        if others:
            raise FileExistsError
        (run_dir / CONFIG_FILE).touch(exist_ok=is_begun)
    except FileExistsError:
        raise ValueError(
            f"`hydra.run.dir` must be a folder without results, got {run_dir}, which holds "
            f"{', '.join(others or [CONFIG_FILE])}; name another one, or empty it"
        ) from None
    (run_dir / ERROR_FILE).unlink(missing_ok=True)
    try:
        write_config(cfg, run_dir)
        yield
    except BaseException:
        if _results(run_dir) == [CONFIG_FILE]:
            (run_dir / CONFIG_FILE).unlink()
        raise


def _results(run_dir: Path) -> list[str]:
    names = sorted(path.name for path in run_dir.iterdir())
    return [name for name in names if name not in UNCLAIMED and not name.endswith(".log")]


def write_config(cfg: DictConfig, run_dir: Path) -> None:
    """Write the resolved configuration to the run folder, without this machine's folders."""
    named = OmegaConf.create(without_folders(plain(cfg)))
    write_whole(run_dir / CONFIG_FILE, OmegaConf.to_yaml(named))


@contextmanager
def only_job(run_dir: Path) -> Iterator[None]:
    """Hold the folder of a job, which the end of this process, however it comes, lets go."""
    try:
        with FileLock(run_dir / LOCK_FILE, blocking=False):
            yield
    except Timeout:
        raise OtherJobError(
            f"`hydra.sweep.dir` must be of a sweep that has ended, got {run_dir.parent}, in which "
            f"another process runs {run_dir.name}"
        ) from None


def as_begun(cfg: DictConfig, run_dir: Path) -> DictConfig:
    """The configuration of a job that has begun in its folder, with the runner that it began with.

    Raises:
        OtherJobError: if it began as another job.
    """
    kept: Any = OmegaConf.load(run_dir / CONFIG_FILE)
    # killed before it was written, or made from a checkpoint, which is compared elsewhere
    if not kept or cfg.get("resume"):
        return cfg
    if "env" in cfg and cfg.env.runner in ("auto", "measure"):
        cfg.env.runner = kept.env.runner
    given = without_folders(plain(cfg))
    lines = differences(
        {key: value for key, value in given.items() if key not in OF_THE_MACHINE},
        {key: value for key, value in plain(kept).items() if key not in OF_THE_MACHINE},
    )
    if lines:
        raise OtherJobError(
            f"`hydra.sweep.dir` must be of a sweep of the same jobs, got {run_dir.parent}, in "
            f"which {run_dir.name} is another one ({'; '.join(lines)}); name another folder"
        )
    return cfg

"""What every script does around its work: check, claim a run folder, and say what went wrong.

A script is `main(cfg)`, which returns `run_job(work, cfg)`, and is started by `run_script(main)`.
"""

import os
import re
import secrets
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrpilot import PolicyFileError
from lrpilot.agents.checkpoint import CheckpointError
from lrpilot.agents.rollback import UpdateError
from lrpilot.envs import WorkerError
from lrpilot.files import write_whole
from lrpilot.redaction import without_home
from lrpilot.tasks.data.archives import DataError
from scripts.overrides import check_overrides, given_overrides, key_of
from scripts.resources import job_slots, limit_cores, limit_threads, num_gpus, take_slot
from scripts.run_folders import CONFIG_FILE, OtherJobError, as_begun, claimed, only_job
from scripts.sweeps import (
    DONE_FILE,
    ERROR_FILE,
    LOG_FILE,
    PARALLEL,
    REFUSED_FILE,
    ROOT,
    launcher_of,
    read_done,
    write_done,
    write_overrides,
)

# what a reader can mend: these say it in their message
MENDABLE = (
    CheckpointError,
    DataError,
    FileNotFoundError,
    PolicyFileError,
    UpdateError,
    WorkerError,
)
# arguments of what is ours, of which the configuration names those that differ from the default
FREE = re.compile(r"(task|env|scheduler|rival|logger)\.[\w.]+=")

# the end of a run folder's name: two runs that start in the same second have two folders
OmegaConf.register_new_resolver("unique", lambda: secrets.token_hex(3), use_cache=True)


def explain(error: BaseException) -> str | None:
    """What to print of an error that its reader can mend; None if it needs its traceback."""
    if isinstance(error, InstantiationException) and (cause := error.__cause__):
        return explain(cause) or " ".join(f"{str(error).split(', set env')[0]}: {cause}".split())
    if isinstance(error, (CompactHydraException, OmegaConfBaseException)):
        return "\n".join(str(e) for e in (error, error.__cause__) if e)
    if isinstance(error, BrokenExecutor):
        return (
            "a process that ran jobs was killed, perhaps for want of memory; the same command with "
            f"hydra.sweep.dir=FOLDER, that of this sweep, goes on ({str(error).splitlines()[0]})"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"cannot use {error.filename or 'a file'}: {error.strerror}"
    # errors of ours begin with the argument's name; Python names one that nothing takes
    is_ours = isinstance(error, ValueError) and str(error).startswith("`")
    is_unknown = isinstance(error, TypeError) and "unexpected keyword argument" in str(error)
    if is_ours or is_unknown or isinstance(error, MENDABLE):
        return str(error)
    return None


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's `main`; what its reader can mend ends in a message instead of a traceback."""
    # Hydra prints tracebacks of its own, also for a folder that it cannot make
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = with_own_task([without_signs(argument) for argument in sys.argv[1:]])
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        raise _exit(error) from None


def without_signs(argument: str) -> str:
    """An override as Hydra wants it, where it needs no + of its user.

    An experiment has its place in every defaults list; what a task, say, takes it checks itself,
    and whether a file of the configuration names it already is all the same.

    >>> without_signs("+experiment=lazy_boundary"), without_signs("task.batch_size=8")
    ('experiment=lazy_boundary', '++task.batch_size=8')
    """
    if argument.startswith("+experiment="):
        return argument[1:]
    return f"++{argument}" if FREE.match(argument) else argument


def with_own_task(arguments: list[str]) -> list[str]:
    """The arguments, with `task=own` if they name the class of a task and choose no file.

    Else a class of the user's would be given the default task's name, learning rate and horizon.

    >>> with_own_task(["++task._target_=my_pkg.MyTask"])
    ['++task._target_=my_pkg.MyTask', 'task=own']
    """
    keys = {key_of(argument) for argument in arguments}
    is_own = "task._target_" in keys and "task" not in keys
    return [*arguments, "task=own"] if is_own else arguments


def _exit(error: Exception) -> BaseException:
    message = explain(error)
    return error if message is None else SystemExit(message)


def run_job(
    work: Callable[[DictConfig, Path], Any], cfg: DictConfig, *, unread: Sequence[str]
) -> Any:
    """Do the work of one job, on `num_threads`, in its claimed run folder; returns what it returns.

    In a sweep, a job that fails says so, there and in `error.txt`, and the next one begins; one
    that is finished is not done again, and one that was broken off goes on in its folder.

    Args:
        work: called with the configuration and the run folder; where that holds a part of what it
            leaves, the work is to go on from there.
        cfg: the composed configuration.
        unread: parts of it that are not for this script.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return _run_in_sweep(work, cfg, run_dir, unread)
    try:
        cfg = _checked(cfg, unread)
        with claimed(run_dir, cfg), each_warning_once():
            return work(cfg, run_dir)
    except Exception as error:
        raise _exit(error) from None


def _checked(cfg: DictConfig, unread: Sequence[str]) -> DictConfig:
    """What the script reads of a configuration; the process has its threads from there on."""
    check_overrides(cfg, unread)
    num_gpus(cfg.gpus_per_job)
    limit_threads(cfg.num_threads)
    return OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name not in unread])


def _run_in_sweep(
    work: Callable[[DictConfig, Path], Any],
    cfg: DictConfig,
    run_dir: Path,
    unread: Sequence[str],
) -> Any:
    name = f"job {HydraConfig.get().job.num}"
    start = time.perf_counter()
    try:
        with only_job(run_dir), _logged(run_dir):
            is_begun = (run_dir / CONFIG_FILE).is_file()
            if not is_begun:
                write_overrides(run_dir)
            cfg = _checked(cfg, unread)
            _take_share(cfg)
            if is_begun:
                cfg = as_begun(cfg, run_dir)
                write_overrides(run_dir)
            if (run_dir / DONE_FILE).is_file():
                returned, done = read_done(run_dir), "was finished before"
            else:
                with claimed(run_dir, cfg, is_begun=is_begun), each_warning_once():
                    returned = work(cfg, run_dir)
                write_done(run_dir, returned)
                done = f"finished in {time.perf_counter() - start:.1f} s"
            for file in (ERROR_FILE, REFUSED_FILE):
                (run_dir / file).unlink(missing_ok=True)
    except Exception as error:
        text = explain(error) or traceback.format_exc().strip()
        print(f"{name} failed: {text}", file=sys.stderr)
        file = REFUSED_FILE if isinstance(error, OtherJobError) else ERROR_FILE
        write_whole(run_dir / file, f"{without_home(text)}\n")
        return None
    print(f"{name} {done}: {run_dir}")
    return returned


@contextmanager
def _logged(run_dir: Path) -> Iterator[None]:
    """Where jobs run side by side, what this one prints goes to its own log."""
    if launcher_of(HydraConfig.get()) not in PARALLEL:
        yield
        return
    with open(run_dir / LOG_FILE, "a", buffering=1, encoding="utf-8") as log:
        try:
            with redirect_stdout(log), redirect_stderr(log):
                yield
        except Exception:
            traceback.print_exc(file=log)
            raise


def _take_share(cfg: DictConfig) -> None:
    """Where jobs run side by side, keep this process to what one of them may use.

    Raises:
        ValueError: if the job is configured to use more.
    """
    hydra = HydraConfig.get()
    launcher = launcher_of(hydra)
    if launcher not in PARALLEL:
        return
    threads = cfg.num_threads * max(1, cfg.get("num_workers", 0))
    if threads > cfg.cpus_per_job:
        raise ValueError(
            f"`cpus_per_job` must be at least num_threads * num_workers = {threads} where jobs run "
            f"side by side, got {cfg.cpus_per_job}"
        )
    if launcher == "joblib":
        slots = partial(job_slots, cfg.cpus_per_job, cfg.gpus_per_job)
        take_slot(Path(hydra.sweep.dir), slots)
    limit_cores(cfg.cpus_per_job)
    # the command that a summary names
    sys.argv[:] = [str(ROOT / "scripts" / f"{hydra.job.name}.py"), *given_overrides()]


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Show a warning once, whatever numbers it names: a thousand runs may have the same to say."""
    show, shown = warnings.showwarning, set()

    def show_first(
        message: Warning | str, category: type[Warning], *where: Any, **more: Any
    ) -> None:
        kind = category, re.sub(r"[\d.]+", "", str(message))
        if kind not in shown:
            shown.add(kind)
            show(message, category, *where, **more)

    warnings.showwarning = show_first
    try:
        yield
    finally:
        warnings.showwarning = show

"""What every script does around its work: check, claim a run folder, and say what went wrong.

A script is `main(cfg)`, which returns `run_job(work, cfg)`, and is started by `run_script(main)`.
"""

import os
import re
import secrets
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrpilot import PolicyFileError
from lrpilot.agents.checkpoint import CheckpointError
from lrpilot.agents.rollback import UpdateError
from lrpilot.agents.training import without_folders
from lrpilot.envs import WorkerError
from lrpilot.files import write_whole
from lrpilot.tasks.data.archives import DataError
from scripts.overrides import check_overrides, key_of, plain

CONFIG_FILE = "config.yaml"
ERROR_FILE = "error.txt"
# what a reader can mend: these say it in their message
MENDABLE = (
    CheckpointError,
    DataError,
    FileNotFoundError,
    PolicyFileError,
    UpdateError,
    WorkerError,
)
# what a folder may hold that no run has claimed
HYDRA_FILES = {".hydra", ERROR_FILE}

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

    In a sweep, a job that fails says so, there and in `error.txt`, and the next one begins.

    Args:
        work: called with the configuration and the run folder.
        cfg: the composed configuration.
        unread: parts of it that are not for this script.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        check_overrides(cfg, unread)
        cfg = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name not in unread])
        torch.set_num_threads(cfg.num_threads)
        with claimed(run_dir, cfg), each_warning_once():
            return work(cfg, run_dir)
    except Exception as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            raise _exit(error) from None
        text = explain(error) or traceback.format_exc().strip()
        print(f"job {HydraConfig.get().job.num} failed: {text}", file=sys.stderr)
        write_whole(run_dir / ERROR_FILE, f"{text}\n")
        return None


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


@contextmanager
def claimed(run_dir: Path, cfg: DictConfig) -> Iterator[None]:
    """Claim a folder by creating `config.yaml` in it; give it back if an error leaves no results.

    Raises:
        ValueError: if the folder holds anything already, or another run claims it.
    """
    others = _results(run_dir)
    try:
        if others:
            raise FileExistsError
        (run_dir / CONFIG_FILE).touch(exist_ok=False)
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
    return [name for name in names if name not in HYDRA_FILES and not name.endswith(".log")]


def write_config(cfg: DictConfig, run_dir: Path) -> None:
    """Write the resolved configuration to the run folder, without this machine's folders."""
    named = OmegaConf.create(without_folders(plain(cfg)))
    write_whole(run_dir / CONFIG_FILE, OmegaConf.to_yaml(named))


class FailedJobs(Callback):
    """At the end of a sweep, lists the jobs that failed, and makes the exit code 1."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """List the folders with an `error.txt`."""
        failures = []
        for path in sorted(Path(config.hydra.sweep.dir).rglob(ERROR_FILE)):
            lines = path.read_text().splitlines()
            what = lines[-1] if lines[0].startswith("Traceback") else lines[0]
            failures.append(f"  {path.parent}: {what}")
        if failures:
            raise SystemExit(f"failed jobs: {len(failures)}\n" + "\n".join(failures))

"""A sweep: the folders of its jobs, what came of each, and the command that goes on with it.

A job's folder is named for what was swept. `done.json` in it says that the job is finished: the
same sweep in the same folder runs only jobs without one.
"""

import hashlib
import importlib.util
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf

from lrpilot.command.folders import in_order
from lrpilot.envs.runners import num_cores
from lrpilot.files import write_whole
from lrpilot.redaction import without_home
from scripts.overrides import as_argument, key_of
from scripts.resources import job_slots, num_gpus, visible_gpus, whole_gpus

ROOT = Path(__file__).resolve().parents[1]
ERROR_FILE = "error.txt"
OVERRIDES_FILE = "overrides.yaml"
DONE_FILE = "done.json"
# of a job that found another one in its folder, which it leaves as it was
REFUSED_FILE = "refused.txt"
# what a job prints, where several run at once
LOG_FILE = "output.log"
# what Hydra's sweeper leaves in the folder of a sweep
SWEEP_FILE = "multirun.yaml"
# launchers whose jobs run beside each other
PARALLEL = ("joblib", "ray", "submitit_slurm")
# settings that are the sweep's, not a job's
OF_THE_SWEEP = ("cpus_per_job", "gpus_per_job", "ray_address", "output_root")
EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"
LONGEST_NAME = 120
# what a folder's name has none of: Hydra reads the rest without quotes
ODD = re.compile(r"[^\w.+-]+")


def job_folder(overrides: Sequence[str]) -> str:
    """The name of a job's folder: the last words of the keys that were swept, and the values.

    A name that is cut, or has lost characters that folders or Hydra dislike, ends in a hash.

    Args:
        overrides: those in which the jobs differ.

    >>> job_folder(["agent.algorithm.learning_rate=0.01", "seed=3"]), job_folder([])
    ('learning_rate-0.01+seed-3', 'job')
    >>> job_folder(["policy=/runs/a b"])
    'policy-runs-a-b.6e20'
    """
    keys = [key_of(override) for override in overrides]
    words = [re.split("[./]", key)[-1] for key in keys]
    short = [word if words.count(word) == 1 else key for word, key in zip(words, keys, strict=True)]
    whole = [
        f"{key}-{override.partition('=')[2]}"
        for key, override in zip(short, overrides, strict=True)
    ]
    plain = [ODD.sub("-", part).replace("--", "-").strip("-") for part in whole]
    name = "+".join(plain)[:LONGEST_NAME]
    if name != "+".join(whole):
        name += f".{hashlib.sha256(' '.join(overrides).encode()).hexdigest()[:4]}"
    return name or "job"


def _folder_of_this_job() -> str:
    hydra = HydraConfig.get()
    common = hydra.job.config.override_dirname.exclude_keys
    parsed = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    # the last one of a key counts
    swept = {o.key_or_group: str(o.input_line) for o in parsed if o.key_or_group not in common}
    return job_folder(list(swept.values()))


def python_path() -> str:
    """`PYTHONPATH` for processes that are started elsewhere: this checkout before all."""
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(ROOT), *(path for path in others if path not in ("", str(ROOT)))])


_RESOLVERS: dict[str, Callable[..., Any]] = {
    "job_folder": _folder_of_this_job,
    "num_slots": lambda cpus, gpus: len(job_slots(cpus, gpus)),
    "num_cores": num_cores,
    "num_visible_gpus": lambda: len(visible_gpus()),
    "num_gpus": num_gpus,
    "whole_gpus": whole_gpus,
    "if_local": lambda address, value: value if address == "local" else None,
    "python_path": python_path,
}
for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver)
# conf/hydra/launcher has files of the names of the launchers, so that a user writes one word
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against")


def launcher_of(hydra: Any) -> str:
    """The name of the launcher that is configured."""
    return str(hydra.runtime.choices["hydra/launcher"])


def script_command(hydra: Any, script: str, *arguments: str) -> str:
    """A command that runs a script from any folder, with the configuration folders of this one.

    Args:
        hydra: the configuration of Hydra.
        script: its file's name.
        *arguments: as they stand in a shell.
    """
    sources = hydra.runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    start = [sys.executable, str(ROOT / "scripts" / script)]
    start += [f"--config-dir={folder}" for folder in folders]
    return " ".join([*map(shlex.quote, start), *arguments])


def sweep_command(hydra: Any, sweep_dir: Path) -> str:
    """The command that goes on with a sweep: what it was started with, in the same folder."""
    given = [*hydra.overrides.hydra, *hydra.overrides.task]
    unsaid = ("hydra.mode", "hydra.sweep.dir", EXCLUDED)
    kept = [shlex.quote(override) for override in given if key_of(override) not in unsaid]
    folder = as_argument("hydra.sweep.dir", sweep_dir.resolve())
    return script_command(hydra, f"{hydra.job.name}.py", "-m", *kept, folder)


@dataclass(frozen=True)
class Job:
    """What is in the folder of a job.

    Args:
        folder: its path.
        overrides: those of the job, by key.
        error: what it failed by, in a line; None if it did not.
        refusal: why another job was refused here, in a line; None if none was.
        is_done: whether it is finished.
    """

    folder: Path
    overrides: Mapping[str, str]
    error: str | None
    refusal: str | None
    is_done: bool

    @property
    def log(self) -> Path:
        """The file that says most about a failure."""
        log = self.folder / LOG_FILE
        return log if log.is_file() else self.folder / ERROR_FILE


def read_jobs(sweep_dir: Path) -> list[Job]:
    """The jobs of a sweep that have begun, in their order: 10 comes after 9."""
    found = [path.parent for path in sweep_dir.rglob(OVERRIDES_FILE)]
    return [_read_job(folder) for folder in sorted(found, key=in_order)]


def _read_job(folder: Path) -> Job:
    given = OmegaConf.load(folder / OVERRIDES_FILE)
    assert isinstance(given, ListConfig)
    return Job(
        folder,
        {key_of(override): override.partition("=")[2] for override in given},
        error=_read_error(folder / ERROR_FILE),
        refusal=_read_error(folder / REFUSED_FILE),
        is_done=(folder / DONE_FILE).is_file(),
    )


def _read_error(path: Path) -> str | None:
    if not path.is_file():
        return None
    lines = path.read_text().splitlines()
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def write_overrides(run_dir: Path) -> None:
    """Keep the overrides of this job, without this user's home folder."""
    overrides = without_home(list(HydraConfig.get().overrides.task))
    write_whole(run_dir / OVERRIDES_FILE, OmegaConf.to_yaml(OmegaConf.create(overrides)))


def write_done(run_dir: Path, returned: Any) -> None:
    """Say that a job is finished, and what it returned."""
    write_whole(run_dir / DONE_FILE, json.dumps({"returned": returned}) + "\n")


def read_done(run_dir: Path) -> Any:
    """What a finished job returned."""
    return json.loads((run_dir / DONE_FILE).read_text())["returned"]


class Sweep(Callback):
    """Checks a sweep before it starts; at its end lists the jobs that failed, and exits with 1."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse what no job could run with, and name the folders of the jobs."""
        try:
            _check_sweep(config)
        except ValueError as error:
            # Hydra only warns of other errors
            raise SystemExit(str(error)) from None
        # for processes of the launcher
        os.environ["PYTHONPATH"] = python_path()
        # Ray gives way to all other processes, unless it is told not to
        os.environ.setdefault("RAY_worker_niceness", "0")
        parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        swept = {o.key_or_group for o in parsed if o.is_sweep_override()}
        common = [str(o.key_or_group) for o in parsed if o.key_or_group not in swept]
        config.hydra.overrides.hydra.append(f"{EXCLUDED}={json.dumps(common)}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """List the failed jobs, their logs, and the command that runs them again."""
        sweep_dir = Path(config.hydra.sweep.dir)
        found = {job.folder: job.error or job.refusal for job in read_jobs(sweep_dir)}
        failed = {folder: error for folder, error in found.items() if error}
        if failed:
            lines = [f"  {folder}: {error}" for folder, error in failed.items()]
            again = f"run them again with: {sweep_command(config.hydra, sweep_dir)}"
            raise SystemExit("\n".join([f"failed jobs: {len(failed)}", *lines, again]))


def _check_sweep(config: DictConfig) -> None:
    launcher, target = launcher_of(config.hydra), config.hydra.launcher._target_
    if importlib.util.find_spec(target.rpartition(".")[0].rpartition(".")[0]) is None:
        raise ValueError(
            f"`hydra/launcher` must be installed, got {launcher}, which the extra sweep brings: "
            'pip install -e ".[research,sweep]"'
        )
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    for override in parsed:
        if override.is_sweep_override() and override.key_or_group in OF_THE_SWEEP:
            raise ValueError(
                f"`{override.key_or_group}` must be the same for all jobs of a sweep, "
                f"got {override.input_line}"
            )
    num_gpus(config.gpus_per_job)
    if launcher == "submitit_local":
        raise ValueError(
            "`hydra/launcher` must be basic, joblib, ray or submitit_slurm, got submitit_local, "
            "which starts all jobs at once"
        )
    if launcher == "submitit_slurm":
        whole_gpus(config.gpus_per_job)
    if launcher == "joblib" or (launcher == "ray" and config.ray_address == "local"):
        job_slots(config.cpus_per_job, config.gpus_per_job)

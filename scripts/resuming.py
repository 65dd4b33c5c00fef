"""The configuration of a resumed run: our own files, the overrides in its checkpoint, new ones.

A checkpoint is data, so what it says may choose among the files of the configuration and set plain
values, and never name code. What was given as `_target_=...` must be given again.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lrpilot.agents.checkpoint import FILE_NAME, PREVIOUS_NAME, has_checkpoint, read_newest
from lrpilot.agents.training import has_results
from lrpilot.redaction import without_home
from scripts.overrides import composed, given_overrides, plain

# what decides how the training goes on
SAME = ("seed", "task", "env", "agent")
MAY_CHANGE = (
    "agent.total_steps",
    "agent.checkpoint_steps",
    "env.num_workers",
    "num_threads",
    "show_progress",
)
OF_THIS_RUN = ("resume", "output_root")


def settings_of(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """What a checkpoint keeps of the configuration, in plain values."""
    kept = [homeless(override) for override in overrides if _key(override) not in OF_THIS_RUN]
    config = {name: plain(cfg[name]) for name in SAME}
    return {"overrides": kept, "config": without_home(config)}


def homeless(override: str) -> str:
    """An override in which this user's home folder is "~", in the quotes that Hydra needs for it.

    >>> homeless("task.data_dir=" + os.path.expanduser("~/data"))
    'task.data_dir="~/data"'
    """
    home = re.escape(os.path.expanduser("~"))
    return re.sub(
        rf"""(['"]?){home}((?:/[\w./%@+-]*)?)(?![\w.-])""",
        lambda found: f"{found[1] or chr(34)}~{found[2]}{'' if found[1] else chr(34)}",
        override,
    )


def find_run_dir(resume: str | bool, output_root: str) -> Path:
    """The run folder to continue; True means the newest with a checkpoint."""
    if resume is not True:
        run_dir = Path(str(resume))
        if not has_checkpoint(run_dir):
            raise ValueError(f"`resume` must be a run folder with a checkpoint, got {run_dir}")
        return run_dir
    found = [p for name in (FILE_NAME, PREVIOUS_NAME) for p in Path(output_root).rglob(name)]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise ValueError(f"`resume=true` found no {FILE_NAME} under {output_root}")
    return newest.parent


def resumed_config(run_dir: Path, read: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The configuration of the run that is continued, and the overrides that it is made of.

    Args:
        run_dir: whose checkpoint says what was given.
        read: the parts of the configuration that the script reads.

    Raises:
        ValueError: if it would be another training, if an override of the checkpoint names code,
            or if nothing is left to do.
    """
    snapshot = read_newest(run_dir)
    if not snapshot["settings"]:
        raise ValueError(f"`resume` must be a run folder of train_agent.py, got {run_dir}")
    recorded, kept = snapshot["settings"]["overrides"], snapshot["settings"]["config"]
    given = {_key(override): override for override in given_overrides()}
    for override in recorded:
        if _key(override) not in given and not is_plain_override(override):
            raise ValueError(
                f"`{_key(override)}` must be given again when {run_dir} is resumed: its checkpoint "
                f"says {override!r}, and what names code, or no file of the configuration, is not "
                "taken from a checkpoint (a folder of your own is given with --config-dir)"
            )
    overrides = _merged(recorded, given)
    cfg = OmegaConf.masked_copy(_composed(overrides, run_dir), list(read))
    if cfg.env.runner == "auto":
        cfg.env.runner = kept["env"]["runner"]
    for key in MAY_CHANGE:
        value = OmegaConf.select(OmegaConf.create(kept), key)
        if key not in given and value is not None:
            OmegaConf.update(cfg, key, value)
    changed = [
        line
        for name in SAME
        for line in differences(without_home(plain(cfg[name])), without_home(kept[name]), name)
        if not any(line.startswith(f"`{key}`") for key in MAY_CHANGE)
    ]
    if changed:
        raise ValueError(
            "\n".join(changed)
            + "\nthis cannot change when a run is resumed (may change: "
            + f"{', '.join(MAY_CHANGE)}, logger); leave it out to keep the run's, or, where a file "
            "of the configuration has changed since, give the kept value"
        )
    done = snapshot["num_env_steps"]
    if done >= cfg.agent.total_steps and has_results(run_dir):
        raise ValueError(
            f"`agent.total_steps` must be more than the {done} env steps that {run_dir} has made, "
            f"got {cfg.agent.total_steps}: nothing is left"
        )
    cfg.resume = str(run_dir)
    return cfg, overrides


def _merged(recorded: Sequence[str], given: dict[str, str]) -> list[str]:
    """The recorded overrides, with those of the same key replaced, and then the new ones."""
    keys = {_key(override) for override in recorded}
    new = [override for key, override in given.items() if key not in keys]
    return [*(given.get(_key(override), override) for override in recorded), *new]


def _composed(overrides: Sequence[str], run_dir: Path) -> DictConfig:
    try:
        return composed(overrides)
    except HydraException as error:
        raise ValueError(
            f"`resume` must be a run folder whose overrides still compose, got {run_dir} with "
            f"{' '.join(overrides)}: {error}"
        ) from error


def _key(override: str) -> str:
    """The key of an override, with its package and without its sign."""
    return override.lstrip("+~").split("=")[0]


def is_plain_override(text: str) -> bool:
    """Whether an override chooses files of the configuration, or sets plain values."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return False
    key = override.key_or_group
    parts = key.replace("/", ".").split(".")
    if parts[0] == "hydra" or "_target_" in parts or "" in parts:
        return False
    value = None if override.is_delete() else override.value()
    if GlobalHydra.instance().config_loader().get_group_options(key):
        chosen = value if isinstance(value, list) else [value]
        return all(one is None or _is_option(key, str(one)) for one in chosen)
    return _is_plain_value(value)


def _is_option(group: str, name: str) -> bool:
    """Whether a group of the configuration, or a folder in it, has a file of that name."""
    *folders, last = name.split("/")
    options = GlobalHydra.instance().config_loader().get_group_options("/".join([group, *folders]))
    return ".." not in folders and last in options


def _is_plain_value(value: Any) -> bool:
    """Whether a value holds neither code nor an interpolation, which could put code together."""
    if isinstance(value, dict):
        return all(map(_is_plain_value, [*value.keys(), *value.values()]))
    if isinstance(value, list):
        return all(map(_is_plain_value, value))
    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, str):
        return "${" not in value and value != "_target_"
    return value is None or isinstance(value, bool | int | float)


def differences(given: Any, kept: Any, prefix: str = "") -> list[str]:
    """The leaf keys in which two configuration nodes differ, with both values."""
    if isinstance(given, dict) and isinstance(kept, dict):
        keys = dict.fromkeys([*kept, *given])
        return [
            line
            for key in keys
            for line in differences(given.get(key), kept.get(key), f"{prefix}.{key}".lstrip("."))
        ]
    return [] if given == kept else [f"`{prefix}`: {_shown(kept)} kept, {_shown(given)} given"]


def _shown(value: object) -> str:
    return "default" if value is None else str(value)

"""The command line's overrides: checked against what they replace, found again, written again."""

import functools
import re
import shlex
from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

# what a number of this name is at least, wherever it stands; `seed` has both ends
LEAST = {
    "num_threads": 1,
    "cpus_per_job": 1,
    "num_envs": 1,
    "total_steps": 1,
    "checkpoint_steps": 1,
    "num_seeds": 1,
    "num_trials": 1,
    "num_skipped_seeds": 0,
    "num_tuning": 1,
    "num_held_out": 1,
    "num_real_seeds": 1,
    "num_replay": 1,
    "num_batches": 1,
    "num_rounds": 1,
    "num_runs": 1,
    "updates_per_round": 1,
    "lstm_units": 0,
}
# that of NumPy's and SB3's generators
LARGEST_SEED = 2**32 - 1
# what Hydra reads as a text without quotes
PLAIN = re.compile(r"/[a-zA-Z0-9_/.%@+-]*")


def given_overrides() -> list[str]:
    """The overrides of this job, as they were given."""
    return list(HydraConfig.get().overrides.task)


def key_of(override: str) -> str:
    """The key of an override, without its sign and package.

    >>> key_of("+task/optimizer@task.optimizer=adam"), key_of("~a.b")
    ('task/optimizer', 'a.b')
    """
    return override.lstrip("+~").split("=")[0].split("@")[0]


def as_argument(key: str, value: object) -> str:
    r"""An override for a shell, whatever characters its value has.

    >>> print(as_argument("policy", "/runs/3"), as_argument("policy", "my runs (2)"))
    policy=/runs/3 'policy="my runs (2)"'
    """
    text = str(value)
    if not PLAIN.fullmatch(text):
        # backslashes count before a quote and before an interpolation alone
        text = re.sub(r'(\\*)("|\Z)', r"\1\1\\\2", text)[:-1].replace("${", r"\${")
        text = f'"{text}"'
    return shlex.quote(f"{key}={text}")


def check_overrides(cfg: DictConfig, unread: Sequence[str]) -> None:
    """Compare a composed configuration with what it is without the values that were given.

    Raises:
        ValueError: if a value is of another kind than the one that it replaces, a number is too
            small, nothing reads a key, or a choice is added where there is none.
    """
    given = given_overrides()
    for override in given:
        if re.split("[./]", key_of(override))[0] in unread:
            raise ValueError(
                f"`{override}` must be left out: {HydraConfig.get().job.name}.py does not read it"
            )
    choices = [override for override in given if _is_choice(override)]
    for override in choices:
        if override.startswith("+"):
            _check_added_choice(override, [other for other in choices if other != override])
    sources = tuple(source.path for source in HydraConfig.get().runtime.config_sources)
    default = _composed_once(HydraConfig.get().job.config_name, sources, tuple(choices))
    _check(plain(cfg), default, "", is_free=False)


def plain(node: Any) -> Any:
    """A configuration node as resolved plain values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of this job's script with these overrides."""
    return compose(HydraConfig.get().job.config_name, list(overrides))


@functools.cache
def _composed_once(
    config_name: str | None, sources: tuple[str, ...], choices: tuple[str, ...]
) -> Any:
    """The plain configuration with these choices, which the jobs of a sweep have in common."""
    return plain(compose(config_name, list(choices)))


def _is_choice(override: str) -> bool:
    """Whether an override chooses a file, as `task=cifar` does, and does not set a value."""
    key = key_of(override)
    groups = GlobalHydra.instance().config_loader().list_groups("")
    return "." not in key and key.split("/")[0] in groups


def _check_added_choice(override: str, others: list[str]) -> None:
    key = key_of(override)
    group = key.split("/")[0]
    name = key.replace("/", ".")
    if key != group and OmegaConf.select(composed(others), name) is not None:
        chosen = HydraConfig.get().runtime.choices[group]
        raise ValueError(
            f"`{override}` must be left out: {group}={chosen} has its own, which {name}.NAME=... "
            "changes"
        )


def _check(given: Any, default: Any, key: str, *, is_free: bool) -> None:
    """Compare one node; below a `_target_` keys are free, since what it names checks them."""
    if not isinstance(given, dict) or not isinstance(default, dict):
        _check_value(given, default, key)
        return
    is_free = is_free or "_target_" in given
    for name, value in given.items():
        inner = f"{key}.{name}".lstrip(".")
        if name in default:
            _check(value, default[name], inner, is_free=is_free)
        elif not is_free and not isinstance(value, dict):
            raise ValueError(f"`{inner}` must be one of {list(default)}, which are read")


def _check_value(given: Any, default: Any, key: str) -> None:
    name = key.split(".")[-1]
    if given is None and (default is None or name not in (*LEAST, "seed")):
        return
    is_whole = type(given) is int
    if name == "seed":
        is_right = is_whole and 0 <= given <= LARGEST_SEED
        expected = f"a whole number from 0 to {LARGEST_SEED}"
    elif name in LEAST:
        is_right = is_whole and given >= LEAST[name]
        expected = f"a whole number of at least {LEAST[name]}"
    else:
        is_right, expected = _kind(given, default)
    if not is_right:
        raise ValueError(f"`{key}` must be {expected}, got {given!r}")


def _kind(given: Any, default: Any) -> tuple[bool, str]:
    """Whether a value is of the kind of the default, and what that kind is called."""
    if isinstance(default, bool):
        return isinstance(given, bool), "true or false"
    if isinstance(default, int):
        return type(given) is int or isinstance(given, dict), "a whole number"
    if isinstance(default, float):
        return type(given) in (int, float, dict), "a number"
    if isinstance(default, list):
        return isinstance(given, list), "a list, as [a,b]"
    if isinstance(default, dict):
        return False, f"settings, one or more of {list(default)}"
    return True, ""

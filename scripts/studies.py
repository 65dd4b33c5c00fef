"""Studies of Optuna over the configuration: their space, their storage, and what they leave."""

import csv
import io
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lrpilot.arguments import require_choice
from lrpilot.files import write_whole
from lrpilot.redaction import without_password
from scripts.overrides import plain

STORAGE_FILE = "search.db"
TRIALS_FILE = "trials.csv"
NUM_REPORTS = 10
"""Returns that a pruner is told of one training, evenly over its budget."""
ERROR = "error"
"""Attribute of a trial that failed by itself; one that was broken off has none."""

_HEARTBEAT_SECONDS = 30
_SECONDS_FOR_A_LOCK = 60
_PRUNERS = ("median", "hyperband")
_FIGURES = (
    "optimization_history",
    "intermediate_values",
    "slice",
    "parallel_coordinate",
    "param_importances",
)


def read_space(cfg: DictConfig) -> dict[str, BaseDistribution]:
    """The distribution of every value that is searched, by its key.

    Raises:
        ValueError: if there is none, one is no distribution, or nothing has such a key.
    """
    space = dict(_distributions(plain(cfg.search.get("space", {})), ""))
    if not space:
        raise ValueError("`search.space` must hold one distribution at least, got none")
    for key in space:
        parent = key.rpartition(".")[0]
        if not isinstance(OmegaConf.select(cfg, parent), DictConfig):
            raise ValueError(
                f"`search.space.{key}` must be a value of the configuration, which has no {parent}"
            )
    return space


def _distributions(node: Any, key: str) -> Iterator[tuple[str, BaseDistribution]]:
    if isinstance(node, dict) and "_target_" not in node:
        for name, value in node.items():
            yield from _distributions(value, f"{key}.{name}".lstrip("."))
    elif node is not None:
        try:
            made = instantiate(node, _convert_="all") if isinstance(node, dict) else node
        except InstantiationException as error:
            cause = error.__cause__ or error
            raise ValueError(
                f"`search.space.{key}` must be a distribution of Optuna's, got {node}: {cause}"
            ) from error
        if not isinstance(made, BaseDistribution):
            raise ValueError(
                f"`search.space.{key}` must be a distribution of Optuna's, got {made!r}"
            )
        yield key, made


def suggested(trial: optuna.Trial, space: dict[str, BaseDistribution]) -> dict[str, Any]:
    """The values of a trial, by key."""
    return {key: _suggested(trial, key, kind) for key, kind in space.items()}


def _suggested(trial: optuna.Trial, key: str, kind: BaseDistribution) -> Any:
    if isinstance(kind, FloatDistribution):
        return trial.suggest_float(key, kind.low, kind.high, step=kind.step, log=kind.log)
    if isinstance(kind, IntDistribution):
        return trial.suggest_int(key, kind.low, kind.high, step=kind.step, log=kind.log)
    assert isinstance(kind, CategoricalDistribution)
    return trial.suggest_categorical(key, kind.choices)


def with_values(cfg: DictConfig, values: dict[str, Any]) -> DictConfig:
    """The configuration with these values, read as Hydra reads them on a command line."""
    changed = cfg.copy()
    for key, value in values.items():
        parsed = OverridesParser.create().parse_override(f"{key}={value}").value()
        OmegaConf.update(changed, key, parsed, force_add=True)
    return changed


def as_arguments(cfg: DictConfig, values: dict[str, Any]) -> list[str]:
    """Overrides, as they stand in a shell, that give a configuration these values."""
    signs = {key: "" if OmegaConf.select(cfg, key) is not None else "+" for key in values}
    return [shlex.quote(f"{signs[key]}{key}={value}") for key, value in values.items()]


def storage_url(storage: str | None, run_dir: Path) -> str:
    """The URL of a study's storage: a server's, or that of a file, also named by its folder."""
    if storage is not None and re.match(r"\w+(\+\w+)?://", storage):
        return storage
    path = run_dir if storage is None else Path(storage)
    if storage is None or path.is_dir():
        path = path / STORAGE_FILE
    return f"sqlite:///{path.resolve()}"


def open_study(url: str, name: str, *, pruner: str | None, num_seeds: int) -> optuna.Study:
    """The study of this name, new or with its trials so far.

    Trials whose process is gone are found by their heartbeat, and fail.

    Raises:
        ValueError: if the pruner is unknown, or the storage cannot be used.
    """
    is_file = url.startswith("sqlite")
    arguments = {"connect_args": {"timeout": _SECONDS_FOR_A_LOCK}} if is_file else {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            kept = RDBStorage(url, engine_kwargs=arguments, heartbeat_interval=_HEARTBEAT_SECONDS)
        return optuna.create_study(
            storage=kept,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(pruner, num_seeds * NUM_REPORTS),
        )
    except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError) as error:
        # of a driver that is missing, only the cause tells its name
        reason = error.__cause__ if isinstance(error, ImportError) and error.__cause__ else error
        # the message may repeat the URL
        told = f"{type(reason).__name__}: {reason}".splitlines()[0].replace(url, "it")
        raise ValueError(
            f"`search.storage` must be a file or a server that can be used, got "
            f"{without_password(url)}: {told}"
        ) from None
    finally:
        optuna.logging.set_verbosity(verbosity)


def _pruner(name: str | None, num_reports: int) -> BasePruner:
    if name is None:
        return NopPruner()
    require_choice("search.pruner", name, _PRUNERS)
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=num_reports)
    # the first agents are noise, and so are the first returns of every agent
    return MedianPruner(n_startup_trials=5, n_warmup_steps=2)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: those that were completed, were pruned, or failed by themselves."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state in states or ERROR in trial.user_attrs]


def write_trials(trials: list[FrozenTrial], path: Path) -> None:
    """A row per trial."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["number", "state", "return", *names, "error"])
    for trial in trials:
        values = [trial.params.get(name, "") for name in names]
        error = trial.user_attrs.get(ERROR, "")
        writer.writerow([trial.number, trial.state.name, trial.value, *values, error])
    write_whole(path, file.getvalue())


def draw_study(study: optuna.Study, folder: Path) -> list[Path]:
    """Optuna's own figures, as HTML that works offline; returns their paths.

    One that the trials do not allow is left out, and said to be.
    """
    paths = []
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in _FIGURES:
        path = folder / f"{name}.html"
        try:
            figure = getattr(optuna.visualization, f"plot_{name}")(study)
        except (ImportError, RuntimeError, ValueError) as error:
            print(f"{path.name} is left out: {error}")
            continue
        # all pages share one copy of plotly.js
        figure.write_html(path, include_plotlyjs="directory")
        paths.append(path)
    optuna.logging.set_verbosity(verbosity)
    return paths

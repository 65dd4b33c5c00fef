"""Defaults of tasks live in their classes; `conf/task` says what differs from them."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from lrpilot.tasks.quadratic import QuadraticTask

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = sorted((CONF / "task").rglob("*.yaml"))
OF_ONES_OWN = "task._target_=lrpilot.tasks.quadratic.QuadraticTask"


def values_of(node: Any) -> list[dict[str, Any]]:
    """A configuration's objects, those in it included, each with what it names for itself."""
    if not isinstance(node, dict):
        return []
    mine = [node] if node.get("_target_", "???") != "???" else []
    return mine + [found for value in node.values() for found in values_of(value)]


def as_in_yaml(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_file_repeats_a_default_of_what_it_builds(path: Path) -> None:
    for values in values_of(OmegaConf.to_container(OmegaConf.load(path))):
        parameters = inspect.signature(get_object(values["_target_"])).parameters
        defaults = {name: as_in_yaml(parameter.default) for name, parameter in parameters.items()}
        # the class of a mixture has a name of its own, which a file says all the same
        repeated = {name for name in defaults.keys() & values if values[name] == defaults[name]}
        assert repeated <= {"name"}


def test_a_class_on_the_command_line_makes_the_task() -> None:
    needed = ["+task/optimizer=adam", "+task.base_lr=1", "+task.total_steps=9"]
    overrides = ["task=own", OF_ONES_OWN, *needed]
    with initialize_config_dir(str(CONF), version_base=None):
        task = instantiate(compose("train_agent", overrides).task, _convert_="all")
    assert isinstance(task, QuadraticTask)
    assert task.start(0).step().isfinite()

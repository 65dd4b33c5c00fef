"""Tasks by name."""

from pathlib import Path

import numpy as np
import pytest

from lrpilot.envs import LRControlEnv, make_vec_env
from lrpilot.tasks.quadratic import QuadraticTask
from lrpilot.tasks.shipped import load_task, shipped_tasks

CONF = Path(__file__).resolve().parents[2] / "conf" / "task"


def test_every_file_of_a_task_is_a_name() -> None:
    files = {path.stem for path in CONF.glob("*.yaml")}
    assert shipped_tasks() == sorted(files - {"own"})


@pytest.mark.parametrize("name", ["cifar", "mixture"])
def test_a_shipped_task_loads_by_its_name(name: str) -> None:
    assert load_task(name).name == name


def test_changes_replace_what_the_file_says() -> None:
    assert load_task("quadratic", dimension=3, total_steps=7).total_steps == 7


def test_a_task_is_returned_as_it_is() -> None:
    task = load_task("quadratic")
    assert load_task(task) is task


def test_a_wrong_name_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"one of cifar, .*quadratic, .*, got 'quadratc'"):
        load_task("quadratc")


def test_environments_take_a_name_for_a_task() -> None:
    assert isinstance(LRControlEnv("quadratic").task, QuadraticTask)
    env = make_vec_env("nmf", 2, runner="batched")
    assert np.asarray(env.reset()).shape == (2, 12)

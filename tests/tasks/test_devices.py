"""A task runs where it is asked to: here on a device that refuses to be mixed with the CPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpilot.tasks.devices import known_devices
from lrpilot.tasks.mixture import MixtureTask
from lrpilot.tasks.quadratic import QuadraticTask
from tests.second_device import NAME
from tests.tasks.on_second_device import MAKERS, UNBATCHED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found() -> Any:
    # a process has one accelerator for good
    command = [sys.executable, "-m", "tests.tasks.on_second_device"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_auto_chooses_the_accelerator_and_all_of_a_run_is_there(found: Any, name: str) -> None:
    assert "error" not in found[name], found[name]["error"]["message"][:1000]
    assert found[name][NAME]["devices"] == [NAME]
    if name not in UNBATCHED:
        assert found[name][NAME]["devices of many"] == [NAME]


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_seed_is_the_same_run_on_every_device(found: Any, name: str) -> None:
    for numbers in ("one", "many", "evaluated"):
        assert found[name]["cpu"].get(numbers) == found[name][NAME].get(numbers)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about machines without a GPU")
def test_auto_is_the_cpu_where_there_is_no_accelerator() -> None:
    assert known_devices() == ["cpu"]
    assert task("auto").device == "cpu"


def test_a_wrong_device_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"`device` must be one of auto, cpu.*, got 'gpu'"):
        task("gpu")


def test_a_mixture_puts_all_its_tasks_on_its_device() -> None:
    with pytest.raises(ValueError, match=r"`device` must be one of auto, cpu.*, got 'gpu'"):
        MixtureTask(tasks={"one": task("cpu")}, device="gpu")


def task(device: str) -> QuadraticTask:
    return QuadraticTask(
        name="quadratic", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=5, device=device
    )

"""Jobs of a sweep have cores and GPUs of their own; a GPU is what `CUDA_VISIBLE_DEVICES` names."""

import json
import os
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lrpilot.envs.runners import CORES_VARIABLE, num_cores
from scripts.resources import (
    gpu_shares,
    job_slots,
    limit_cores,
    num_gpus,
    take_slot,
    visible_gpus,
    whole_gpus,
)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")


def run_jobs(folder: Path, num_jobs: int, gpus: float) -> Any:
    """Beginning, end and GPUs of processes that all want a slot at once."""
    slots = partial(gpu_shares, ["4", "5"], gpus)
    for i in range(num_jobs):
        if os.fork() == 0:
            take_slot(folder, slots)
            start = time.monotonic()
            time.sleep(0.4)
            done = [start, time.monotonic(), os.environ["CUDA_VISIBLE_DEVICES"]]
            (folder / f"{i}.json").write_text(json.dumps(done))
            os._exit(0)
    for _ in range(num_jobs):
        assert os.wait()[1] == 0
    return [json.loads(path.read_text()) for path in folder.glob("*.json")]


def most_at_once(jobs: Any) -> dict[str, int]:
    """How many jobs ran on each GPU at the same time."""
    most: Counter[str] = Counter()
    for start, _, own in jobs:
        for gpu in own.split(","):
            running = [job for job in jobs if gpu in job[2].split(",") and job[0] <= start < job[1]]
            most[gpu] = max(most[gpu], len(running))
    return dict(most)


@pytest.mark.slow
@pytest.mark.parametrize(("gpus", "expected"), [(1, 1), (0.7, 1), (0.5, 2), (0.3, 3), (1 / 3, 3)])
def test_on_a_gpu_there_are_at_once_as_many_jobs_as_their_shares_allow(
    tmp_path: Path, gpus: Any, expected: Any
) -> None:
    jobs = run_jobs(tmp_path, 8, gpus)
    assert len(jobs) == 8
    assert most_at_once(jobs) == {"4": expected, "5": expected}


@pytest.mark.slow
def test_jobs_of_two_gpus_have_both_one_after_the_other(tmp_path: Path) -> None:
    jobs = run_jobs(tmp_path, 3, 2)
    assert [gpus for *_, gpus in jobs] == ["4,5"] * 3
    assert most_at_once(jobs) == {"4": 1, "5": 1}


def test_a_killed_process_gives_its_slot_back(tmp_path: Path) -> None:
    process = os.fork()
    if process == 0:
        take_slot(tmp_path, partial(gpu_shares, ["4"], 1))
        (tmp_path / "taken").touch()
        time.sleep(60)
    while not (tmp_path / "taken").exists():
        time.sleep(0.01)
    os.kill(process, 9)
    os.waitpid(process, 0)
    assert sorted(gpus for *_, gpus in run_jobs(tmp_path, 2, 1)) == ["4", "5"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "`gpus_per_job` must be null, or 0 or more, got -1"),
        (1.5, "`gpus_per_job` must be a share of one card, such as 0.25, or a number of whole"),
        ("all", "`gpus_per_job` must be null, or 0 or more, got 'all'"),
        (True, "`gpus_per_job` must be null, or 0 or more, got True"),
        (float("nan"), "`gpus_per_job` must be null, or 0 or more, got nan"),
    ],
)
def test_a_number_of_gpus_that_no_job_can_have_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        num_gpus(value)


@pytest.mark.usefixtures("two_gpus")
def test_a_job_has_one_gpu_where_there_are_any_and_nothing_is_said() -> None:
    assert (visible_gpus(), num_gpus(None), num_gpus(0)) == (["4", "5"], 1, 0)


def test_a_job_has_no_gpu_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert num_gpus(None) == 0
    assert job_slots(1, None) == [()] * num_cores()


@pytest.mark.usefixtures("two_gpus")
def test_a_job_that_does_not_fit_on_the_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at most the 2 GPUs that this machine shows"):
        job_slots(1, 3)
    with pytest.raises(ValueError, match=f"must be at most the {num_cores()} cores of this"):
        job_slots(num_cores() + 1, None)


def test_a_share_of_a_card_is_refused_for_slurm() -> None:
    with pytest.raises(ValueError, match=r"must be a whole number for Slurm, .* got 0\.5"):
        whole_gpus(0.5)
    assert (whole_gpus(2), whole_gpus(0)) == (2, None)


def test_a_job_beside_others_starts_no_more_workers_than_it_has_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CORES_VARIABLE, "99")
    limit_cores(1)
    assert num_cores() == 1

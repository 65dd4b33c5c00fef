"""Trainings that break off from outside end in a line, and go on."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lrpilot import Policy
from lrpilot.agents.metrics import read_rows
from tests import programs
from tests.programs import TINY, run_scripts

pytestmark = pytest.mark.slow

WORKERS = [*TINY, "env.runner=subprocess", "agent.total_steps=1000000"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts a training in a session of its own, which ends with the test."""
    processes = []

    def start(*arguments: Any) -> Any:
        process = programs.start("train_agent.py", *arguments, cwd=tmp_path, start_new_session=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def children_of(pid: int, command: str) -> list[int]:
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", str(pid)],
        capture_output=True,
        text=True,
    )
    lines = [line.split(None, 1) for line in listed.stdout.splitlines()]
    return [int(child) for child, arguments in lines if command in arguments]


def workers_of(process: Any) -> list[int]:
    servers = children_of(process.pid, "multiprocessing.forkserver")
    return [worker for server in servers for worker in children_of(server, "")]


def wait_for(found: Any, process: Any) -> Any:
    while not found():
        assert process.poll() is None
        time.sleep(0.05)
    return found()


def test_training_goes_on_after_a_worker_is_killed_until_sigterm_asks_for_another_start(
    start: Any, tmp_path: Path
) -> None:
    process = start(*WORKERS, "hydra.run.dir=cut")
    metrics = tmp_path / "cut" / "metrics.csv"

    def rows() -> Any:
        return read_rows(metrics.read_text()) if metrics.exists() else []

    wait_for(lambda: len(rows()) > 2, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    wait_for(lambda: any(row["num_lost_episodes"] == "1" for row in rows()), process)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    assert "Traceback" not in errors
    assert errors.strip().endswith(f"/scripts/train_agent.py resume={tmp_path}/cut")
    done = Policy.load(tmp_path / "cut").card["num_env_steps"]
    more = ["resume=cut", f"agent.total_steps={done + 58}", "hydra.run.dir=rest"]
    ((code, _, errors),) = run_scripts([["train_agent.py", *more]], tmp_path)
    assert code == 0, errors
    assert Policy.load(tmp_path / "rest").card["num_env_steps"] == done + 58


def test_ctrl_c_while_workers_start_leaves_one_word(start: Any) -> None:
    process = start(*WORKERS)
    wait_for(lambda: workers_of(process), process)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert errors == "interrupted\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Any]:
    """A folder that a second mount of it makes read-only, until it is called again."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: Any) -> Any:
        return subprocess.run(["mount", *options, folder], capture_output=True, text=True)

    if mount("-t", "tmpfs", "-o", "size=64m", "tmpfs").returncode:
        pytest.skip("only root can mount a folder")

    def toggle(*, read_only: bool) -> None:
        if read_only:
            assert mount("--bind", folder).returncode == 0
            assert mount("-o", "remount,ro,bind").returncode == 0
        else:
            subprocess.run(["umount", folder], check=True)

    yield toggle
    while not subprocess.run(["umount", folder], capture_output=True).returncode:
        pass


@pytest.mark.parametrize("is_mended", [True, False])
def test_a_training_whose_folder_becomes_read_only_goes_on_and_loses_nothing(
    start: Any, tmp_path: Path, disk: Any, is_mended: bool
) -> None:
    arguments = [*TINY, "agent.total_steps=5800", "agent.checkpoint_steps=58"]
    process = start(*arguments, "hydra.run.dir=disk/run")
    metrics = tmp_path / "disk/run/metrics.csv"

    def rows() -> int:
        return len(read_rows(metrics.read_text())) if metrics.exists() else 0

    wait_for(lambda: rows() > 2, process)
    disk(read_only=True)
    num_rows = rows()
    wait_for(lambda: "metrics cannot be written" in process.errors(), process)
    if is_mended:
        disk(read_only=False)
    _, errors = process.communicate()
    assert "the checkpoint cannot be written and training goes on without" in errors
    if is_mended:
        assert process.returncode == 0, errors
        assert rows() == 100
        return
    assert process.returncode == 1
    last = errors.splitlines()[-1]
    assert re.match(r"cannot use .*policy.safetensors: Read-only file system; continue with", last)
    assert rows() == num_rows
    rest = ["train_agent.py", "resume=disk/run", "hydra.run.dir=rest"]
    ((code, _, errors),) = run_scripts([rest], tmp_path)
    assert code == 0, errors
    assert Policy.load(tmp_path / "rest").card["num_env_steps"] == 5800

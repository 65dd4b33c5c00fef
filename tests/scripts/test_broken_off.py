"""Trainings that break off from outside end in a line, and go on."""

import os
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

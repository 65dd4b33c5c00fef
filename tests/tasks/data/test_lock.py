"""The lock of a file in the cache: what is waited for, and for how long."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lrpilot.tasks.data import shared_tensors
from lrpilot.tasks.data.shared_tensors import one_at_a_time, share_tensors

HOLD = "import fcntl, time; f = open({!r}, 'w'); fcntl.flock(f, 2); print(flush=True); {}"


@pytest.fixture
def _hung(tmp_path: Path) -> Iterator[None]:
    """Another process that holds the lock and does nothing."""
    code = HOLD.format(str(tmp_path / ".file.lock"), "time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_tensors, "SECONDS_BEFORE_NOTICE", 0.1, raising=False)
    monkeypatch.setattr(shared_tensors, "SECONDS_BEFORE_GOING_ON", 0.3, raising=False)


@pytest.mark.usefixtures("_hung", "_impatient")
def test_who_waits_for_a_hung_process_says_so_and_goes_on_without_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = share_tensors(tmp_path / "file", lambda: {"x": torch.ones(2)}, source="one")
    assert made["x"].tolist() == [1.0, 1.0]
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"waiting for another process that makes {tmp_path / 'file'}")
    assert second.startswith(f"{tmp_path / '.file.lock'} has been held for")
    assert not (tmp_path / "file").exists()


@pytest.mark.usefixtures("_impatient")
def test_a_process_that_ends_in_time_is_waited_for(tmp_path: Path) -> None:
    code = HOLD.format(str(tmp_path / ".file.lock"), "time.sleep(0.2)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with one_at_a_time(tmp_path / "file") as may_write:
            assert may_write


def test_a_folder_that_cannot_be_made_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").touch()
    with one_at_a_time(tmp_path / "cache" / "file") as may_write:
        assert not may_write
    assert "going on without the cache folder" in caplog.text

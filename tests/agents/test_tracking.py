import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lrpilot.agents.tracking import TensorBoardTracker, WandbTracker
from tests.full_disk import full_disk


@pytest.mark.slow
def test_wandb_is_offline_and_quiet_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    # as of a user who is logged in
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    tracker = WandbTracker(tmp_path, {"seed": 0})
    tracker.log({"return_mean": 1.0}, step=1)
    tracker.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert capfd.readouterr() == ("", "")


def test_wandb_failure_at_the_start_warns_and_goes_on(tmp_path: Path) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.write_text("")
    with pytest.warns(RuntimeWarning, match="W&B failed and is switched off"):
        tracker = WandbTracker(not_a_folder, {}, mode="an unknown mode")  # type: ignore[arg-type]
    tracker.log({"return_mean": 1.0}, step=1)
    tracker.close()


def test_missing_wandb_package_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(RuntimeWarning, match="W&B failed and is switched off"):
        tracker = WandbTracker(tmp_path, {})
    tracker.log({"return_mean": 1.0}, step=1)


def test_wandb_failure_while_logging_warns_once_and_goes_on(tmp_path: Path) -> None:
    tracker = WandbTracker(tmp_path, {}, mode="disabled")

    class Broken:
        def log(self, row: dict[str, Any], step: int) -> None:
            raise ConnectionError("no network")

    tracker._run = Broken()
    with pytest.warns(RuntimeWarning, match="no network"):
        tracker.log({"return_mean": 1.0}, step=1)
    tracker.log({"return_mean": 1.0}, step=2)


def test_tensorboard_writes_events(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path, {})
    tracker.log({"return_mean": 1.0}, step=1)
    tracker.close()
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_on_a_full_disk_warns_and_goes_on(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path, {})

    def track() -> None:
        for step in range(100):
            tracker.log({"return_mean": 1.0}, step=step)
            # it writes in a thread
            time.sleep(0.01)
        tracker.close()

    with full_disk(10), pytest.warns(RuntimeWarning, match=r"TensorBoard failed .* too large"):
        track()

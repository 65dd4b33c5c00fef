import sys

import pytest

from lrpilot.agents.tracking import TensorBoardTracker, WandbTracker


@pytest.mark.slow
def test_wandb_writes_an_offline_run_when_nobody_is_logged_in(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    tracker = WandbTracker(tmp_path, {"seed": 0})
    tracker.log({"return_mean": 1.0}, step=1)
    tracker.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_wandb_failure_at_the_start_warns_and_goes_on(tmp_path):
    not_a_folder = tmp_path / "file"
    not_a_folder.write_text("")
    with pytest.warns(RuntimeWarning, match="W&B failed and is switched off"):
        tracker = WandbTracker(not_a_folder, {}, mode="an unknown mode")
    tracker.log({"return_mean": 1.0}, step=1)
    tracker.close()


def test_missing_wandb_package_warns_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(RuntimeWarning, match="W&B failed and is switched off"):
        tracker = WandbTracker(tmp_path, {})
    tracker.log({"return_mean": 1.0}, step=1)


def test_wandb_failure_while_logging_warns_once_and_goes_on(tmp_path):
    tracker = WandbTracker(tmp_path, {}, mode="disabled")

    class Broken:
        def log(self, row, step):
            raise ConnectionError("no network")

    tracker._run = Broken()
    with pytest.warns(RuntimeWarning, match="no network"):
        tracker.log({"return_mean": 1.0}, step=1)
    tracker.log({"return_mean": 1.0}, step=2)


def test_tensorboard_writes_events(tmp_path):
    tracker = TensorBoardTracker(tmp_path, {})
    tracker.log({"return_mean": 1.0}, step=1)
    tracker.close()
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))

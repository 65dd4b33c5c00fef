"""What Hydra writes of a sweep by itself, without what should not leave the machine."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lrpilot.files import write_whole
from lrpilot.redaction import without_home

SWEEP_FILE = "multirun.yaml"


class SweepSnapshot(Callback):
    """Takes passwords and this user's home folder from the sweep's `multirun.yaml`.

    Hydra writes it before the first job, and has no way to leave it out.
    """

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """As soon as there is one."""
        _clean(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Where the jobs ran elsewhere."""
        _clean(config)


def _clean(config: DictConfig) -> None:
    path = Path(config.hydra.sweep.dir) / SWEEP_FILE
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        cleaned = without_home(text)
        if cleaned != text:
            write_whole(path, cleaned)

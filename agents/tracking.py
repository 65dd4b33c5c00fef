"""Experiment trackers: Weights & Biases, TensorBoard, or the run folder's CSV file alone."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lrpilot.files import write_whole
from lrpilot.redaction import without_folders, without_home


class Tracker:
    """Tracks nothing: `metrics.csv` in the run folder is always written.

    Args:
        run_dir: the run folder.
        config: the resolved configuration.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        self.run_dir = run_dir

    def log(self, row: dict[str, Any], *, step: int) -> None:
        """Take one row of metrics at an env step."""

    def close(self, *, exit_code: int = 0) -> None:
        """Finish; a training that broke off has an exit code other than 0."""


class ReportingTracker(Tracker):
    """Tells somebody else of the rows, too, after another tracker.

    Args:
        inner: the other tracker.
        report: called with every row and its env step; what it raises ends the training.
    """

    def __init__(self, inner: Tracker, report: Callable[[dict[str, Any], int], None]) -> None:
        super().__init__(inner.run_dir, {})
        self._inner = inner
        self._report = report

    def log(self, row: dict[str, Any], *, step: int) -> None:
        """Pass the row on, then report it."""
        self._inner.log(row, step=step)
        self._report(row, step)

    def close(self, *, exit_code: int = 0) -> None:
        """Close the other tracker."""
        self._inner.close(exit_code=exit_code)


class TensorBoardTracker(Tracker):
    """Writes TensorBoard events to `<run folder>/tensorboard`."""

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(run_dir, config)
        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def log(self, row: dict[str, Any], *, step: int) -> None:
        """Write one scalar per metric."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, exit_code: int = 0) -> None:
        """Flush the events."""
        self._writer.close()


class WandbTracker(Tracker):
    """Tracks with Weights & Biases; a failure of it warns once and never stops a run.

    Args:
        run_dir: the run folder.
        config: the resolved configuration.
        project: W&B project.
        mode: "online", "offline" or "disabled"; by default that of the environment variable
            `WANDB_MODE`, else offline.
    """

    def __init__(
        self,
        run_dir: Path,
        config: dict[str, Any],
        *,
        project: str = "lrpilot",
        mode: Literal["online", "offline", "disabled"] | None = None,
    ) -> None:
        super().__init__(run_dir, config)
        self._run: Any = None
        # W&B takes our package `agents` for a library of that name, and advertises
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        with self._failures_are_warnings():
            import wandb

            asked: Any = mode or os.environ.get("WANDB_MODE")
            self._run = wandb.init(
                project=project,
                dir=str(run_dir),
                mode=asked or "offline",
                config=without_folders(config),
                # what W&B would tell by itself: paths, arguments, names of machine and user
                settings=wandb.Settings(
                    silent=True,
                    init_timeout=30,
                    x_disable_meta=True,
                    disable_git=True,
                    disable_code=True,
                    console="off",
                ),
            )

    def log(self, row: dict[str, Any], *, step: int) -> None:
        """Send one row."""
        if self._run is not None:
            with self._failures_are_warnings():
                self._run.log(row, step=step)

    def close(self, *, exit_code: int = 0) -> None:
        """Finish the W&B run, so that the next one of this process has one of its own."""
        if self._run is not None:
            with self._failures_are_warnings():
                self._run.finish(exit_code=exit_code)
                self._clean_logs()

    def _clean_logs(self) -> None:
        """Take this user's home folder from W&B's own logs, which stay on this machine."""
        for path in (self.run_dir / "wandb").rglob("*.log"):
            if not path.is_symlink():
                write_whole(path, without_home(path.read_text(errors="replace")))

    @contextmanager
    def _failures_are_warnings(self) -> Iterator[None]:
        # a tracker may fail in any way (network, disk, version); the training must go on
        try:
            yield
        except Exception as error:
            self._run = None
            warnings.warn(
                f"W&B failed and is switched off for this run: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=4,
            )

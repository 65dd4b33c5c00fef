"""Experiment trackers: Weights & Biases, TensorBoard, or the run folder's CSV file alone."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal


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


class TensorBoardTracker(Tracker):
    """Writes TensorBoard events to `<run folder>/tensorboard`.

    Where that fails, as on a full disk, a warning says so, and training goes on without them.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(run_dir, config)
        self._writer: SummaryWriter | None = SummaryWriter(str(run_dir / "tensorboard"))

    def log(self, row: dict[str, Any], *, step: int) -> None:
        """Write one scalar per metric."""
        if self._writer is not None:
            with self._failures_are_warnings():
                for name, value in row.items():
                    self._writer.add_scalar(name, value, step)

    def close(self, *, exit_code: int = 0) -> None:
        """Flush the events."""
        if self._writer is not None:
            with self._failures_are_warnings():
                self._writer.close()

    @contextmanager
    def _failures_are_warnings(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            warnings.warn(
                f"TensorBoard failed and is switched off for this run: {error}",
                RuntimeWarning,
                stacklevel=4,
            )


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
                config=config,
                settings=wandb.Settings(silent=True, init_timeout=30),
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

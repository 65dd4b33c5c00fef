"""Experiment trackers: Weights & Biases, TensorBoard, or the run folder's CSV file alone."""

import html
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from lrpilot.files import write_whole
from lrpilot.redaction import without_folders, without_home


class Labels(NamedTuple):
    """By what runs are found again among many."""

    name: str | None = None
    group: str | None = None
    """What the runs of one sweep, search or experiment have in common."""
    job_type: str = "train"
    """"train", "evaluate" or "reproduce"."""
    tags: Sequence[str] = ()


class Tracker:
    """Tracks nothing: `metrics.csv` in the run folder is always written.

    Args:
        run_dir: the run folder.
        config: the resolved configuration.
        labels: by what the run is found again.
    """

    keeps_media: ClassVar[bool] = False
    """Whether curves, figures, texts and files are kept; else they need not be made."""

    def __init__(self, run_dir: Path, config: dict[str, Any], labels: Labels | None = None) -> None:
        self.run_dir = run_dir

    def log(self, row: dict[str, Any], *, step: int) -> None:
        """Take one row of metrics at an env step."""

    def add_curves(self, name: str, curves: Mapping[str, Sequence[float]]) -> None:
        """Take curves over the optimizer steps of one run, by name, all of one length."""

    def add_figure(self, path: Path) -> None:
        """Take an image."""

    def add_text(self, path: Path) -> None:
        """Take a text of tables."""

    def add_file(self, path: Path, *, kind: str, card: Mapping[str, Any] | None = None) -> None:
        """Take a file of a kind, such as "policy", with what is known of it."""

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

    def add_file(self, path: Path, *, kind: str, card: Mapping[str, Any] | None = None) -> None:
        """Pass the file on."""
        self._inner.add_file(path, kind=kind, card=card)

    def close(self, *, exit_code: int = 0) -> None:
        """Close the other tracker."""
        self._inner.close(exit_code=exit_code)


class TensorBoardTracker(Tracker):
    """Writes TensorBoard events to `<run folder>/tensorboard`.

    Where that fails, as on a full disk, a warning says so, and training goes on without them.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any], labels: Labels | None = None) -> None:
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
        config: the resolved configuration; absolute paths are sent as their last part.
        labels: by what the run is found again.
        project: W&B project.
        mode: "online", "offline" or "disabled"; by default that of the environment variable
            `WANDB_MODE`, else online for a run of a `wandb agent`, which would wait for it in vain,
            and offline for all others.
    """

    keeps_media = True

    def __init__(
        self,
        run_dir: Path,
        config: dict[str, Any],
        labels: Labels | None = None,
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

            default = "online" if os.environ.get("WANDB_SWEEP_ID") else "offline"
            asked: Any = mode or os.environ.get("WANDB_MODE") or default
            labels = labels or Labels()
            self._run = wandb.init(
                project=project,
                dir=str(run_dir),
                mode=asked,
                name=labels.name,
                group=labels.group,
                job_type=labels.job_type,
                tags=list(labels.tags),
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

    def add_curves(self, name: str, curves: Mapping[str, Sequence[float]]) -> None:
        """Send a table with a row per optimizer step, and a plot of each curve."""
        if self._run is not None:
            with self._failures_are_warnings():
                import wandb

                rows = [list(row) for row in zip(*curves.values(), strict=True)]
                data = [[step, *row] for step, row in enumerate(rows)]
                table = wandb.Table(columns=["step", *curves], data=data)
                plots = {
                    f"{name}/{key}": wandb.plot.line(table, "step", key, title=f"{name}: {key}")
                    for key in curves
                }
                self._run.log({name: table, **plots})

    def add_figure(self, path: Path) -> None:
        """Send an image, under its file's name."""
        if self._run is not None:
            with self._failures_are_warnings():
                import wandb

                self._run.log({path.stem: wandb.Image(str(path))})

    def add_text(self, path: Path) -> None:
        """Send a text, under its file's name."""
        if self._run is not None:
            with self._failures_are_warnings():
                import wandb

                text = html.escape(path.read_text(encoding="utf-8"))
                self._run.log({path.stem: wandb.Html(f"<pre>{text}</pre>")})

    def add_file(self, path: Path, *, kind: str, card: Mapping[str, Any] | None = None) -> None:
        """Send a file as an artifact of this type, the card as its metadata."""
        if self._run is not None:
            with self._failures_are_warnings():
                import wandb

                artifact = wandb.Artifact(
                    f"{kind}-{self._run.id}", type=kind, metadata=without_folders(dict(card or {}))
                )
                artifact.add_file(str(path), name=path.name)
                self._run.log_artifact(artifact)

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

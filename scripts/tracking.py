"""The tracker of a script's run: named, grouped and tagged, and given what a comparison leaves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

from lrpilot.agents.tracking import Labels, Tracker
from scripts.overrides import plain


def make_tracker(
    cfg: DictConfig, run_dir: Path, *, job_type: str, group: str | None = None
) -> Tracker:
    """The configured tracker.

    Args:
        cfg: with `logger`, `task` and, if an agent is trained, `agent`.
        run_dir: the run folder, after which the run is named.
        job_type: "train", "evaluate" or "reproduce".
        group: of runs that belong together; by default a sweep's folder, in a sweep.
    """
    group = group or _sweep()
    tags = [str(cfg.task.name)]
    if "agent" in cfg:
        tags.append(str(cfg.agent.algorithm._target_).rpartition(".")[2])
    name = run_dir.name if group is None else f"{group}/{run_dir.name}"
    labels = Labels(name=name, group=group, job_type=job_type, tags=tags)
    tracker: Tracker = instantiate(cfg.logger)(run_dir, plain(cfg), labels)
    return tracker


def _sweep() -> str | None:
    """The name of this job's sweep; None outside of one."""
    hydra: Any = HydraConfig.instance().cfg
    if hydra is None or hydra.hydra.mode != RunMode.MULTIRUN:
        return None
    return Path(hydra.hydra.sweep.dir).name


@contextmanager
def tracked(
    cfg: DictConfig, out_dir: Path, *, job_type: str, group: str | None = None
) -> Iterator[None]:
    """Track a comparison: its tables, figures and runs, when it is over."""
    tracker = make_tracker(cfg, out_dir, job_type=job_type, group=group)
    exit_code = 1
    try:
        yield
        for path in sorted(out_dir.iterdir()):
            if path.suffix == ".md":
                tracker.add_text(path)
            elif path.suffix == ".png":
                tracker.add_figure(path)
            elif path.suffix == ".parquet":
                tracker.add_file(path, kind="runs")
        exit_code = 0
    finally:
        tracker.close(exit_code=exit_code)

"""Gather what a sweep of trainings came to: `python scripts/collect.py sweep=<folder>`.

Prints a line for every setting that was swept, with the mean return over its seeds, and which jobs
failed, where their log is, and the command that runs only those again. The output folder holds
table.md, table.csv (a row per setting), jobs.csv (a row per job), learning_curves.png and .svg.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig, OmegaConf

from lrpilot.agents.metrics import FILE_NAME as METRICS_FILE
from lrpilot.agents.training import SUMMARY_FILE
from lrpilot.command.folders import csv_of, flat
from lrpilot.evaluation.report import format_table
from lrpilot.evaluation.sweep import (
    Trained,
    distinguishing,
    draw_learning_curves,
    setting_rows,
    setting_table,
)
from lrpilot.files import write_whole
from scripts.jobs import run_job, run_script
from scripts.report import UNREAD
from scripts.sweeps import SWEEP_FILE, Job, read_jobs, sweep_command


@hydra.main(version_base=None, config_path="../conf", config_name="collect")
def main(cfg: DictConfig) -> None:
    """Collect, in a run folder of its own."""
    run_job(collect, cfg, unread=UNREAD)


def collect(cfg: DictConfig, out_dir: Path) -> None:
    """Write and print the table, draw the curves, and say what is missing.

    Raises:
        ValueError: if the folder holds no finished training.
    """
    if cfg.sweep is None or not Path(str(cfg.sweep)).is_dir():
        raise ValueError(f"`sweep` must be the folder of a sweep, got {cfg.sweep}")
    sweep_dir = Path(str(cfg.sweep))
    jobs = read_jobs(sweep_dir)
    if not jobs:
        raise ValueError(f"`sweep` must be a folder with the folders of jobs, got {sweep_dir}")
    summaries = {job.folder: summary for job in jobs if (summary := _summary(job)) is not None}
    lines = _missing_lines(jobs, list(summaries), sweep_dir)
    if not summaries:
        text = f"`sweep` must hold a finished training of train_agent.py, got {sweep_dir}"
        raise ValueError("\n".join([text, *lines]))
    keys = distinguishing([job.overrides for job in jobs])
    trained = [
        Trained(
            {key: job.overrides[key] for key in keys if key in job.overrides},
            summaries[job.folder],
            job.folder / METRICS_FILE,
        )
        for job in jobs
        if job.folder in summaries
    ]
    rows = [
        {"job": job.folder.relative_to(sweep_dir), **dict(flat(summaries[job.folder]))}
        for job in jobs
        if job.folder in summaries
    ]
    header, *cells = setting_table(trained)
    table = format_table(header, cells)
    write_whole(out_dir / "jobs.csv", csv_of(rows))
    write_whole(out_dir / "table.csv", csv_of(setting_rows(trained)))
    write_whole(out_dir / "table.md", f"{table}\n")
    draw_learning_curves(trained, out_dir / "learning_curves.png")
    print("\n".join([table, *lines, str(out_dir)]))


def _summary(job: Job) -> dict[str, Any] | None:
    """What a training came to, if it came to its end."""
    path = job.folder / SUMMARY_FILE
    if job.error or not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text())
    return None if summary["stopped_by"] else summary


def _missing_lines(jobs: list[Job], trained: list[Path], sweep_dir: Path) -> list[str]:
    """What is said of jobs that failed or were broken off, and the command that runs them."""
    missing = [job for job in jobs if job.folder not in trained and not job.is_done]
    lines = [
        f"{job.folder.name} failed: {job.error}; see {job.log}"
        if job.error
        else f"{job.folder.name} is not finished"
        for job in missing
    ]
    if missing and (sweep_dir / SWEEP_FILE).is_file():
        command = sweep_command(OmegaConf.load(sweep_dir / SWEEP_FILE).hydra, sweep_dir)
        lines.append(f"what is missing is run with: {command}")
    return lines


if __name__ == "__main__":
    run_script(main)

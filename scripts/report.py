"""Write an HTML page of comparisons: `python scripts/report.py runs=<run folder>`.

Figures that answer to the mouse, all tables, and where they come from, in one file, report.html,
that needs no network. Several comparisons of one version of the code are one page:
`"runs=[<run folder>,<run folder>]"`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig

from lrpilot.evaluation.page import PAGE_FILE, write_page
from scripts.jobs import run_job, run_script
from scripts.overrides import plain

UNREAD = (
    "task",
    "env",
    "agent",
    "scheduler",
    "rival",
    "policy",
    "logger",
    "seed",
    "compare",
    "is_quick",
    "show_progress",
    "store",
    "num_workers",
    "workers",
)


@hydra.main(version_base=None, config_path="../conf", config_name="report")
def main(cfg: DictConfig) -> None:
    """Report, in a run folder of its own."""
    run_job(report, cfg, unread=UNREAD)


def report(cfg: DictConfig, out_dir: Path) -> None:
    """Write the page, and print its path and size."""
    folders = plain(cfg.runs)
    if not isinstance(folders, list):
        folders = [] if folders is None else [folders]
    path = out_dir / PAGE_FILE
    library = Path(cfg.library) if cfg.library else None
    write_page([Path(str(folder)) for folder in folders], path, library=library)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_script(main)

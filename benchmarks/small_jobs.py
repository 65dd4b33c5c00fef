"""A script like ours, but its jobs do nothing, and every fiftieth fails: for sweep_overhead.py."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra

from scripts.jobs import run_job, run_script


@hydra.main(version_base=None, config_path="../conf", config_name="train_agent")
def main(cfg: Any) -> None:
    """Do nothing, in a run folder of its own."""
    run_job(work, cfg, unread=())


def work(cfg: Any, run_dir: Path) -> None:
    """Fail where the seed says so."""
    if cfg.seed % 50 == 49:
        raise ValueError(f"`seed` must not be one before a multiple of 50, got {cfg.seed}")


if __name__ == "__main__":
    run_script(main)

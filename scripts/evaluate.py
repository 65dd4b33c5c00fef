"""Compare a policy with fixed schedules: `python scripts/evaluate.py task=cifar policy=<run>`.

Every method trains the same networks, on seeds that no agent sees, at the same initial learning
rates, through its real scheduler on a real torch optimizer. The output folder holds runs.csv,
curves.csv, curves.png, table.md and config.yaml.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from lrpilot import Policy
from lrpilot.evaluation.evaluate import evaluate as evaluate_methods
from lrpilot.evaluation.page import PAGE_FILE, write_page
from lrpilot.evaluation.report import COMPARISON_FILES
from lrpilot.evaluation.runs.grid import Method
from scripts.jobs import run_job, run_script
from scripts.overrides import plain
from scripts.resources import cluster_of
from scripts.tracking import tracked
from scripts.training import make_task

UNREAD = ("env", "agent", "seed", "compare", "is_quick")


@hydra.main(version_base=None, config_path="../conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate, in a run folder of its own."""
    run_job(evaluate_tracked, cfg, unread=UNREAD)


def evaluate_tracked(cfg: DictConfig, out_dir: Path) -> None:
    """Evaluate, and give the tracker tables, figures and runs."""
    with tracked(cfg, out_dir, job_type="evaluate"):
        evaluate(cfg, out_dir)


def evaluate(cfg: DictConfig, out_dir: Path) -> None:
    """Train the grid, then print and save table and figure."""
    rivals = instantiate(cfg.rival, _convert_="all")
    evaluate_methods(
        make_task(cfg),
        policy=None if cfg.policy is None else load_policy(cfg.policy, plain(cfg.task)),
        schedulers=instantiate(cfg.scheduler, _convert_="all"),
        rivals=[Method(name, rival.pop("scheduler"), **rival) for name, rival in rivals.items()],
        initial_lr_factors=cfg.initial_lr_factors,
        num_seeds=cfg.num_seeds,
        num_skipped_seeds=cfg.num_skipped_seeds,
        num_replay=cfg.num_replay if cfg.placebos else 0,
        total_steps=cfg.total_steps,
        out_dir=out_dir,
        store=Path(cfg.store) if cfg.store else None,
        num_workers=cfg.num_workers,
        cluster=cluster_of(cfg),
        show_progress=cfg.show_progress,
    )
    write_page(out_dir, out_dir / PAGE_FILE)
    for name in (*COMPARISON_FILES, PAGE_FILE):
        print(out_dir / name)


def load_policy(path: str, task: dict[str, Any]) -> Policy:
    """The policy; warns where the task is not the one that it was trained on."""
    policy = Policy.load(path)
    trained: dict[str, Any] = policy.card.get("task", {})
    changed = [
        f"{key}: trained on {trained.get(key)}, evaluated on {value}"
        for key, value in task.items()
        if key not in ("data_dir", "device") and trained.get(key) != value
    ]
    if changed:
        print(f"note: {path} was trained on another task\n  " + "\n  ".join(changed))
    return policy


if __name__ == "__main__":
    run_script(main)

"""Stress an NMF policy: `python scripts/stress_nmf.py policy=<run folder>`.

Transfer without retraining to other ranks, sizes, scales and horizons, beside the linear schedule
over the same cap; and 10,000 capped runs that must not diverge, at random noise levels and
fractions, beside the same cap held for five steps. Writes transfer.md and safety.md.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from lrpilot import Policy
from lrpilot.envs.lr_control import FIRST_EVALUATION_SEED
from lrpilot.evaluation.experiments.nmf.stress import count_diverged, transfer_row
from lrpilot.evaluation.provenance import provenance_line
from lrpilot.evaluation.report import format_table, write_table
from scripts.jobs import run_job, run_script

UNREAD = ("env", "agent", "logger", "scheduler", "rival", "seed", "compare", "is_quick")


@hydra.main(version_base=None, config_path="../conf", config_name="stress_nmf")
def main(cfg: DictConfig) -> None:
    """Stress, in a run folder of its own."""
    run_job(stress, cfg, unread=UNREAD)


def stress(cfg: DictConfig, out_dir: Path) -> None:
    """Measure transfer and safety."""
    if cfg.policy is None:
        raise ValueError("`policy` must be a run folder of experiment=iclr2023_nmf, got none")
    torch.set_num_threads(cfg.num_threads)
    policy = Policy.load(cfg.policy)
    origin = provenance_line()

    def make_task(**changes: Any) -> Any:
        return instantiate(cfg.task, _convert_="all", **changes)

    bar = {"disable": not cfg.show_progress, "leave": False}
    transfers = cfg.transfer.items()
    lines = [
        transfer_row(
            name,
            make_task(**{k: v for k, v in case.items() if k != "num_runs"}),
            policy,
            seeds=range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + case.num_runs),
        )
        for name, case in tqdm(transfers, unit=" cases", **bar)
    ]
    header = ["problem", "runs", "policy", "linear", "policy minus linear", "diverged"]
    text = f"log10 f(T)/f(0), mean [95 % bootstrap interval] or (least to largest)\n({origin})\n\n"
    text += format_table(header, lines)
    write_table(f"{text}\n", out_dir / "transfer.md")
    lines = [
        count_diverged(make_task(**case.task), num_runs=case.num_runs, hold=case.hold, name=name)
        for name, case in tqdm(cfg.safety.items(), unit=" cases", **bar)
    ]
    header = ["cap", "guarantee", "runs", "diverged", "worst f(t)/f(0)", "runs with a rise"]
    text = (
        f"noise level log-uniform in [0.01, 10], fraction of the cap in [0.01, 1]\n({origin})\n\n"
    )
    text += format_table(header, lines)
    write_table(f"{text}\n", out_dir / "safety.md")
    print(f"{out_dir / 'transfer.md'}\n{out_dir / 'safety.md'}")


if __name__ == "__main__":
    run_script(main)

"""Stress an NMF policy: `python scripts/stress_nmf.py policy=<run folder>`.

Transfer without retraining to other ranks, sizes, scales and horizons, beside the linear schedule
over the same cap; and 10,000 capped runs that must not diverge, at random noise levels and
fractions, beside the same cap held for five steps. Writes transfer.md and safety.md.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from lrpilot import Policy
from lrpilot.evaluation.experiments.nmf.stress import count_diverged, transfer_row
from lrpilot.evaluation.report import format_table
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.provenance import provenance_line
from lrpilot.evaluation.runs.seeds import evaluation_seeds
from scripts.jobs import run_job, run_script

UNREAD = (
    *("env", "agent", "logger", "scheduler", "rival"),
    *("seed", "compare", "is_quick", "store", "num_workers", "workers"),
)


@hydra.main(version_base=None, config_path="../conf", config_name="stress_nmf")
def main(cfg: DictConfig) -> None:
    """Stress, in a run folder of its own."""
    run_job(stress, cfg, unread=UNREAD)


def stress(cfg: DictConfig, out_dir: Path) -> None:
    """Measure transfer and safety."""
    if cfg.policy is None:
        raise ValueError("`policy` must be a run folder of experiment=iclr2023_nmf, got none")
    policy = Policy.load(cfg.policy)
    progress = partial(tqdm, unit=" cases", disable=not cfg.show_progress, leave=False)
    output = Output(out_dir, provenance_line(), progress)

    def make_task(**changes: Any) -> Any:
        return instantiate(cfg.task, _convert_="all", **changes)

    lines = [
        transfer_row(
            name,
            make_task(**{k: v for k, v in case.items() if k != "num_runs"}),
            policy,
            seeds=evaluation_seeds(case.num_runs),
        )
        for name, case in progress(cfg.transfer.items())
    ]
    header = ["problem", "runs", "policy", "linear", "policy minus linear", "diverged"]
    output.write_table(
        "log10 f(T)/f(0), mean [95 % bootstrap interval] or (least to largest)",
        format_table(header, lines),
        name="transfer.md",
    )
    lines = [
        count_diverged(make_task(**case.task), num_runs=case.num_runs, hold=case.hold, name=name)
        for name, case in progress(cfg.safety.items())
    ]
    header = ["cap", "guarantee", "runs", "diverged", "worst f(t)/f(0)", "runs with a rise"]
    output.write_table(
        "noise level log-uniform in [0.01, 10], fraction of the cap in [0.01, 1]",
        format_table(header, lines),
        name="safety.md",
    )
    print(f"{out_dir / 'transfer.md'}\n{out_dir / 'safety.md'}")


if __name__ == "__main__":
    run_script(main)

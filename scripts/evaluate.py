"""Compare a policy with fixed schedules: `python scripts/evaluate.py task=cifar policy=<run>`.

Every method trains the same networks, on seeds that no agent sees, at the same initial learning
rates, through its real scheduler on a real torch optimizer. The output folder holds runs.csv,
curves.csv, curves.png, table.md and config.yaml.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from lrpilot import Policy
from lrpilot.envs.lr_control import FIRST_EVALUATION_SEED
from lrpilot.evaluation import report
from lrpilot.evaluation.grid import Method, deployed, train_grid
from lrpilot.evaluation.provenance import describe_provenance
from scripts.jobs import run_job, run_script


def load_policy(path: str, cfg: DictConfig) -> Policy:
    """The policy; warns where the task is not the one that it was trained on."""
    policy = Policy.load(path)
    trained: dict[str, Any] = policy.card.get("task", {})
    given: Any = OmegaConf.to_container(cfg.task, resolve=True)
    changed = [
        f"{key}: trained on {trained.get(key)}, evaluated on {value}"
        for key, value in given.items()
        if key not in ("data_dir", "device") and trained.get(key) != value
    ]
    if changed:
        print(f"note: {path} was trained on another task\n  " + "\n  ".join(changed))
    return policy


@hydra.main(version_base=None, config_path="../conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate, in a run folder of its own."""
    run_job(evaluate, cfg)


def evaluate(cfg: DictConfig, out_dir: Path) -> None:
    """Train the grid, then print and save table and figure."""
    if cfg.policy is None and not cfg.scheduler and not cfg.rival:
        raise ValueError("`scheduler` must name one at least where no policy and no rival is given")
    torch.set_num_threads(cfg.num_threads)
    origin = ", ".join(f"{name} {value}" for name, value in describe_provenance().items())
    task = instantiate(cfg.task, _convert_="all")
    methods = [
        Method(name, instantiate(scheduler, _convert_="all"))
        for name, scheduler in cfg.scheduler.items()
    ]
    methods += [
        Method(
            name,
            instantiate(rival.scheduler, _convert_="all"),
            optimizer=instantiate(rival.optimizer, _convert_="all"),
            base_lr=rival.base_lr,
        )
        for name, rival in cfg.rival.items()
    ]
    source = "no policy"
    if cfg.policy is not None:
        policy = load_policy(cfg.policy, cfg)
        source = (
            f"policy {policy.fingerprint[:12]}, trained on "
            f"{policy.card.get('task', {}).get('name')} for {policy.card.get('num_env_steps')} "
            f"env steps with seed {policy.card.get('seed')}"
        )
        methods.insert(0, Method("policy", partial(deployed, policy=policy)))
    factors = [float(factor) for factor in cfg.initial_lr_factors]
    first_seed = FIRST_EVALUATION_SEED + cfg.num_skipped_seeds
    seeds = list(range(first_seed, first_seed + cfg.num_seeds))
    results = list(
        tqdm(
            train_grid(
                task,
                methods,
                initial_lr_factors=factors,
                seeds=seeds,
                total_steps=cfg.total_steps,
            ),
            total=len(methods) * len(factors) * len(seeds),
            unit=" runs",
            disable=not cfg.show_progress,
        )
    )
    rows = [result.row for result in results]
    curves = report.curve_rows(results)
    report.write_rows(rows, out_dir / "runs.csv")
    report.write_rows(curves, out_dir / "curves.csv")
    report.draw_curves(rows, curves, out_dir / "curves.png")
    tables = report.tuned_table(rows)
    if len(factors) > 1:
        tables += "\n\n" + report.robustness_table(rows)
    text = (
        f"{task.name}: seeds {seeds[0]} to {seeds[-1]}, {report.describe_spread(len(seeds))}; each "
        f"scheduler at its best of {len(factors)} initial learning rates by held-out loss\n"
        f"({cfg.total_steps or task.total_steps} steps per run; {source}; {origin})\n\n{tables}\n"
    )
    report.write_table(text, out_dir / "table.md")
    for name in ("runs.csv", "curves.csv", "curves.png", "table.md"):
        print(out_dir / name)


if __name__ == "__main__":
    run_script(main)

"""Reproduce a published experiment: `python scripts/reproduce.py experiment=iclr2023_nmf`.

Trains the agent, tunes every schedule, and compares all of them on held-out problems. The output
folder holds the agent's run folder, and for each problem outcomes_<name>.csv, table_<name>.md and
curves_<name>.png. `quick=true` runs a small version in two minutes.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from agents.tracking import Tracker
from agents.training import train_agent
from evaluation import nmf_experiment, nmf_report
from evaluation.provenance import describe_provenance
from lrpilot import Policy
from tasks.nmf import NMFTask

QUICK = {
    "agent.total_steps": 45_000,
    "num_tuning": 32,
    "num_held_out": 64,
    "num_real_seeds": 1,
    "initial_lrs": [0.001, 0.01],
    "real_initial_lrs": [0.001, 0.01],
    "cap_fractions": [0.3, 1.0],
    "real_matrices": {"digits": 10},
}


def compare_on(
    task: NMFTask, policy: Policy, name: str, num_held_out: int, cfg: DictConfig, out_dir: Path
) -> None:
    """Tune and compare on one problem, and write its table, figure and runs."""
    experiment = cfg.experiment
    schedules = {k: instantiate(v, _convert_="all") for k, v in experiment.scheduler.items()}
    fractions = list(experiment.cap_fractions)
    bar = partial(tqdm, disable=not cfg.show_progress, unit=" trials", leave=False)
    is_random = task.matrix is None
    num_tuning = experiment.num_tuning if is_random else 1
    tuned = nmf_experiment.tune_schedules(
        task,
        schedules,
        initial_lrs=list(experiment.initial_lrs if is_random else experiment.real_initial_lrs),
        cap_fractions=fractions,
        num_seeds=num_tuning,
        modes=nmf_experiment.MODES if is_random else ("raw", "fraction"),
        progress=partial(bar, desc=f"{name}: tuning"),
    )
    outcomes = nmf_experiment.compare(
        task,
        policy,
        schedules,
        tuned,
        cap_fractions=fractions,
        num_seeds=num_held_out,
        num_replay_seeds=num_tuning,
        progress=partial(bar, desc=f"{name}: held-out"),
    )
    origin = ", ".join(f"{key} {value}" for key, value in describe_provenance().items())
    text = (
        f"{name}: {num_held_out} held-out runs, tuned on {num_tuning} others, "
        f"{task.total_steps} steps; mean [95 % bootstrap interval]\n({origin})\n\n"
        f"{nmf_report.comparison_table(outcomes)}\n\n{nmf_report.verdict(outcomes)}\n"
    )
    (out_dir / f"table_{name}.md").write_text(text)
    nmf_report.write_outcomes(outcomes, name, out_dir / f"outcomes_{name}.csv")
    nmf_report.draw_outcomes(outcomes, f"NMF, {name}", out_dir / f"curves_{name}.png")
    print(f"\n{text}")


@hydra.main(version_base=None, config_path="../conf", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    """Train, tune, compare."""
    start = time.perf_counter()
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    if cfg.quick:
        OmegaConf.set_struct(cfg, False)
        for key, value in QUICK.items():
            OmegaConf.update(cfg.experiment, key, value, merge=False)
    OmegaConf.save(cfg, out_dir / "config.yaml", resolve=True)
    torch.set_num_threads(cfg.num_threads)
    describe_provenance()  # reads the commit now, not after hours of training
    experiment = cfg.experiment
    task: NMFTask = instantiate(experiment.task, _convert_="all", data_dir=cfg.data_dir)
    agent_dir = Path(cfg.policy) if cfg.policy else train(task, cfg, out_dir / "agent")
    policy = Policy.load(agent_dir)
    compare_on(task, policy, "random", experiment.num_held_out, cfg, out_dir)
    for matrix, rank in experiment.real_matrices.items():
        real = instantiate(
            experiment.task,
            _convert_="all",
            data_dir=cfg.data_dir,
            matrix=matrix,
            rank=rank,
            smallest_shape=None,
            smallest_rank=None,
            scale_range=[1.0, 1.0],
        )
        compare_on(real, policy, matrix, experiment.num_real_seeds, cfg, out_dir)
    print(f"{time.perf_counter() - start:.0f} seconds; tables, figures and runs in {out_dir}")


def train(task: NMFTask, cfg: DictConfig, agent_dir: Path) -> Path:
    """Train the agent of the experiment; returns its run folder."""
    experiment = cfg.experiment
    agent_dir.mkdir()
    config: Any = OmegaConf.to_container(experiment, resolve=True)
    train_agent(
        instantiate(experiment.env, _convert_="all")(task, experiment.agent.num_envs),
        algorithm=instantiate(experiment.agent.algorithm, _convert_="all"),
        total_steps=experiment.agent.total_steps,
        seed=cfg.seed,
        run_dir=agent_dir,
        tracker=Tracker(agent_dir, config),
        card={key: config[key] for key in ("task", "env", "agent")},
        checkpoint_steps=experiment.agent.total_steps,
        provenance=describe_provenance(),
        show_progress=cfg.show_progress,
    )
    return agent_dir


if __name__ == "__main__":
    main()

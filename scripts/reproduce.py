"""Reproduce a published experiment: `python scripts/reproduce.py experiment=iclr2023_nmf`.

Trains the agent, if the experiment has one and no policy is given, and compares as the YAML of
the experiment says. The output folder holds the agent's run folder, and tables, figures and runs.
`quick=true` runs a small version of everything in about two minutes.
"""

import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from lrpilot import Policy
from lrpilot.agents.tracking import Tracker
from lrpilot.agents.training import train_agent, without_folders
from lrpilot.envs import runner_of
from lrpilot.evaluation.provenance import describe_provenance
from lrpilot.evaluation.report import Output
from scripts.jobs import run_job, run_script, write_config
from scripts.overrides import is_given, plain


@hydra.main(version_base=None, config_path="../conf", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    """Reproduce, in a run folder of its own."""
    run_job(reproduce, cfg)


def reproduce(cfg: DictConfig, out_dir: Path) -> None:
    """Train, then compare."""
    start = time.perf_counter()
    experiment = cfg.experiment
    if cfg.quick:
        shorten(experiment)
        write_config(cfg, out_dir)
    torch.set_num_threads(cfg.num_threads)
    # reads the commit now, not after hours of training
    origin = ", ".join(f"{key} {value}" for key, value in describe_provenance().items())
    path = cfg.policy or experiment.get("policy")
    if path is None and "agent" in experiment:
        path = train(cfg, out_dir / "agent")
    compare = instantiate(experiment.compare, _convert_="all")
    compare(
        policy=None if path is None else Policy.load(path),
        output=Output(
            out_dir,
            origin,
            progress=partial(tqdm, disable=not cfg.show_progress, leave=False),
            is_quick=cfg.quick,
        ),
    )
    print(f"{time.perf_counter() - start:.0f} seconds; tables, figures and runs in {out_dir}")


def shorten(experiment: DictConfig) -> None:
    """Take the values of the experiment's quick version, but for those that were given."""
    for key, value in experiment.quick.items():
        if not is_given(f"experiment.{key}"):
            OmegaConf.update(experiment, key, value, merge=False)


def train(cfg: DictConfig, agent_dir: Path) -> Path:
    """Train the agent of the experiment; returns its run folder."""
    experiment = cfg.experiment
    agent_dir.mkdir()
    task = instantiate(experiment.task, _convert_="all")
    algorithm = instantiate(experiment.agent.algorithm, _convert_="all")
    init_from = experiment.agent.get("init_from")
    make_env = instantiate(experiment.env, _convert_="all")
    with closing(make_env(task, experiment.agent.num_envs)) as env:
        # not "auto", so that the card names what ran
        experiment.env.runner = runner_of(env)
        config = without_folders(plain(experiment))
        summary = train_agent(
            env,
            algorithm=algorithm,
            total_steps=experiment.agent.total_steps,
            seed=cfg.seed,
            run_dir=agent_dir,
            tracker=Tracker(agent_dir, config),
            card={key: config[key] for key in ("task", "env", "agent")},
            checkpoint_steps=experiment.agent.checkpoint_steps,
            provenance=describe_provenance(),
            init_from=Policy.load(init_from) if init_from else None,
            show_progress=cfg.show_progress,
        )
    if summary["stopped_by"]:
        raise SystemExit(f"stopped by {summary['stopped_by']}; the agent's run is {agent_dir}")
    return agent_dir


if __name__ == "__main__":
    run_script(main)

"""From a composed configuration to a trained agent, for every script that trains one."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lrpilot import ControlSettings, Policy
from lrpilot.agents import train
from lrpilot.agents.checkpoint import has_checkpoint
from lrpilot.agents.tracking import ReportingTracker
from lrpilot.envs.runners import fastest_runner, make_vec_env
from lrpilot.evaluation.runs.provenance import describe_provenance
from lrpilot.tasks.task import Task
from scripts.overrides import plain
from scripts.resuming import settings_of
from scripts.run_folders import CONFIG_FILE, write_config
from scripts.sweeps import script_command
from scripts.tracking import make_tracker

# what `make_vec_env` takes beside the settings
OF_WORKERS = ("num_workers", "worker_runner")


def make_task(cfg: DictConfig) -> Task:
    """The task that is configured.

    Raises:
        ValueError: if its `_target_` makes something else.
    """
    task = instantiate(cfg.task, _convert_="all")
    if not isinstance(task, Task):
        kind = type(task).__name__
        raise ValueError(f"`task._target_` must make a Task, got {cfg.task._target_} of {kind}")
    return task


def train_configured(
    cfg: DictConfig,
    run_dir: Path,
    *,
    overrides: Sequence[str] | None = None,
    resume_from: Path | None = None,
    report: Callable[[dict[str, Any], int], None] | None = None,
    group: str | None = None,
) -> dict[str, Any]:
    """Train the configured agent on the configured task; returns its summary.

    Args:
        cfg: with `task`, `env`, `agent`, `logger`, `seed`, `num_threads` and `show_progress`;
            `env.runner` becomes the one that runs, in the run folder's `config.yaml`, too.
        run_dir: the agent's run folder; a training that was broken off there goes on.
        overrides: what the configuration is made of, if the run can be resumed with them.
        resume_from: run folder to continue.
        report: called with every row of metrics and its env step.
        group: of runs that belong together, for a tracker; by default those of a sweep.
    """
    if "agent" not in cfg:
        raise ValueError("`agent` must be chosen, as in agent=ppo, got none")
    torch.set_num_threads(cfg.num_threads)
    if has_checkpoint(run_dir):
        resume_from, kept = run_dir, OmegaConf.load(run_dir / CONFIG_FILE)
        if cfg.env.runner in ("auto", "measure"):
            cfg.env.runner = kept.env.runner
    task, agent = make_task(cfg), cfg.agent
    print(
        f"{task.name}: {agent.total_steps} env steps in {agent.num_envs} environments; "
        "agent.total_steps=... and agent.num_envs=... change that"
    )
    env = dict(instantiate(cfg.env, _convert_="all").keywords)
    runner = env.pop("runner")
    of_workers = {name: env.pop(name) for name in OF_WORKERS if name in env}
    settings = ControlSettings(**env)
    if runner in ("auto", "measure"):
        # so that the run is known, and resumed, as it was
        cfg.env.runner = fastest_runner(task, agent.num_envs, settings, anew=runner == "measure")
    write_config(cfg, run_dir)
    config = plain(cfg)
    tracker = make_tracker(cfg, run_dir, job_type="train", group=group)
    if report is not None:
        tracker = ReportingTracker(tracker, report)
    return train(
        task,
        settings,
        algorithm=instantiate(agent.algorithm, _convert_="all"),
        total_steps=agent.total_steps,
        num_envs=agent.num_envs,
        run_dir=run_dir,
        runner=cfg.env.runner,
        seed=cfg.seed,
        checkpoint_steps=agent.checkpoint_steps,
        init_from=Policy.load(agent.init_from) if agent.init_from and not resume_from else None,
        tracker=tracker,
        card={name: config[name] for name in ("task", "env", "agent")},
        # reads the commit now, not after hours of training
        provenance=describe_provenance(),
        command=None if overrides is None else settings_of(cfg, overrides),
        resume_from=resume_from,
        show_progress=cfg.show_progress,
        make_env=partial(make_vec_env, ray_address=cfg.ray_address, **of_workers),
    )


def command_line(script: str, *arguments: str) -> str:
    """A command that runs a script from any folder, with the configuration folders of this run.

    Args:
        script: its file's name.
        *arguments: overrides, as they stand in a shell.
    """
    return script_command(HydraConfig.get(), script, *arguments)

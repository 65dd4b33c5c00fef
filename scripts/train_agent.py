"""Train an agent that controls learning rates: `python scripts/train_agent.py task=cifar`.

The run folder (printed at the end; `hydra.run.dir=...` moves it) holds policy.safetensors,
agent.zip, metrics.csv, summary.json, config.yaml and checkpoint.pt. `resume=<run folder>` continues
in a new folder, from checkpoint.pt alone, and runs no code from it. agent.zip is for users of
Stable-Baselines3, and to load it is to run what is in it.
"""

import shlex
import sys
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from lrpilot import Policy
from lrpilot.agents import checkpoint
from lrpilot.agents.training import train_agent
from lrpilot.envs import WorkerError, runner_of
from lrpilot.evaluation.provenance import describe_provenance
from scripts.jobs import run_job, run_script, write_config
from scripts.overrides import as_argument, given_overrides, key_of, plain
from scripts.resuming import find_run_dir, resumed_config, settings_of


@hydra.main(version_base=None, config_path="../conf", config_name="train_agent")
def main(cfg: DictConfig) -> None:
    """Train, in a run folder of its own."""
    run_job(train, cfg)


def train(cfg: DictConfig, run_dir: Path) -> None:
    """Compose the parts and train."""
    resume_from = find_run_dir(cfg.resume, cfg.output_root) if cfg.resume else None
    overrides = given_overrides()
    if resume_from:
        cfg, overrides = resumed_config(resume_from)
    torch.set_num_threads(cfg.num_threads)
    task = instantiate(cfg.task, _convert_="all")
    print(describe_budget(cfg))
    algorithm = instantiate(cfg.agent.algorithm, _convert_="all")
    name = cfg.agent.get("init_from")
    init_from = None if resume_from or not name else Policy.load(name)
    provenance = describe_provenance()
    with closing(instantiate(cfg.env, _convert_="all")(task, cfg.agent.num_envs)) as env:
        # not "auto", so that the run is known, and resumed, as it was
        cfg.env.runner = runner_of(env)
        write_config(cfg, run_dir)
        config = plain(cfg)
        try:
            summary = train_agent(
                env,
                algorithm=algorithm,
                total_steps=cfg.agent.total_steps,
                seed=cfg.seed,
                run_dir=run_dir,
                tracker=instantiate(cfg.logger)(run_dir, config),
                card={"task": config["task"], "env": config["env"], "agent": config["agent"]},
                checkpoint_steps=cfg.agent.checkpoint_steps,
                settings=settings_of(cfg, overrides),
                provenance=provenance,
                resume_from=resume_from,
                init_from=init_from,
                show_progress=cfg.show_progress,
            )
        except WorkerError as error:
            if not (run_dir / checkpoint.FILE_NAME).exists():
                raise
            raise WorkerError(f"{error}; continue with {as_argument('resume', run_dir)}") from error
    returns = summary["return_mean_last_rollouts"]
    print(f"\ntask                   {task.name}")
    print(f"env steps              {summary['num_env_steps']}")
    print(f"inner steps            {summary['num_inner_steps']}")
    print(f"return, last rollouts  {'none yet' if returns is None else f'{returns:+.3f}'}")
    print(f"seconds                {summary['seconds']:.1f}")
    print(f"policy                 {run_dir / summary['policy']}")
    print(f"run folder             {run_dir}")
    if summary["stopped_by"]:
        again = as_argument("resume", run_dir)
        raise SystemExit(f"stopped by {summary['stopped_by']}; continue with {again}")
    print(f"next                   {next_command(task.name, overrides, run_dir)}")


def describe_budget(cfg: DictConfig) -> str:
    """How long the agent is trained, and what changes it."""
    return (
        f"{cfg.task.name}: {cfg.agent.total_steps} env steps in {cfg.agent.num_envs} "
        f"environments; agent.total_steps=... and agent.num_envs=... change that"
    )


def next_command(task: str, overrides: list[str], run_dir: Path) -> str:
    """The command that compares the policy with schedules on the task that it was trained on."""
    sources = HydraConfig.get().runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    chosen = [override for override in overrides if key_of(override).startswith("task")]
    return " ".join(
        [
            shlex.quote(sys.executable),
            "scripts/evaluate.py",
            *(f"--config-dir={shlex.quote(folder)}" for folder in folders),
            *(map(shlex.quote, chosen) if chosen else [as_argument("task", task)]),
            as_argument("policy", run_dir),
        ]
    )


if __name__ == "__main__":
    run_script(main)

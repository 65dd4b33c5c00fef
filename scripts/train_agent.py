"""Train an agent that controls learning rates: `python scripts/train_agent.py task=cifar`.

The run folder (printed at the end; `hydra.run.dir=...` moves it) holds policy.safetensors,
agent.zip, metrics.csv, summary.json, config.yaml and checkpoint.pt.
"""

import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from agents import checkpoint
from agents.training import has_results, train_agent
from envs import runner_of
from evaluation.provenance import describe_provenance
from lrpilot import Policy
from scripts.jobs import run_job, run_script
from scripts.overrides import as_argument, given_overrides, key_of, plain

MAY_CHANGE = ("agent.total_steps", "agent.checkpoint_steps", "num_threads", "show_progress")


def find_run_dir(resume: str | bool, output_root: str) -> Path:
    """The run folder to continue; True means the newest with a checkpoint."""
    if resume is not True:
        run_dir = Path(str(resume))
        if not (run_dir / checkpoint.FILE_NAME).is_file():
            raise ValueError(f"`resume` must be a run folder with a checkpoint, got {run_dir}")
        return run_dir
    found = Path(output_root).rglob(checkpoint.FILE_NAME)
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise ValueError(f"`resume=true` found no {checkpoint.FILE_NAME} under {output_root}")
    return newest.parent


def differences(given: Any, kept: Any, prefix: str) -> list[str]:
    """The leaf keys in which two configuration nodes differ, with both values."""
    if isinstance(given, dict) and isinstance(kept, dict):
        keys = dict.fromkeys([*kept, *given])
        return [
            line
            for key in keys
            for line in differences(given.get(key), kept.get(key), f"{prefix}.{key}")
        ]
    return [] if given == kept else [f"`{prefix}`: {kept} kept, {given} given"]


def resumed_config(cfg: DictConfig, run_dir: Path) -> DictConfig:
    """The configuration of the run that is continued, with what may change taken from `cfg`."""
    saved = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(saved, DictConfig)
    if cfg.env.runner == "auto":
        cfg.env.runner = saved.env.runner
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").split("=")[0].replace("/", ".").split("@")[0]
        given = OmegaConf.select(cfg, key)
        if key in MAY_CHANGE:
            OmegaConf.update(saved, key, given)
        elif key.split(".")[0] == "logger":
            saved.logger = cfg.logger
        elif key not in ("resume", "output_root"):
            changed = differences(plain(given), plain(OmegaConf.select(saved, key)), key)
            if changed:
                raise ValueError(
                    "\n".join(changed)
                    + f"\n`{key}` cannot change when a run is resumed (may change: "
                    + f"{', '.join(MAY_CHANGE)}, logger); leave it out to keep the run's"
                )
    done = checkpoint.read_snapshot(run_dir / checkpoint.FILE_NAME)["num_env_steps"]
    if done >= saved.agent.total_steps and has_results(run_dir):
        raise ValueError(
            f"`agent.total_steps` must be more than the {done} env steps that {run_dir} has made, "
            f"got {saved.agent.total_steps}: nothing is left"
        )
    saved.resume = str(run_dir)
    return saved


@hydra.main(version_base=None, config_path="../conf", config_name="train_agent")
def main(cfg: DictConfig) -> None:
    """Train, in a run folder of its own."""
    run_job(train, cfg)


def train(cfg: DictConfig, run_dir: Path) -> None:
    """Compose the parts and train."""
    resume_from = find_run_dir(cfg.resume, cfg.output_root) if cfg.resume else None
    if resume_from:
        cfg = resumed_config(cfg, resume_from)
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
        OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
        config = plain(cfg)
        summary = train_agent(
            env,
            algorithm=algorithm,
            total_steps=cfg.agent.total_steps,
            seed=cfg.seed,
            run_dir=run_dir,
            tracker=instantiate(cfg.logger)(run_dir, config),
            card={"task": config["task"], "env": config["env"], "agent": config["agent"]},
            checkpoint_steps=cfg.agent.checkpoint_steps,
            provenance=provenance,
            resume_from=resume_from,
            init_from=init_from,
            show_progress=cfg.show_progress,
        )
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
    print(f"next                   {next_command(task.name, run_dir)}")


def describe_budget(cfg: DictConfig) -> str:
    """How long the agent is trained, and what changes it."""
    return (
        f"{cfg.task.name}: {cfg.agent.total_steps} env steps in {cfg.agent.num_envs} "
        f"environments; agent.total_steps=... and agent.num_envs=... change that"
    )


def next_command(task: str, run_dir: Path) -> str:
    """The command that compares the policy with schedules on the task that it was trained on."""
    sources = HydraConfig.get().runtime.config_sources
    folders = [source.path for source in sources if source.provider == "command-line"]
    chosen = [override for override in given_overrides() if key_of(override).startswith("task")]
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

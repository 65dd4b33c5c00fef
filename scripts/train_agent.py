"""Train an agent that controls learning rates: `python scripts/train_agent.py task=cifar`.

The run folder (printed at the end; `hydra.run.dir=...` moves it) holds policy.safetensors,
agent.zip, metrics.csv, summary.json, config.yaml and checkpoint.pt. `resume=<run folder>` continues
in a new folder, from checkpoint.pt alone, and runs no code from it. agent.zip is for users of
Stable-Baselines3, and to load it is to run what is in it. After SIGTERM the exit code is 75: what
started it may start `resume=...` at once.
"""

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig

from lrpilot.agents.checkpoint import has_checkpoint
from lrpilot.agents.rollback import UpdateError
from lrpilot.envs import WorkerError
from scripts.jobs import run_job, run_script
from scripts.overrides import as_argument, given_overrides, key_of
from scripts.resuming import find_run_dir, resumed_config
from scripts.training import command_line, train_configured

# EX_TEMPFAIL of sysexits.h: to start the same again is all that it needs
EXIT_CODE_OF_SIGTERM = 75
UNREAD = ("scheduler", "rival", "policy", "compare", "is_quick", "store", "num_workers", "workers")


@hydra.main(version_base=None, config_path="../conf", config_name="train_agent")
def main(cfg: DictConfig) -> float | None:
    """Train, in a run folder of its own; returns the final return, for a sweeper to maximize."""
    final_return: float | None = run_job(train, cfg, unread=UNREAD)
    return final_return


def train(cfg: DictConfig, run_dir: Path) -> float | None:
    """Train, and say what came of it; returns the mean return of the last rollouts."""
    resume_from = find_run_dir(cfg.resume, cfg.output_root) if cfg.resume else None
    overrides = given_overrides()
    if resume_from:
        cfg, overrides = resumed_config(resume_from, list(cfg))
    again = command_line("train_agent.py", as_argument("resume", run_dir))
    try:
        summary = train_configured(cfg, run_dir, overrides=overrides, resume_from=resume_from)
    except (WorkerError, UpdateError) as error:
        if not has_checkpoint(run_dir):
            raise
        raise type(error)(f"{error}; continue with: {again}") from error
    except OSError as error:
        if not has_checkpoint(run_dir) or not error.strerror:
            raise
        what = f"{error.strerror}; continue with: {again}"
        raise OSError(error.errno, what, error.filename) from error
    returns: float | None = summary["return_mean_last_rollouts"]
    print(f"\ntask                   {cfg.task.name}")
    print(f"env steps              {summary['num_env_steps']}")
    print(f"inner steps            {summary['num_inner_steps']}")
    print(f"return, last rollouts  {'none yet' if returns is None else f'{returns:+.3f}'}")
    print(f"seconds                {summary['seconds']:.1f}")
    print(f"policy                 {run_dir / summary['policy']}")
    print(f"run folder             {run_dir}")
    if summary["stopped_by"]:
        print(f"stopped by {summary['stopped_by']}; continue with: {again}", file=sys.stderr)
        raise SystemExit(EXIT_CODE_OF_SIGTERM if summary["stopped_by"] == "SIGTERM" else 1)
    # on the task that it was trained on
    chosen = [shlex.quote(o.removeprefix("++")) for o in overrides if key_of(o).startswith("task")]
    chosen = chosen or [as_argument("task", cfg.task.name)]
    compare = command_line("evaluate.py", *chosen, as_argument("policy", run_dir))
    print(f"next                   {compare}")
    return returns


if __name__ == "__main__":
    run_script(main)

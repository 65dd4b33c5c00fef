"""Teach a policy to act as tuned schedules do: `python scripts/imitate.py task=small_trainings`.

For many trainings of the task, a search finds the best peak of a fixed schedule (experts.csv); a
policy then learns to bring every training's learning rate to where its expert has it, from any
initial one. The run folder holds experts.csv, policy.safetensors, metrics.csv, config.yaml, and
rollouts/, what was noted in each round: `rollouts_from=[<run folder>]` learns from that, too.
`train_agent.py agent.init_from=<run folder>` goes on from there, by reward.
"""

import math
import shlex
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from lrpilot import ControlSettings, Policy
from lrpilot.agents.imitation import Experts, imitate, search_experts
from lrpilot.agents.imitation.rollouts import Rollout, read_rollouts, write_rollout
from lrpilot.envs.episodes import FIRST_EVALUATION_SEED, settings_for
from lrpilot.evaluation.runs.provenance import describe_provenance
from lrpilot.files import write_whole
from lrpilot.policy.actor import FILE_NAME as POLICY_FILE
from lrpilot.tasks.task import Task
from scripts.jobs import run_job, run_script
from scripts.overrides import as_argument, given_overrides, key_of, plain
from scripts.training import command_line, make_task

EXPERTS_FILE = "experts.csv"
METRICS_FILE = "metrics.csv"
UNREAD = (
    *("agent", "scheduler", "rival", "policy"),
    *("compare", "is_quick", "logger", "store", "num_workers", "workers"),
)


@hydra.main(version_base=None, config_path="../conf", config_name="imitate")
def main(cfg: DictConfig) -> None:
    """Imitate, in a run folder of its own."""
    run_job(run, cfg, unread=UNREAD)


def run(cfg: DictConfig, run_dir: Path) -> None:
    """Search the experts, and let a policy learn from them."""
    task = make_task(cfg)
    env = dict(instantiate(cfg.env, _convert_="all").keywords)
    del env["runner"]
    settings = settings_for(task, ControlSettings(**env))
    experts = find_experts(cfg, task, settings, run_dir)
    config = plain(cfg)
    policy = imitate(
        task,
        settings,
        experts,
        **plain(cfg.imitation),
        seed=cfg.seed,
        init_from=Policy.load(cfg.init_from) if cfg.init_from else None,
        earlier=[
            rollout
            for path in cfg.rollouts_from
            for rollout in read_rollouts(Path(path), settings, cfg.imitation.schedule)
        ],
        card={
            **{name: config[name] for name in ("task", "env", "imitation")},
            **describe_provenance(),
        },
        show_progress=cfg.show_progress,
        report=partial(write_results, run_dir, settings, cfg.imitation.schedule),
    )
    print(f"\nexperts      {len(experts)}, {-experts.levels.min(1).mean():.3f} nats each")
    print((run_dir / METRICS_FILE).read_text().strip())
    print(f"policy       {run_dir / POLICY_FILE} ({policy.fingerprint[:12]})")
    print(f"next         {command_line('train_agent.py', *refining(cfg, run_dir))}")


def refining(cfg: DictConfig, run_dir: Path) -> list[str]:
    """Arguments of `train_agent.py` for an agent that goes on from here, on the same trainings."""
    given = [o.removeprefix("++") for o in given_overrides()]
    same = [shlex.quote(o) for o in given if key_of(o).startswith(("task", "env"))]
    chosen = {
        "task": cfg.task.name,
        "env": "recent",
        "agent": "recurrent_ppo" if cfg.imitation.lstm_units else "ppo",
    }
    members = cfg.imitation.num_members
    sizes: dict[str, object] = {"net_arch": [members * n for n in cfg.imitation.hidden_sizes]}
    if cfg.imitation.lstm_units:
        sizes["lstm_hidden_size"] = members * cfg.imitation.lstm_units
    return [
        *(f"{key}={value}" for key, value in chosen.items() if not _names(given, key)),
        *same,
        *(
            shlex.quote(f"agent.algorithm.policy_kwargs.{key}={value}")
            for key, value in sizes.items()
        ),
        as_argument("agent.init_from", run_dir),
    ]


def _names(overrides: list[str], key: str) -> bool:
    return any(key_of(override) == key for override in overrides)


def find_experts(cfg: DictConfig, task: Task, settings: ControlSettings, run_dir: Path) -> Experts:
    """Those of the configured file, or new ones; they are kept in the run folder."""
    path = run_dir / EXPERTS_FILE
    if cfg.experts.path:
        known = Experts.read(Path(cfg.experts.path))
        known.write(path)
        return known
    rng = np.random.default_rng(cfg.seed)
    lowest, highest = map(math.log, settings.horizon_range)
    experts = None
    batches = range(cfg.experts.num_batches)
    for _ in tqdm(batches, desc="experts", unit=" batches", disable=not cfg.show_progress):
        more = search_experts(
            task,
            total_steps=round(math.exp(rng.uniform(lowest, highest))),
            seeds=rng.integers(FIRST_EVALUATION_SEED, size=cfg.experts.batch_size).tolist(),
            peak_factors=cfg.experts.peak_factors,
        )
        experts = more if experts is None else experts + more
        experts.write(path)
    assert experts is not None
    return experts


def write_results(
    run_dir: Path,
    settings: ControlSettings,
    schedule: str,
    policy: Policy,
    metrics: str,
    rollout: Rollout,
) -> None:
    """Keep the policy of the last round, the rows so far, and what was noted in the round."""
    write_rollout(run_dir, rollout, settings, schedule)
    policy.save(run_dir / POLICY_FILE)
    write_whole(run_dir / METRICS_FILE, metrics)


if __name__ == "__main__":
    run_script(main)

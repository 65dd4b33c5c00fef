"""Train an agent, with everything that a run folder holds."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from agents import checkpoint
from agents.algorithms import Agent, env_steps_before_update
from agents.export import export_policy, import_policy, versions
from agents.metrics import RolloutRecorder, read_rows
from agents.tracking import Tracker
from lrpilot import ActionSpec, ClockSpec, ObservationSpec, Policy
from lrpilot.policy import FILE_NAME as POLICY_FILE


def train_agent(
    env: VecEnv,
    *,
    algorithm: Callable[..., Agent],
    total_steps: int,
    seed: int,
    run_dir: Path,
    tracker: Tracker,
    card: dict[str, Any],
    checkpoint_steps: int,
    provenance: dict[str, str] | None = None,
    resume_from: Path | None = None,
    init_from: Policy | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Train, or resume, and write policy, agent, metrics, checkpoint and summary.

    Args:
        env: vectorized `LRControlEnv`s.
        algorithm: PPO, RecurrentPPO or SAC, called as
            `algorithm(env=..., seed=..., device="cpu")`.
        total_steps: budget in env steps, at least 1; training ends with the rollout that
            reaches it.
        seed: of the agent and the environments.
        run_dir: the run folder.
        tracker: gets the rows of metrics.
        card: what the policy file says of its training.
        checkpoint_steps: env steps between checkpoints.
        provenance: machine and commit, for the summary.
        resume_from: run folder whose checkpoint is continued.
        init_from: policy whose actor a new agent starts with; it must observe and do the same.
        show_progress: whether to draw a progress bar.

    Returns:
        The summary, as written to `summary.json`; `stopped_by` names the signal that ended
        training early, else it is None.
    """
    if total_steps < 1:
        raise ValueError(f"`total_steps` must be at least 1, got {total_steps}")
    rows: list[dict[str, str]] = []
    if resume_from is None:
        env.seed(seed)
        model = algorithm(env=env, seed=seed, device="cpu")
        if init_from is not None:
            import_policy(
                model,
                init_from,
                observation=env.get_attr("observation", indices=0)[0],
                action=env.get_attr("action", indices=0)[0],
            )
        needed = env_steps_before_update(model)
        if total_steps < needed:
            warnings.warn(
                f"`total_steps` = {total_steps} is smaller than the {needed} env steps before the "
                "first update",
                UserWarning,
                stacklevel=2,
            )
    else:
        snapshot = checkpoint.read_snapshot(resume_from / checkpoint.FILE_NAME)
        model = checkpoint.restore_agent(snapshot, env)
        rows = [
            row
            for row in read_rows(resume_from / "metrics.csv")
            if int(row["num_env_steps"]) <= snapshot["num_env_steps"]
        ]
    model.set_logger(Logger(folder=None, output_formats=[]))
    recorder = RolloutRecorder(
        run_dir / "metrics.csv",
        total_env_steps=total_steps,
        tracker=tracker,
        earlier_rows=rows,
        show_progress=show_progress,
    )
    with checkpoint.StopSignal() as stop:
        checkpointer = checkpoint.Checkpointer(
            run_dir / checkpoint.FILE_NAME, interval_env_steps=checkpoint_steps, stop=stop
        )
        model.learn(
            total_timesteps=total_steps - model.num_timesteps,
            callback=[recorder, checkpointer],
            log_interval=None,  # type: ignore[arg-type]
            reset_num_timesteps=False,
        )
        if stop.received is None:
            checkpointer.finish()
        else:
            checkpointer.write()
    tracker.close()
    origin = {"versions": versions(), **(provenance or {}), "stopped_by": stop.received}
    return _write_results(model, recorder, run_dir, {**card, "seed": seed}, origin)


def _write_results(
    model: Agent,
    recorder: RolloutRecorder,
    run_dir: Path,
    card: dict[str, Any],
    origin: dict[str, Any],
) -> dict[str, Any]:
    assert model.env is not None
    observation: ObservationSpec = model.env.get_attr("observation", indices=0)[0]
    action: ActionSpec = model.env.get_attr("action", indices=0)[0]
    clock: ClockSpec = model.env.get_attr("clock", indices=0)[0]
    last = recorder.rows[-1] if recorder.rows else {}
    trained = {
        **card,
        "algorithm": type(model).__name__,
        "num_env_steps": int(last.get("num_env_steps", 0)),
        "num_inner_steps": int(last.get("num_inner_steps", 0)),
    }
    policy = export_policy(model, observation=observation, action=action, clock=clock, card=trained)
    policy.save(run_dir / POLICY_FILE)
    model.save(run_dir / "agent.zip")
    recent = [
        float(row["return_mean"]) for row in recorder.rows[-10:] if int(row["num_episodes"]) > 0
    ]
    summary = {
        **trained,
        "return_mean_last_rollouts": sum(recent) / len(recent) if recent else None,
        "seconds": float(last.get("seconds", 0.0)),
        "policy": str(run_dir / POLICY_FILE),
        "policy_fingerprint": policy.fingerprint,
        **origin,
    }
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary

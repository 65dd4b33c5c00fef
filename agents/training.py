"""Train an agent, with everything that a run folder holds."""

import io
import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from lrpilot import ControlSettings, Policy
from lrpilot.agents.algorithms import Agent, env_steps_before_update
from lrpilot.agents.checkpoint import FILE_NAME as CHECKPOINT_FILE
from lrpilot.agents.checkpoint import Checkpointer, load_snapshot, read_newest
from lrpilot.agents.curves import record_episode
from lrpilot.agents.export import export_policy, import_policy, versions
from lrpilot.agents.metrics import FILE_NAME as METRICS_FILE
from lrpilot.agents.metrics import RolloutRecorder
from lrpilot.agents.rollback import UpdateGuard
from lrpilot.agents.stop_signal import StopSignal
from lrpilot.agents.tracking import Tracker
from lrpilot.envs.episodes import settings_for
from lrpilot.envs.runners import make_vec_env
from lrpilot.files import write_whole
from lrpilot.policy.actor import FILE_NAME as POLICY_FILE
from lrpilot.redaction import without_folders
from lrpilot.tasks.shipped import load_task
from lrpilot.tasks.task import Task

AGENT_FILE = "agent.zip"
SUMMARY_FILE = "summary.json"


def has_results(run_dir: Path) -> bool:
    """Whether a run folder holds all that a training leaves beside its checkpoint."""
    names = (POLICY_FILE, AGENT_FILE, METRICS_FILE, SUMMARY_FILE)
    return all((run_dir / name).is_file() for name in names)


def train(
    task: Task | str,
    settings: ControlSettings | None = None,
    *,
    algorithm: Callable[..., Agent],
    total_steps: int,
    num_envs: int,
    run_dir: Path,
    runner: str = "auto",
    seed: int = 0,
    checkpoint_steps: int | None = None,
    init_from: Policy | None = None,
    tracker: Tracker | None = None,
    card: Mapping[str, Any] | None = None,
    provenance: Mapping[str, str] | None = None,
    command: Mapping[str, Any] | None = None,
    resume_from: Path | None = None,
    show_progress: bool = True,
    make_env: Callable[..., VecEnv] = make_vec_env,
) -> dict[str, Any]:
    """Train, or resume, and write checkpoint, policy, agent, metrics and summary.

    The results are written before the tracker is closed. Where training breaks off, by an error as
    by a signal, the state after the last rollout is kept in the checkpoint. Where the run folder
    cannot be written in between, a warning says so, and training goes on. `agent.zip` is for
    users of Stable-Baselines3, whose `load` unpickles it: whoever loads one runs what is in it.
    Nothing here reads it.

    Args:
        task: the inner training problem, or the name of a shipped one.
        settings: what the environments run by, and what the policy file keeps of it.
        algorithm: PPO, RecurrentPPO or SAC, called as
            `algorithm(env=..., seed=..., device="cpu")`.
        total_steps: budget in env steps, at least 1; training ends with the rollout that
            reaches it.
        num_envs: runs that are controlled at the same time.
        run_dir: the run folder; it is made if need be.
        runner: how the environments run; see `make_vec_env`.
        seed: of the agent and the environments.
        checkpoint_steps: env steps between checkpoints; default: only time counts.
        init_from: policy whose actor a new agent starts with; it must observe and do the same.
        tracker: gets the rows of metrics, and is closed; default none.
        card: what the policy file says of its training; default the task's name. Of absolute paths
            it keeps the last part, and of `init_from` the fingerprint.
        provenance: machine and commit, for summary and card.
        command: how the run was started, in plain values, for whoever resumes its checkpoint.
        resume_from: run folder whose checkpoint is continued, with the same environments,
            algorithm and seed; where nothing is left to do, its results are written.
        show_progress: whether to draw a progress bar.
        make_env: called as `make_env(task, num_envs, settings, runner=runner)`.

    Returns:
        The summary, as written to `summary.json`; `stopped_by` names the signal that ended
        training early, else it is None.

    Raises:
        CheckpointError: if both checkpoints are damaged, or of another training.
        WorkerError: if workers of the environments die faster than they make steps.
        UpdateError: if three updates in a row were not finite.
        OSError: if the results cannot be written; it names the file.
    """
    tracker = tracker or Tracker(run_dir, {})
    exit_code = 1
    try:
        task = load_task(task)
        if total_steps < 1:
            raise ValueError(f"`total_steps` must be at least 1, got {total_steps}")
        run_dir.mkdir(parents=True, exist_ok=True)
        settings = settings_for(task, settings or ControlSettings())
        with closing(make_env(task, num_envs, settings, runner=runner)) as env:
            model, earlier = _start(env, settings, algorithm, seed, init_from, resume_from)
            kept = {"settings": dict(command or {}), **earlier}
            needed = env_steps_before_update(model)
            if resume_from is None and total_steps < needed:
                warnings.warn(
                    f"`total_steps` = {total_steps} is smaller than the {needed} env steps before "
                    "the first update",
                    UserWarning,
                    stacklevel=2,
                )
            model.set_logger(Logger(folder=None, output_formats=[]))
            recorder = RolloutRecorder(
                run_dir / METRICS_FILE,
                total_env_steps=total_steps,
                tracker=tracker,
                earlier=kept.pop("metrics"),
                feature_range=kept.pop("feature_range"),
                show_progress=show_progress,
            )
            with StopSignal() as stop:
                checkpointer = Checkpointer(
                    run_dir / CHECKPOINT_FILE,
                    interval_env_steps=total_steps
                    if checkpoint_steps is None
                    else checkpoint_steps,
                    recorder=recorder,
                    kept=kept,
                    stop=stop,
                )
                _learn(model, total_steps, recorder, checkpointer)
                # whatever the configuration leaves to the defaults
                control = json.loads(json.dumps(asdict(settings)))
                given = without_folders(dict(card or {"task": {"name": task.name}}))
                trained_on = {
                    **given,
                    "env": {**given.get("env", {}), **control, "runner": runner},
                    "seed": seed,
                    "date": kept["date"],
                    "commit": (provenance or {}).get("commit"),
                }
                if kept["init_from"] is not None:
                    trained_on["init_from_fingerprint"] = kept["init_from"]
                origin = {
                    "versions": versions(),
                    **(provenance or {}),
                    "stopped_by": stop.received if checkpointer.is_stopped else None,
                }
                summary = _write_results(model, settings, recorder, run_dir, trained_on, origin)
                tracker.add_file(run_dir / POLICY_FILE, kind="policy", card=summary)
                if tracker.keeps_media and not checkpointer.is_stopped:
                    tracker.add_curves("trained policy", record_episode(model, task, settings))
        exit_code = 0
        return summary
    finally:
        tracker.close(exit_code=exit_code)


def _start(
    env: VecEnv,
    settings: ControlSettings,
    algorithm: Callable[..., Agent],
    seed: int,
    init_from: Policy | None,
    resume_from: Path | None,
) -> tuple[Agent, dict[str, Any]]:
    """A new agent, or that of a checkpoint; with its metrics so far, its origin and first day."""
    if resume_from is not None:
        snapshot = read_newest(resume_from)
        model = algorithm(env=env, seed=seed, device="cpu")
        load_snapshot(model, snapshot)
        # checkpoints before 0.2 have no range
        known = {"feature_range": None, **snapshot}
        names = ("metrics", "feature_range", "init_from", "date")
        return model, {name: known[name] for name in names}
    env.seed(seed)
    model = algorithm(env=env, seed=seed, device="cpu")
    began: dict[str, Any] = {
        "metrics": "",
        "feature_range": None,
        "init_from": None,
        "date": time.strftime("%Y-%m-%d"),
    }
    if init_from is None:
        return model, began
    import_policy(model, init_from, observation=settings.observation, action=settings.action)
    known_range = init_from.card.get("feature_range", {})
    if set(settings.observation.names) <= set(known_range):
        bounds = zip(*(known_range[name] for name in settings.observation.names), strict=True)
        began["feature_range"] = list(map(list, bounds))
    return model, {**began, "init_from": init_from.fingerprint}


def _learn(
    model: Agent, total_steps: int, recorder: RolloutRecorder, checkpointer: Checkpointer
) -> None:
    """Train, and write the checkpoint of the last whole rollout, whatever ends the training."""
    try:
        with UpdateGuard(model):
            model.learn(
                total_timesteps=total_steps - model.num_timesteps,
                callback=[recorder, checkpointer],
                log_interval=None,  # type: ignore[arg-type]
                reset_num_timesteps=False,
            )
    except BaseException:
        checkpointer.try_to_write()
        raise
    if checkpointer.is_stopped:
        checkpointer.write()
    else:
        checkpointer.finish()


def _write_results(
    model: Agent,
    settings: ControlSettings,
    recorder: RolloutRecorder,
    run_dir: Path,
    card: dict[str, Any],
    origin: dict[str, Any],
) -> dict[str, Any]:
    last = recorder.rows[-1] if recorder.rows else {}
    trained = {
        **card,
        "algorithm": type(model).__name__,
        "num_env_steps": int(last.get("num_env_steps", 0)),
        "num_inner_steps": int(last.get("num_inner_steps", 0)),
    }
    if recorder.feature_range is not None:
        bounds = zip(*recorder.feature_range, strict=True)
        names = settings.observation.names
        trained["feature_range"] = dict(zip(names, map(list, bounds), strict=True))
    policy = export_policy(
        model,
        observation=settings.observation,
        action=settings.action,
        clock=settings.clock,
        card=trained,
    )
    policy.save(run_dir / POLICY_FILE)
    archive = io.BytesIO()
    model.save(archive)
    write_whole(run_dir / AGENT_FILE, archive.getvalue())
    recorder.write()
    recent = [
        float(row["return_mean"]) for row in recorder.rows[-10:] if int(row["num_episodes"]) > 0
    ]
    summary = {
        **trained,
        "return_mean_last_rollouts": sum(recent) / len(recent) if recent else None,
        "num_lost_episodes": recorder.total("num_lost_episodes"),
        "num_rolled_back": recorder.total("num_rolled_back"),
        "seconds": float(last.get("seconds", 0.0)),
        "policy": POLICY_FILE,
        "policy_fingerprint": policy.fingerprint,
        **origin,
    }
    write_whole(run_dir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    return summary

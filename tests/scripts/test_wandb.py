"""What Weights & Biases gets from scripts, read back from offline runs."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from lrpilot import Policy
from tests.programs import ROOT, TINY, run_scripts, start
from tests.wandb_runs import read_run

pytestmark = pytest.mark.slow

WANDB = ["logger=wandb", "logger.mode=offline"]
EVALUATE = ["evaluate.py", "task=quadratic", "task.total_steps=60", "scheduler=[constant]"]
EVALUATE += ["num_seeds=1", "initial_lr_factors=[1]", "placebos=false", "show_progress=false"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("wandb")
    commands = [
        ["train_agent.py", "-m", *TINY[:-1], *WANDB, "seed=3,4", "hydra.sweep.dir=sweeps/mine"],
        [*EVALUATE, *WANDB, "policy=sweeps/mine/seed-3", "hydra.run.dir=evaluated"],
        ["reproduce.py", "experiment=quick/lazy_boundary", "compare.widths=[16]",
         "compare.shown_width=16", *WANDB, "show_progress=false", "hydra.run.dir=reproduced"],
        [*EVALUATE, "logger=csv", "hydra.run.dir=untracked"],
    ]  # fmt: skip
    for code, _, err in run_scripts(commands, root):
        assert code == 0, err
    return root


def test_runs_of_a_sweep_share_a_group_and_tell_task_and_algorithm(root: Any) -> None:
    runs = [read_run(root / "sweeps/mine" / job) for job in ("seed-3", "seed-4")]
    assert [run["group"] for run in runs] == ["mine", "mine"]
    assert [run["name"] for run in runs] == ["mine/seed-3", "mine/seed-4"]
    for run, seed in zip(runs, (3, 4), strict=True):
        assert run["job_type"] == "train"
        assert run["tags"] == ["quadratic", "PPO"]
        assert run["config"]["seed"] == seed


def test_the_policy_is_an_artifact_with_its_card(root: Any) -> None:
    run, policy = read_run(root / "sweeps/mine/seed-3"), Policy.load(root / "sweeps/mine/seed-3")
    (artifact,) = (a for a in run["artifacts"] if a["type"] == "policy")
    assert artifact["files"] == ["policy.safetensors"]
    assert artifact["metadata"]["policy_fingerprint"] == policy.fingerprint
    assert artifact["metadata"]["task"] == policy.card["task"]


def test_a_training_shows_the_learning_rates_and_losses_of_its_policy(root: Any) -> None:
    history = read_run(root / "sweeps/mine/seed-3")["history"]
    assert history["trained policy._type"] == "table-file"
    assert history["trained policy.ncols"] == 3
    assert history["num_env_steps"] == 58


@pytest.mark.parametrize("kind", ["evaluated", "reproduced"])
def test_a_comparison_sends_tables_figures_and_runs(root: Any, kind: str) -> None:
    run = read_run(root / kind)
    job_type = {"evaluated": "evaluate", "reproduced": "reproduce"}[kind]
    assert run["job_type"] == job_type
    for path in (root / kind).glob("*.png"):
        assert run["history"][f"{path.stem}._type"] == "image-file"
    for path in (root / kind).glob("*.md"):
        assert run["history"][f"{path.stem}._type"] == "html-file"
    assert list((root / kind).glob("*.md"))
    kept = [a["files"] for a in run["artifacts"] if a["type"] == "runs"]
    assert kept == [[path.name] for path in (root / kind).glob("*.parquet")]


def test_nothing_is_tracked_unless_it_is_asked_for(root: Any) -> None:
    assert not list((root / "untracked").rglob("wandb"))


def test_the_command_of_a_sweeps_agent_is_accepted(tmp_path: Path) -> None:
    sweep = yaml.safe_load((ROOT / "examples/wandb_sweep.yaml").read_text())
    drawn = {
        name: {"value": spec.get("value", spec.get("values", [spec.get("min")])[0])}
        for name, spec in sweep["parameters"].items()
    }
    arguments = create_sweep_command_args({"args": drawn})["args_no_hyphens"]
    assert create_sweep_command(sweep["command"])[-1] == "${args_no_hyphens}"
    tiny = [*WANDB[1:], "agent.total_steps=58", "agent.num_envs=2", "task.total_steps=20"]
    tiny += ["env.runner=looped", "hydra.run.dir=run"]
    ((code, _, err),) = run_scripts([["train_agent.py", *arguments, *tiny]], tmp_path)
    assert code == 0, err
    assert read_run(tmp_path / "run")["config"]["agent"]["algorithm"]["learning_rate"] == 0.0001


def test_a_training_whose_service_is_killed_goes_on_with_a_warning(tmp_path: Path) -> None:
    arguments = [*TINY[:-1], *WANDB, "agent.total_steps=2900", "hydra.run.dir=run"]
    training = start("train_agent.py", *arguments, cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 4:
        assert training.poll() is None, training.communicate()
        time.sleep(0.02)
    command = ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", str(training.pid)]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    (service,) = (int(line.split()[0]) for line in listed.splitlines() if "wandb-core" in line)
    os.kill(service, signal.SIGKILL)
    _, err = training.communicate()
    assert training.returncode == 0, err
    assert "W&B failed and is switched off for this run" in err
    assert Policy.load(tmp_path / "run").card["num_env_steps"] == 2900
    assert len(metrics.read_text().splitlines()) == 1 + 2900 // 58

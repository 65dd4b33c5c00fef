"""Every script as its user runs it: a process, tiny, in an empty folder."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from omegaconf import OmegaConf

from lrpilot import Policy
from tests.programs import ROOT, run, run_scripts, start

pytestmark = pytest.mark.slow

TINY = ["num_threads=1", "logger=csv", "agent.num_envs=2", "agent.algorithm.n_steps=29"]
TINY += ["agent.algorithm.batch_size=58", "env.runner=looped"]


class Done(NamedTuple):
    """What is left of a script."""

    returncode: int
    stdout: str
    stderr: str


def script(name: str, *arguments: str, cwd: Path, check: bool = True) -> Done:
    done = Done(*run(name, *arguments, cwd=cwd))
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("run")
    script(
        "train_agent.py",
        "task=digits",
        "agent.total_steps=116",
        "task.total_steps=30",
        f"hydra.run.dir={folder}/agent",
        *TINY,
        cwd=folder,
    )
    return folder / "agent"


NAMES = ("reproduce", "imitate", "tune_agent", "report", "collect", "stress_nmf")


@pytest.mark.parametrize("name", [*NAMES, "draw_schedulers"])
def test_a_script_that_is_started_anew_says_what_it_does(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3


def test_training_leaves_the_promised_files_directly_in_the_run_folder(run_dir: Any) -> None:
    files = ("policy.safetensors", "agent.zip", "metrics.csv", "summary.json", "config.yaml")
    for name in files:
        assert (run_dir / name).stat().st_size > 0


def test_policy_card_names_task_seed_and_budget(run_dir: Any) -> None:
    card = Policy.load(run_dir).card
    assert (card["task"]["name"], card["seed"], card["num_env_steps"]) == ("digits", 0, 116)


def test_evaluation_compares_the_policy_with_all_schedules_and_its_placebos(
    run_dir: Any, tmp_path: Path
) -> None:
    result = script(
        "evaluate.py",
        "task=digits",
        f"policy={run_dir}",
        "task.total_steps=30",
        "num_seeds=2",
        "initial_lr_factors=[0.3,1]",
        "num_threads=1",
        f"hydra.run.dir={tmp_path}",
        cwd=tmp_path,
    )
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 19 * 2 * 2
    names = {row["scheduler"] for row in rows}
    assert names >= {"policy", "cosine", "wsd", "one_cycle", "placebo: replay"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| policy" in result.stdout


def test_sweep_runs_every_job(tmp_path: Path) -> None:
    script(
        "train_agent.py",
        "-m",
        "task=quadratic",
        "seed=0,1",
        "agent.total_steps=58",
        f"hydra.sweep.dir={tmp_path}",
        *TINY,
        cwd=tmp_path,
    )
    policies = [Policy.load(tmp_path / f"seed-{seed}").fingerprint for seed in (0, 1)]
    assert policies[0] != policies[1]


def test_terminated_training_resumes_with_resume_true_bit_identically(tmp_path: Path) -> None:
    arguments = ["task=quadratic", *TINY, "show_progress=false"]
    whole = tmp_path / "whole"
    script(
        "train_agent.py",
        *arguments,
        "agent.total_steps=2900",
        f"hydra.run.dir={whole}",
        cwd=tmp_path,
    )
    root = tmp_path / "root"
    process = start(
        "train_agent.py",
        *arguments,
        "agent.total_steps=2900000",
        f"hydra.run.dir={root}/cut",
        cwd=tmp_path,
    )
    metrics = root / "cut" / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in process.communicate(timeout=60)[1]
    assert process.returncode == 75
    summary = json.loads((root / "cut" / "summary.json").read_text())
    assert summary["num_env_steps"] < 2900
    script(
        "train_agent.py",
        "resume=true",
        f"output_root={root}",
        "agent.total_steps=2900",
        f"hydra.run.dir={root}/rest",
        cwd=tmp_path,
    )
    names = [whole / "policy.safetensors", root / "rest" / "policy.safetensors"]
    policies = [Policy.load(name) for name in names]
    assert policies[0].fingerprint == policies[1].fingerprint


def test_run_folder_names_the_runner_that_auto_took_and_resuming_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path / "cache"))
    arguments = ["env.runner=auto", "agent.num_envs=1", f"output_root={tmp_path}"]
    first = script(
        "train_agent.py",
        "task=quadratic",
        "agent.total_steps=58",
        f"hydra.run.dir={tmp_path}/first",
        *TINY[:-1],
        *arguments,
        cwd=tmp_path,
    )
    assert "runner looped: looped" in first.stdout
    # were it measured again, another one would win
    (kept,) = (tmp_path / "cache" / "runners").iterdir()
    kept.write_text(json.dumps({"inner_steps_per_second": {"looped": 1.0, "subprocess": 9.0}}))
    script(
        "train_agent.py",
        "resume=true",
        "agent.total_steps=116",
        f"hydra.run.dir={tmp_path}/rest",
        *arguments,
        cwd=tmp_path,
    )
    for name in ("first", "rest"):
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["env"]["runner"] == "looped"
        assert "runner: looped" in (tmp_path / name / "config.yaml").read_text()


def test_resume_with_another_environment_is_refused(run_dir: Any, tmp_path: Path) -> None:
    result = script(
        "train_agent.py",
        f"resume={run_dir}",
        "env.num_decisions=10",
        f"hydra.run.dir={tmp_path}",
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode != 0
    assert "`env.num_decisions`: default kept, 10 given" in result.stderr


def test_resume_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    result = script(
        "train_agent.py", "resume=true", f"output_root={tmp_path}", cwd=tmp_path, check=False
    )
    assert result.returncode != 0
    assert "found no checkpoint.pt" in result.stderr


def test_mistyped_key_is_named(tmp_path: Path) -> None:
    result = script("train_agent.py", "agent.total_step=5", cwd=tmp_path, check=False)
    assert result.returncode != 0
    assert "total_step" in result.stderr


def test_finished_run_is_not_resumed(run_dir: Any, tmp_path: Path) -> None:
    result = script(
        "train_agent.py",
        f"resume={run_dir}",
        f"hydra.run.dir={tmp_path}",
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode != 0
    assert "nothing is left" in result.stderr


def test_missing_policy_is_named_without_a_traceback(tmp_path: Path) -> None:
    result = script(
        "evaluate.py",
        f"policy={tmp_path}/nope",
        f"hydra.run.dir={tmp_path}/out",
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode != 0
    assert result.stderr.startswith(f"no policy at {tmp_path}/nope; shipped are [")


def test_evaluation_of_nothing_is_refused_without_a_traceback(tmp_path: Path) -> None:
    result = script("evaluate.py", "task=quadratic", "scheduler=[]", cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().startswith("`scheduler` must name one at least")


def test_policy_alone_is_evaluated_on_seeds_beyond_the_skipped(tmp_path: Path) -> None:
    script(
        "evaluate.py",
        "task=quadratic",
        "task.total_steps=5",
        "policy=small_networks",
        "scheduler=[]",
        "placebos=false",
        "initial_lr_factors=[1]",
        "num_seeds=2",
        "num_skipped_seeds=3",
        f"hydra.run.dir={tmp_path}",
        cwd=tmp_path,
    )
    with (tmp_path / "runs.csv").open() as file:
        rows = [(row["scheduler"], int(row["seed"]) - 2**30) for row in csv.DictReader(file)]
    assert rows == [("policy", 3), ("policy", 4)]


def test_policy_of_another_task_is_noted(run_dir: Any, tmp_path: Path) -> None:
    result = script(
        "evaluate.py",
        "task=quadratic",
        f"policy={run_dir}",
        "num_seeds=1",
        "initial_lr_factors=[1]",
        "scheduler=[cosine]",
        f"hydra.run.dir={tmp_path}",
        cwd=tmp_path,
    )
    assert "was trained on another task" in result.stdout
    assert "name: trained on digits, evaluated on quadratic" in result.stdout


def test_experiment_without_an_agent_leaves_table_runs_and_figure(tmp_path: Path) -> None:
    done = script(
        "reproduce.py",
        "+experiment=quick/lazy_boundary",
        "compare.widths=[16,64]",
        "compare.shown_width=64",
        "num_threads=1",
        f"hydra.run.dir={tmp_path}",
        cwd=tmp_path,
    )
    table = (tmp_path / "table_lazy_boundary.md").read_text()
    assert "linearized model diverges" in table
    assert table.splitlines()[0] in done.stdout
    assert (tmp_path / "lazy_boundary.png").stat().st_size > 0


def test_experiment_trains_its_agent_and_compares_it(tmp_path: Path) -> None:
    script(
        "reproduce.py",
        "experiment=iclr2023_nmf",
        "num_threads=1",
        "task.total_steps=60",
        "agent.num_envs=8",
        "agent.total_steps=232",
        "agent.algorithm.batch_size=58",
        "compare.num_tuning=4",
        "compare.num_held_out=4",
        "compare.initial_lrs=[0.01]",
        "compare.cap_fractions=[1.0]",
        *(f"~compare.real_matrices.{n}" for n in ("shakespeare", "olivetti", "fashion_mnist")),
        "compare.num_real_seeds=1",
        "compare.real_initial_lrs=[0.001]",
        f"hydra.run.dir={tmp_path}",
        cwd=tmp_path,
    )
    policy = Policy.load(tmp_path / "agent")
    assert policy.card["num_env_steps"] == 232
    assert policy.card["env"]["runner"] == "batched"
    for part in ("random", "digits"):
        assert "placebo: replay" in (tmp_path / f"table_{part}.md").read_text()
        assert f"| {part}: better schedules" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_a_class_on_the_command_line_is_given_nothing_of_the_default_task(tmp_path: Path) -> None:
    own = "task._target_=lrpilot.tasks.quadratic.QuadraticTask"
    task = ["+task/optimizer=sgd", "task.base_lr=0.1", "task.total_steps=60"]
    command = ["train_agent.py", own, *task, "agent.total_steps=58", *TINY]
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    without_lr = [argument for argument in command if "base_lr" not in argument]
    (code, _, errors), (missing, _, message) = run_scripts(
        [[*command, folder], [*without_lr, f"hydra.run.dir={tmp_path / 'other'}"]], tmp_path
    )
    assert code == 0, errors
    found = OmegaConf.load(tmp_path / "run" / "config.yaml").task
    assert (found.name, found.base_lr, found.total_steps) == ("own", 0.1, 60)
    assert missing != 0
    assert "base_lr" in message

"""Sweeps by each launcher: who runs where, what goes on, what is said of jobs that fail."""

import csv
import json
import os
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lrpilot import Policy
from tests.programs import ROOT, TINY, run, run_scripts, start

# a script of the kind of ours, whose jobs say when and where they ran; seed 3 fails
APP = """
import json, os, sys, time
from pathlib import Path
import hydra
import torch
from lrpilot.envs.runners import num_cores
from scripts.jobs import run_job, run_script

def work(cfg, run_dir):
    if cfg.seed == 3:
        raise ValueError("`seed` must not be 3, got 3")
    start = time.time()
    time.sleep(0.5)
    facts = {"start": start, "end": time.time(), "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}
    facts["threads"] = [torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"]), num_cores()]
    (run_dir / "facts.json").write_text(json.dumps({**facts, "process": os.getpid()}))

@hydra.main(version_base=None, config_path=CONF, config_name="train_agent")
def main(cfg):
    run_job(work, cfg, unread=[])

if __name__ == "__main__":
    run_script(main)
"""
# keeps what the jobs return to Hydra's own sweeper
RECORDED = """
import json
from hydra._internal.hydra import Hydra

multirun = Hydra.multirun

def recorded(*arguments, **more):
    batches = multirun(*arguments, **more)
    with open("returns.json", "w") as file:
        json.dump([job.return_value for batch in batches for job in batch], file)
    return batches

Hydra.multirun = recorded
"""


# what Slurm's commands would do with an array of two jobs: start them
SLURM = {
    "sbatch": """
        for task in 0 1; do
          SLURM_JOB_ID=7$task SLURM_ARRAY_JOB_ID=70 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 \\
          SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 \\
          SLURM_JOB_NODELIST=here CUDA_VISIBLE_DEVICES=$task bash "$1" > /dev/null 2>&1 &
        done
        echo "Submitted batch job 70"
    """,
    "srun": """
        while [[ $1 == -* ]]; do [[ $1 == --output ]] && shift; shift; done
        exec "$@"
    """,
    "sacct": r"printf 'JobID|State|NodeList\n70_0|RUNNING|here\n70_1|RUNNING|here\n'",
}


def rows_of(path: Path) -> Any:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_jobs_of_a_launcher_share_no_gpu_and_each_finishes_or_says_why(
    tmp_path: Path, launcher: str
) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP.replace("CONF", repr(str(ROOT / "conf"))))
    more = [f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}/sweep"]
    arguments = ("-m", "seed=range(5)", *more)
    here = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "4,5"}
    code, _, err = run(app, *arguments, cwd=tmp_path, environment=here)
    jobs = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/facts.json")]
    assert len(jobs) == 4, err
    for job in jobs:
        others = [other for other in jobs if other is not job and other["gpus"] == job["gpus"]]
        assert job["gpus"] in ("4", "5")
        assert all(job["end"] <= o["start"] or o["end"] <= job["start"] for o in others)
        assert job["threads"] == [1, 1, 1]
    assert code == 1
    found = re.search(r"failed jobs: 1\n  (.*): (.*)\nrun them again with: (.*)", err)
    assert found is not None
    assert found[1] == f"{tmp_path}/sweep/seed-3"
    assert found[2] == "`seed` must not be 3, got 3"
    assert shlex.split(found[3])[2:5] == ["-m", f"hydra/launcher={launcher}", "seed=range(5)"]
    log = (tmp_path / "sweep" / "seed-3" / "output.log").read_text()
    assert "ValueError: `seed` must not be 3, got 3" in log


@pytest.mark.slow
def test_an_array_of_slurm_is_asked_for_what_a_job_needs_and_runs_the_jobs(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP.replace("CONF", repr(str(ROOT / "conf"))))
    for name, text in SLURM.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tmp_path / name).chmod(0o755)
    more = ["hydra/launcher=submitit_slurm", "gpus_per_job=1", f"hydra.sweep.dir={tmp_path}/sweep"]
    here = {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    _, _, err = run(app, "-m", "seed=2,3", *more, cwd=tmp_path, environment=here)
    asked, *_ = (tmp_path / "sweep" / ".submitit").rglob("*.sh")
    lines = asked.read_text().splitlines()
    options = ("array=0-1%2", "cpus-per-task=1", "gpus-per-node=1", "requeue", "signal=USR2@300")
    assert {f"#SBATCH --{option}" for option in options} <= set(lines)
    facts = json.loads((tmp_path / "sweep" / "seed-2" / "facts.json").read_text())
    assert (facts["gpus"], facts["threads"]) == ("0", [1, 1, 1])
    assert "failed jobs: 1" in err
    assert f"{tmp_path}/sweep/seed-3: `seed` must not be 3, got 3" in err


@pytest.mark.slow
def test_a_killed_sweep_goes_on_bit_identically_and_does_nothing_twice(tmp_path: Path) -> None:
    """The first job is finished, and the second one renames its checkpoint, when it is killed."""
    arguments = [*TINY, "agent.checkpoint_steps=58", "agent.total_steps=870", "seed=0,1"]
    process = start("train_agent.py", "-m", *arguments, "hydra.sweep.dir=killed", cwd=tmp_path)
    first, second = (tmp_path / "killed" / f"seed-{seed}" for seed in (0, 1))
    while not (second / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (second / "summary.json").exists()
    (second / "checkpoint.pt").rename(second / "checkpoint_previous.pt")
    written = (first / "policy.safetensors").stat().st_mtime_ns
    again, whole = run_scripts(
        [
            ["train_agent.py", "-m", *arguments, f"hydra.sweep.dir={name}"]
            for name in ("killed", "w")
        ],
        tmp_path,
    )
    assert again[0] == whole[0] == 0, again[2]
    assert f"job 0 was finished before: {first}" in again[1]
    assert "checkpoint.pt is missing: the training goes on from checkpoint_previous.pt" in again[2]
    assert (first / "policy.safetensors").stat().st_mtime_ns == written
    policies = [Policy.load(tmp_path / sweep / "seed-1").fingerprint for sweep in ("killed", "w")]
    assert policies[0] == policies[1]
    metrics = [(tmp_path / sweep / "seed-1" / "metrics.csv") for sweep in ("killed", "w")]
    steps = [[row["num_env_steps"] for row in rows_of(path)] for path in metrics]
    assert steps[0] == steps[1]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A sweep, then others in its folder or of settings that none can have, and its collection."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "empty").mkdir()
    train = ["train_agent.py", "-m", *TINY, "agent.total_steps=116"]
    sweep, wrong = ([*train, f"hydra.sweep.dir={name}"] for name in ("sweep", "wrong"))
    rates = "agent.algorithm.learning_rate=0.001,0.01"
    slurm = "hydra/launcher=submitit_slurm"
    commands = {
        "sweep": [*sweep, rates, "seed=0,1"],
        "again": [*sweep, rates, "seed=0,1"],
        "another": [*sweep, rates, "seed=0,1", "task.total_steps=61"],
        "threads": [*wrong, "seed=5,6", "hydra/launcher=joblib", "num_threads=2"],
        "cores": [*wrong, "seed=5,6", "hydra/launcher=joblib", "cpus_per_job=999"],
        "share": [*wrong, "seed=5,6", slurm, "gpus_per_job=0.5"],
        "at once": [*wrong, "seed=5,6", "hydra/launcher=submitit_local"],
        "mixed": [*wrong, "seed=5,6", "gpus_per_job=0,1"],
        "negative": [*wrong, "seed=5,6", "gpus_per_job=-1"],
        "collect": ["collect.py", "sweep=sweep", "hydra.run.dir=collected"],
        "collect failed": ["collect.py", "sweep=wrong"],
        "nowhere": ["collect.py", "sweep=nowhere"],
        "empty": ["collect.py", "sweep=empty"],
    }
    found = run_scripts(list(commands.values()), folder, before=RECORDED)
    return dict(zip(commands, found, strict=True)), folder


@pytest.mark.slow
def test_folders_of_jobs_are_named_for_what_was_swept(answers: Any) -> None:
    assert answers[0]["sweep"][0] == 0
    names = {path.parent.name for path in (answers[1] / "sweep").rglob("summary.json")}
    assert names == {f"learning_rate-{rate}+seed-{s}" for rate in ("0.001", "0.01") for s in (0, 1)}


@pytest.mark.slow
def test_a_sweeper_gets_the_final_return_of_every_job_also_of_those_finished_before(
    answers: Any,
) -> None:
    returns = json.loads((answers[1] / "returns.json").read_text())
    jobs = [f"learning_rate-{rate}+seed-{seed}" for rate in ("0.001", "0.01") for seed in (0, 1)]
    paths = [answers[1] / "sweep" / job / "summary.json" for job in jobs]
    assert answers[0]["again"][1].count("was finished before") == 4
    assert returns == [json.loads(path.read_text())["return_mean_last_rollouts"] for path in paths]
    assert all(isinstance(value, float) for value in returns)


@pytest.mark.slow
def test_jobs_of_another_sweep_are_refused_in_the_folders_of_this_one(answers: Any) -> None:
    code, _, err = answers[0]["another"]
    assert code == 1
    assert "`hydra.sweep.dir` must be of a sweep of the same jobs" in err
    assert "(`task.total_steps`: 60 kept, 61 given); name another folder" in err
    kept = [OmegaConf.load(path) for path in (answers[1] / "sweep").rglob("overrides.yaml")]
    assert len(kept) == 4
    assert not any("++task.total_steps=61" in overrides for overrides in kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("threads", "`cpus_per_job` must be at least num_threads * num_workers = 2 where jobs run"),
        ("cores", "`cpus_per_job` must be at most the "),
        ("share", "`gpus_per_job` must be a whole number for Slurm, which shares no card, got 0.5"),
        ("at once", "`hydra/launcher` must be basic, joblib, ray or submitit_slurm, got submitit_"),
        ("mixed", "`gpus_per_job` must be the same for all jobs of a sweep, got gpus_per_job=0,1"),
        ("negative", "`gpus_per_job` must be null, or 0 or more, got -1"),
        ("nowhere", "`sweep` must be the folder of a sweep, got nowhere"),
        ("empty", "`sweep` must be a folder with the folders of jobs, got empty"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_a_line(answers: Any, case: str, message: str) -> None:
    code, _, err = answers[0][case]
    assert code == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_collected_sweep_has_a_line_per_setting_a_row_per_job_and_curves(answers: Any) -> None:
    code, out, err = answers[0]["collect"]
    assert code == 0, err
    folder = answers[1] / "collected"
    header, _, *lines = (folder / "table.md").read_text().splitlines()
    assert re.split(r" *\| *", header)[1:4] == [
        "agent.algorithm.learning_rate",
        "jobs",
        "env steps",
    ]
    assert [re.split(r" *\| *", line)[1:4] for line in lines] == [
        ["0.001", "2", "116"],
        ["0.01", "2", "116"],
    ]
    jobs = rows_of(folder / "jobs.csv")
    for row in rows_of(folder / "table.csv"):
        rate = f"learning_rate-{row['agent.algorithm.learning_rate']}"
        mine = [j["return_mean_last_rollouts"] for j in jobs if rate == j["job"].split("+")[0]]
        assert sum(map(float, mine)) / 2 == pytest.approx(float(row["return_mean"]), rel=1e-12)
    assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "learning_rate=0.01" in (folder / "learning_curves.svg").read_text()
    assert "failed" not in out


@pytest.mark.slow
def test_what_is_collected_of_failed_jobs_is_their_logs_and_a_command(answers: Any) -> None:
    code, _, err = answers[0]["collect failed"]
    assert code == 1
    title, *failed, command = err.splitlines()
    assert title == "`sweep` must hold a finished training of train_agent.py, got wrong"
    for seed, line in zip((5, 6), failed, strict=True):
        assert line.startswith(f"seed-{seed} failed: `cpus_per_job` must be at least ")
        assert line.endswith(f"; see wrong/seed-{seed}/output.log")
    assert command.startswith("what is missing is run with: ")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_named_with_the_extra(
    tmp_path: Path, launcher: str
) -> None:
    plugin = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    arguments = ("-m", *TINY, "seed=0,1", f"hydra/launcher={launcher}")
    missing = f"import sys; sys.modules[{plugin!r}] = None"
    code, _, err = run("train_agent.py", *arguments, cwd=tmp_path, before=missing)
    assert code == 1
    message = f"`hydra/launcher` must be installed, got {launcher}, which the extra sweep brings"
    assert err.startswith(message)
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_evaluations_are_swept_beside_each_other(tmp_path: Path) -> None:
    arguments = ["task=quadratic", "policy=small_networks,cifar", "scheduler=[constant]"]
    arguments += ["num_seeds=1", "initial_lr_factors=[1]", "placebos=false", "show_progress=false"]
    launcher = ["hydra/launcher=joblib", "hydra.sweep.dir=sweep"]
    code, _, err = run("evaluate.py", "-m", *arguments, *launcher, cwd=tmp_path)
    assert code == 0, err
    losses = {}
    for policy in ("small_networks", "cifar"):
        rows = rows_of(tmp_path / "sweep" / f"policy-{policy}" / "runs.csv")
        assert [row["scheduler"] for row in rows] == ["policy", "constant"]
        losses[policy] = [row["held_out_loss"] for row in rows]
    # they met the same run, and each its own policy
    assert losses["small_networks"][0] != losses["cifar"][0]
    assert losses["small_networks"][1] == losses["cifar"][1]


@pytest.mark.slow
def test_a_job_beside_others_may_have_workers_of_its_own(tmp_path: Path) -> None:
    arguments = [*TINY, "env.runner=subprocess", "env.num_workers=2", "seed=0,1"]
    launcher = ["hydra/launcher=joblib", "hydra.sweep.dir=sweep"]
    code, _, err = run("train_agent.py", "-m", *arguments, *launcher, cwd=tmp_path)
    assert code == 0, err
    for seed in (0, 1):
        summary = json.loads((tmp_path / "sweep" / f"seed-{seed}" / "summary.json").read_text())
        assert summary["env"]["runner"] == "subprocess"


@pytest.mark.slow
def test_experiments_are_swept(tmp_path: Path) -> None:
    small = ["compare.widths=[16]", "compare.shown_width=16", "show_progress=false"]
    seeds = ["seed=0,1", "hydra.sweep.dir=sweep"]
    arguments = ["-m", "experiment=quick/lazy_boundary", *small, *seeds]
    code, _, err = run("reproduce.py", *arguments, cwd=tmp_path)
    assert code == 0, err
    for seed in (0, 1):
        folder = tmp_path / "sweep" / f"seed-{seed}"
        assert (folder / "table_lazy_boundary.md").stat().st_size > 0
        assert OmegaConf.load(folder / "config.yaml").seed == seed

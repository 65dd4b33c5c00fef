"""A run folder belongs to one run, and a sweep's jobs fail alone."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.programs import ROOT, TINY, run_scripts

pytestmark = pytest.mark.slow

# names of run folders are made from a clock that stands still
SAME_SECOND = """
import datetime, hydra.core.utils

class Still(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1)

hydra.core.utils.datetime = Still
"""
EVALUATE = ["evaluate.py", "task=quadratic", "scheduler=[constant]", "num_seeds=1"]
EVALUATE += ["task.total_steps=5", "initial_lr_factors=[1]", "show_progress=false"]
BLANKS = "my (runs), lr=0.1 größe's"


COMMANDS = {
    "training": ["train_agent.py", *TINY, "seed=1"],
    "another training": ["train_agent.py", *TINY, "seed=2"],
    "evaluation": EVALUATE,
    "another evaluation": EVALUATE,
    "elsewhere": ["train_agent.py", "--config-dir", "more conf", *TINY[1:], "task=mine", "seed=1"],
    "same folder": ["train_agent.py", *TINY, "seed=2"],
    "of a file": [*EVALUATE, "hydra.run.dir=evaluated"],
    # two jobs without their policy, and two good ones
    "sweep": ["train_agent.py", "-m", *TINY, "agent.init_from=nowhere.safetensors,null"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("root")
    (root / BLANKS).mkdir()
    (root / "more conf" / "task").mkdir(parents=True)
    task = (ROOT / "conf" / "task" / "quadratic.yaml").read_text()
    (root / "more conf" / "task" / "mine.yaml").write_text(task)
    shipped = ROOT / "lrpilot" / "policy" / "shipped" / "small_networks.safetensors"
    (root / "p.safetensors").write_bytes(shipped.read_bytes())
    return root


@pytest.fixture(scope="module")
def answers(root: Any) -> Any:
    """Exit code, output and errors of every command."""
    blanks = str(root / BLANKS / "run").replace("'", r"\'")
    more = {
        "elsewhere": [f"hydra.run.dir='{blanks}'"],
        "same folder": [f"hydra.run.dir='{blanks}'"],
        "of a file": [f"policy={root}/p.safetensors", f"output_root={root}"],
        "sweep": ["seed=1,2", f"hydra.sweep.dir={root}/sweep"],
    }
    commands = [[*command, *more.get(name, [])] for name, command in COMMANDS.items()]
    found = run_scripts(commands, root, before=SAME_SECOND)
    return dict(zip(COMMANDS, found, strict=True))


def test_trainings_of_one_second_have_a_folder_each(answers: Any, root: Any) -> None:
    assert [answers[name][0] for name in ("training", "another training")] == [0, 0]
    folders = list((root / "outputs" / "train_agent").iterdir())
    assert len(folders) == 2
    seeds = {json.loads((folder / "summary.json").read_text())["seed"] for folder in folders}
    assert seeds == {1, 2}


def test_evaluations_of_one_second_have_a_folder_each(answers: Any, root: Any) -> None:
    assert [answers[name][0] for name in ("evaluation", "another evaluation")] == [0, 0]
    folders = list((root / "outputs" / "evaluate" / "quadratic").iterdir())
    assert len(folders) == 2
    assert all((folder / "table.md").is_file() for folder in folders)


def test_folder_with_results_is_refused_and_left_as_it_is(answers: Any, root: Any) -> None:
    code, _, err = answers["same folder"]
    assert code == 1
    assert err.startswith("`hydra.run.dir` must be a folder without results, got ")
    assert json.loads((root / BLANKS / "run" / "summary.json").read_text())["seed"] == 1


def next_arguments(answers: Any) -> Any:
    code, out, _ = answers["elsewhere"]
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("next "))
    _, _, script, *arguments = shlex.split(line)
    assert script == str(ROOT / "scripts" / "evaluate.py")
    return arguments


def test_printed_next_command_survives_the_shell_and_hydra(answers: Any, root: Any) -> None:
    (policy,) = (a for a in next_arguments(answers) if a.startswith("policy="))
    (parsed,) = OverridesParser.create().parse_overrides([policy])
    assert parsed.value() == f"{root}/{BLANKS}/run"


def test_printed_next_command_keeps_the_folder_of_configurations(answers: Any, root: Any) -> None:
    arguments = next_arguments(answers)
    assert f"--config-dir={root}/more conf" in arguments
    assert "task=mine" in arguments


def test_results_hold_no_path_of_this_machine(answers: Any, root: Any) -> None:
    assert answers["of a file"][0] == 0
    files = [path for path in (root / "evaluated").iterdir() if path.is_file()]
    assert len(files) > 4
    for path in files:
        assert str(root).encode() not in path.read_bytes(), path.name


def test_sweep_goes_on_after_jobs_that_miss_something(answers: Any, root: Any) -> None:
    finished = {path.parent.name for path in (root / "sweep").rglob("summary.json")}
    assert finished == {"init_from-null+seed-1", "init_from-null+seed-2"}


def test_sweep_lists_its_failed_jobs_and_their_folders_at_the_end(answers: Any, root: Any) -> None:
    code, _, err = answers["sweep"]
    assert code == 1
    title, *jobs, command = err.splitlines()[-4:]
    assert title == "failed jobs: 2"
    for seed, job in zip((1, 2), jobs, strict=True):
        folder = f"{root}/sweep/init_from-nowhere.safetensors+seed-{seed}"
        assert job.startswith(f"  {folder}: no policy at nowhere.safetensors")
    assert command.endswith(f" hydra.sweep.dir={root}/sweep")
    assert "Traceback" not in err


def test_job_that_fails_leaves_no_open_run_of_weights_and_biases_to_the_next(
    tmp_path: Path,
) -> None:
    command = ["train_agent.py", "-m", *TINY[:-1], "logger=wandb", "logger.mode=offline"]
    wrong = "agent.algorithm.policy=Broken,MlpPolicy"
    run_scripts([[*command, wrong, f"hydra.sweep.dir={tmp_path}/sweep"]], tmp_path)
    for policy in ("Broken", "MlpPolicy"):
        (kept,) = (tmp_path / "sweep" / f"policy-{policy}").rglob("*.wandb")
        assert kept.stat().st_size > 0


def test_next_command_of_a_resumed_run_keeps_the_task_that_was_chosen(
    answers: Any, root: Any
) -> None:
    (run_dir, *_) = (root / "outputs" / "train_agent").iterdir()
    command = ["train_agent.py", f"resume={run_dir}", "agent.total_steps=116"]
    ((code, out, err),) = run_scripts([[*command, f"hydra.run.dir={root}/rest"]], root)
    assert code == 0, err
    assert " task=quadratic task.total_steps=60 " in out.splitlines()[-1]

"""A mistake on the command line ends in one line that names it, and leaves no results."""

from pathlib import Path
from typing import Any

import pytest

from tests.programs import TINY, run_scripts

pytestmark = pytest.mark.slow

# script and arguments: what is said
MISTAKES = {
    ("train_agent.py", "agent.total_steps=ten"): "`agent.total_steps` must be a whole number of",
    ("train_agent.py", "agent.total_steps=null"): "`agent.total_steps` must be a whole number of",
    ("train_agent.py", "seed=-1"): "`seed` must be a whole number from 0 to 4294967295, got -1",
    ("train_agent.py", "seed=1.5"): "`seed` must be a whole number from 0 to 4294967295, got 1.5",
    ("train_agent.py", "seed=None"): "`seed` must be a whole number from 0 to 4294967295, got 'N",
    ("train_agent.py", "num_threads=0"): "`num_threads` must be a whole number of at least 1, got",
    ("train_agent.py", "agent.num_envs=0"): "`agent.num_envs` must be a whole number of at least",
    ("train_agent.py", "env.runner=fast"): "`runner` must be ",
    (
        "train_agent.py",
        "env.observation.groups=loss",
    ): "`groups` must be a list of names, got 'loss'",
    ("train_agent.py", "show_progress=no"): "`show_progress` must be true or false, got 'no'",
    ("train_agent.py", "task.base_lr=abc"): "`task.base_lr` must be a number, got 'abc'",
    ("train_agent.py", "task.base_lr=-1"): "`base_lr` must be positive, got -1",
    ("train_agent.py", "task.total_steps=0"): "`task.total_steps` must be a whole number of at le",
    ("train_agent.py", "+agent.lr=0.1"): "`agent.lr` must be one of ['num_envs', 'total_steps'",
    ("train_agent.py", "scheduler=[cosine]"): "`scheduler=[cosine]` must be left out: train_agent",
    ("train_agent.py", "task.base_lrr=1"): "unexpected keyword argument 'base_lrr'",
    ("train_agent.py", "env.num_decision=9"): "unexpected keyword argument 'num_decision'",
    ("train_agent.py", "task.optimizer.mu=9"): "unexpected keyword argument 'mu'",
    ("train_agent.py", "task._target_=no_pkg.Task"): "Error locating target 'no_pkg.Task': Error l",
    ("train_agent.py", "task._target_=builtins.dict"): "`task._target_` must make a Task, got bui",
    ("train_agent.py", "resume=nowhere"): "`resume` must be",
    ("train_agent.py", "output_root=a_file/in"): "cannot use a_file/in",
    ("evaluate.py", "num_seeds=many"): "`num_seeds` must be a whole number of at least 1, got 'man",
    ("evaluate.py", "total_steps=ten"): "`total_steps` must be a whole number of at least 1, got",
    ("evaluate.py", "initial_lr_factors=1"): "`initial_lr_factors` must be a list, as [a,b], got 1",
    ("evaluate.py", "num_skipped_seeds=-1"): "`num_skipped_seeds` must be a whole number of at",
    ("evaluate.py", "output_root=a_file/in"): "cannot use a_file/in",
    ("evaluate.py", "agent.num_envs=3"): "`agent.num_envs=3` must be left out: evaluate.py does no",
    ("evaluate.py", "workers=threads"): "`workers` must be processes or ray, got 'threads'",
    ("reproduce.py", "is_quick=yes"): "`is_quick` must be true or false, got 'yes'",
    ("reproduce.py", "compare.num_tuning=0"): "`compare.num_tuning` must be a whole number of at",
    ("reproduce.py", "policy=nowhere"): "no policy at nowhere",
    ("reproduce.py", "experiment=lazy_boundary", "policy=cifar"): "`policy` must be left out in",
    ("reproduce.py", "experiment=zero_shot", "policy=null"): "`policy` must name the policy that",
    ("imitate.py", "experts.num_batches=0"): "`experts.num_batches` must be a whole number of at l",
    ("imitate.py", "experts.peak_factors=[1,2]"): "`peak_factors` must be at least three positive",
    ("imitate.py", "experts.path=nowhere.csv"): "cannot use nowhere.csv",
    ("imitate.py", "task=quadratic"): "`task` must be one that can be batched, got 'quadratic'",
    (
        "imitate.py",
        "imitation.lstm_units=-1",
    ): "`imitation.lstm_units` must be a whole number of at l",
    ("report.py", "num_threads=1"): "`runs` must name one folder at least, got none",
    ("report.py", "runs=nowhere"): "`runs` must name folders with a runs.parquet, got nowhere",
    ("report.py", "task=quadratic"): "`task=quadratic` must be left out: report.py does not read",
    ("stress_nmf.py", "show_progress=false"): "`policy` must be a run folder of experiment=iclr202",
    ("stress_nmf.py", "policy=nowhere"): "no policy at nowhere",
}
SMALL = {
    "train_agent.py": [argument for argument in TINY if not argument.startswith("task=")],
    "evaluate.py": ["num_threads=1"],
    "reproduce.py": ["num_threads=1"],
    "imitate.py": ["num_threads=1", "show_progress=false"],
    "report.py": ["num_threads=1"],
    "stress_nmf.py": ["num_threads=1"],
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "a_file").touch()
    commands = [
        [script, "task=quadratic", *SMALL[script], *mistake]
        if script in ("train_agent.py", "evaluate.py")
        else [script, *SMALL[script], *mistake]
        for script, *mistake in MISTAKES
    ]
    commands.append(["train_agent.py", "task=small_networks", "+task/optimizer=adam"])
    commands.append(["train_agent.py", "+experiment=lazy_boundary"])
    names = [*MISTAKES, "hybrid", "no agent"]
    return dict(zip(names, run_scripts(commands, folder), strict=True)), folder


@pytest.mark.parametrize("case", MISTAKES, ids=" ".join)
def test_a_mistake_is_named_in_one_line(answers: Any, case: Any) -> None:
    code, _, err = answers[0][case]
    assert code == 1
    assert MISTAKES[case] in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1 or "full_key" in err


def test_an_optimizer_for_a_task_that_draws_its_own_is_refused(answers: Any) -> None:
    code, _, err = answers[0]["hybrid"]
    assert code == 1
    assert err.startswith("`+task/optimizer=adam` must be left out: task=small_networks has its")
    assert "task.optimizer.NAME=... changes" in err


def test_an_experiment_without_an_agent_trains_none(answers: Any) -> None:
    code, _, err = answers[0]["no agent"]
    assert code == 1
    assert err.startswith("`agent` must be chosen, as in agent=ppo, got none")


def test_a_run_that_is_refused_leaves_no_results(answers: Any) -> None:
    left = {path.name for path in answers[1].rglob("*") if ".hydra" not in path.parts}
    assert not {"config.yaml", "metrics.csv", "policy.safetensors"} & left


@pytest.mark.parametrize("num_bytes", [100, 20_000])
def test_a_full_disk_ends_in_one_line(tmp_path: Path, num_bytes: Any) -> None:
    """No file grows beyond the limit: Hydra's own the first time, the results the second."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, -1))\n"
    commands = [
        ["train_agent.py", *TINY],
        ["evaluate.py", "task=quadratic", "task.total_steps=5", "scheduler=[constant]"],
    ]
    for code, _, err in run_scripts(commands, tmp_path, before=limit):
        assert code == 1
        assert err.splitlines()[-1].startswith("cannot use ")
        assert "File too large" in err
        assert "Traceback" not in err

"""A search over the agent's own settings, and what its storage and its output say."""

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import ThresholdPruner

from scripts.studies import open_study
from scripts.tune_agent import Reports
from tests.programs import TINY, run_scripts

pytestmark = pytest.mark.slow

SECRET = "hunter2"
# no n_steps, so that each trial is four rollouts of a fraction of a second
SEARCH = ["tune_agent.py", *TINY, "agent.total_steps=232", "search.pruner=hyperband"]
SEARCH += ["search.space.agent.algorithm.n_steps=null"]
RATE = "search.space.agent.algorithm.learning_rate"
COMMANDS = {
    "three": [*SEARCH, "search.num_trials=3", "hydra.run.dir=first"],
    "two more": [*SEARCH, "search.num_trials=5", "search.storage=first", "hydra.run.dir=second"],
    "beside each other": [*SEARCH, "search.num_trials=2", "num_workers=2", "hydra.run.dir=both"],
    # -1 is no number of units
    "some fail": [
        *SEARCH,
        "search.num_trials=3",
        "search.space.agent.algorithm.policy_kwargs.net_arch.choices=['[8]','[-1]']",
        "seed=1",
        "hydra.run.dir=some",
    ],
    "all fail": [
        *SEARCH,
        "search.num_trials=2",
        "search.space.agent.algorithm.policy_kwargs.net_arch.choices=['[-1]']",
        "hydra.run.dir=all",
    ],
    "no distribution": [*SEARCH, f"{RATE}=0.1"],
    "a wrong range": [*SEARCH, f"{RATE}.low=1.0"],
    "no such place": [
        *SEARCH,
        "+search.space.agnt.x={_target_:optuna.distributions.FloatDistribution,low:0,high:1}",
    ],
    "no such pruner": [*SEARCH, "search.pruner=shears"],
    "no server": [
        *SEARCH,
        f"search.storage='postgresql://me:{SECRET}@127.0.0.1:1/x'",
        "hydra.run.dir=server",
    ],
}


def test_a_training_with_hopeless_returns_is_pruned_before_its_end() -> None:
    study = optuna.create_study(direction="maximize", pruner=ThresholdPruner(lower=0.0))
    reports = Reports(study.ask(), total_steps=100, earlier=[])
    reports({"num_episodes": 0, "return_mean": ""}, 50)
    reports({"num_episodes": 2, "return_mean": 1.0}, 60)
    with pytest.raises(optuna.TrialPruned):
        reports({"num_episodes": 2, "return_mean": -5.0}, 70)


def test_a_server_without_its_driver_names_the_driver() -> None:
    with pytest.raises(ValueError, match=r"got mysql://me:.*No module named 'MySQLdb'") as refused:
        open_study(f"mysql://me:{SECRET}@127.0.0.1/x", "a study", pruner=None, num_seeds=1)
    assert SECRET not in str(refused.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("searches")


@pytest.fixture(scope="module")
def answers(folder: Any) -> Any:
    return dict(zip(COMMANDS, run_scripts(list(COMMANDS.values()), folder), strict=True))


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="quadratic", storage=f"sqlite:///{folder}/search.db")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_has_its_trials_and_figures(answers: Any, folder: Any) -> None:
    code, out, err = answers["three"]
    assert code == 0, err
    assert [row["number"] for row in rows(folder / "first")] == ["0", "1", "2"]
    for figure in ("optimization_history.html", "intermediate_values.html", "slice.html"):
        assert str(folder / "first" / figure) in out
        assert (folder / "first" / figure).stat().st_size > 1000


def test_a_trial_is_worth_the_return_of_its_summary(answers: Any, folder: Any) -> None:
    assert answers["three"][0] == 0
    trials = {t.number: t for t in study(folder / "first").trials if t.value is not None}
    summary = json.loads((folder / "first/trials/0/seed_0/summary.json").read_text())
    assert trials[0].value == summary["return_mean_last_rollouts"]
    assert len(trials[0].intermediate_values) == 10
    rate = summary["agent"]["algorithm"]["learning_rate"]
    assert trials[0].params["agent.algorithm.learning_rate"] == rate


def test_a_study_goes_on_with_the_trials_that_are_missing(answers: Any, folder: Any) -> None:
    code, out, err = answers["two more"]
    assert code == 0, err
    assert "3 of 5 trials are finished" in out
    assert len(study(folder / "first").trials) == 5
    assert sorted(path.name for path in (folder / "second/trials").iterdir()) == ["3", "4"]


def test_processes_share_a_study(answers: Any, folder: Any) -> None:
    code, _, err = answers["beside each other"]
    assert code == 0, err
    assert len(rows(folder / "both")) >= 2
    rates = [row["agent.algorithm.learning_rate"] for row in rows(folder / "both")]
    assert len(set(rates)) == len(rates)


def test_the_printed_command_trains_with_the_best_settings(answers: Any, folder: Any) -> None:
    line = next(line for line in answers["three"][1].splitlines() if line.startswith("train "))
    _, _, script, *arguments = shlex.split(line)
    command = [Path(script).name, *arguments, "hydra.run.dir=best", "show_progress=false"]
    ((code, _, err),) = run_scripts([command], folder)
    assert code == 0, err
    summary = json.loads((folder / "best/summary.json").read_text())
    best = json.loads((folder / "first/trials/0/seed_0/summary.json").read_text())
    assert summary["agent"]["algorithm"].keys() == best["agent"]["algorithm"].keys()


def test_a_trial_that_fails_is_recorded_and_the_study_goes_on(answers: Any, folder: Any) -> None:
    code, _, err = answers["some fail"]
    assert code == 0, err
    states = [row["state"] for row in rows(folder / "some")]
    assert set(states) >= {"FAIL", "COMPLETE"}
    assert all(bool(row["error"]) == (row["state"] == "FAIL") for row in rows(folder / "some"))


def test_a_study_whose_trials_all_fail_says_so(answers: Any) -> None:
    code, _, err = answers["all fail"]
    assert code == 1
    expected = "`search` must have one trial at least that succeeds, got 2 that failed; the last: "
    assert expected in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no distribution", f"`{RATE}` must be settings, one or more of"),
        ("a wrong range", f"`{RATE}` must be a distribution of Optuna's, got"),
        ("no such place", "`search.space.agnt.x` must be a value of the configuration"),
        ("no such pruner", "`search.pruner` must be one of ('median', 'hyperband'), got 'shears'"),
        ("no server", "`search.storage` must be a file or a server that can be used"),
    ],
)
def test_a_mistake_is_named(answers: Any, name: str, message: str) -> None:
    code, _, err = answers[name]
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_a_password_is_written_nowhere(answers: Any, folder: Any) -> None:
    assert not any(SECRET in text for text in answers["no server"][1:])
    for path in folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path

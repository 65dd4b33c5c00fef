"""The command `lrpilot`, as a shell calls it."""

import csv
import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lrpilot import ActionSpec, ClockSpec, ObservationSpec, Policy
from lrpilot.command.cards import PACKAGE_LICENCE
from lrpilot.command.main import main

ROOT = Path(__file__).resolve().parents[3]
SHIPPED_NAMES = ["cifar", "small_networks", "small_trainings"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, *arguments: object) -> list[str]:
    """The lines that a successful command prints."""
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def failed(capsys: Capture, *arguments: object) -> str:
    """What a command that fails says."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def bare_policy(path: Path) -> Path:
    """A policy whose card says nothing."""
    observation = ObservationSpec(("loss",))
    layers = [(np.zeros((len(observation.names), 1), np.float32), np.zeros(1, np.float32))]
    return Policy(layers, observation, ActionSpec(), ClockSpec(10, (20, 40))).save(path)


def test_the_package_installs_the_command() -> None:
    assert PROJECT["scripts"] == {"lrpilot": "lrpilot.command.main:main"}


@pytest.mark.slow
def test_list_card_and_simulate_need_no_research_package() -> None:
    code = """
import sys
for name in ("gymnasium", "stable_baselines3", "sb3_contrib", "hydra", "omegaconf", "matplotlib",
             "sklearn", "tqdm", "pooch", "wandb", "scipy", "tensorboard"):
    sys.modules[name] = None
from lrpilot.command.main import main
codes = [main(["list"]), main(["card", "cifar"]), main(["simulate", "cifar", "30"])]
print(codes, main(["report", "."]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0] 2", done.stderr


def test_list_has_a_line_for_every_shipped_policy(capsys: Capture) -> None:
    assert [line.split()[0] for line in said(capsys, "list")] == SHIPPED_NAMES


def test_the_card_of_a_shipped_policy_says_what_its_file_records(capsys: Capture) -> None:
    lines = said(capsys, "card", "cifar")
    assert len(lines) == 10
    found = {line[:14].strip(): line[14:] for line in lines}
    assert found["trained on"] == "cifar, with PPO, going on from small_networks"
    assert found["for"] == "14,384 decisions, 211,777 optimizer steps"
    assert found["horizons"] == "300 to 600 optimizer steps"
    assert found["box"].startswith("0.0001 to 100 times the given learning rate")
    assert "held-out" in found["judged by"]
    assert found["date"] == found["commit"] == "not recorded"
    assert found["licence"].startswith(PACKAGE_LICENCE)


def test_the_licence_of_shipped_policies_is_that_of_the_package() -> None:
    assert PROJECT["license"] == PACKAGE_LICENCE


def test_what_a_card_lacks_is_said_to_be_not_recorded(capsys: Capture, tmp_path: Path) -> None:
    lines = said(capsys, "card", bare_policy(tmp_path / "p.safetensors"))
    found = {line[:14].strip(): line[14:] for line in lines}
    for name in ("for", "judged by", "date", "commit", "licence"):
        assert found[name] == "not recorded", name
    assert found["trained on"] == "not recorded, with not recorded"


def test_simulation_states_its_problem_and_draws_the_learning_rate(capsys: Capture) -> None:
    lines = said(capsys, "simulate", "cifar", "300")
    assert lines[0].startswith("cifar on a small run: a network of 20, 32 and 5 units learns")
    plot = [line.partition("|")[2] for line in lines if "|" in line]
    assert len(plot) == 12
    assert sum(line.count("*") for line in plot) == 64
    assert max(map(len, lines[1:])) <= 80


def test_simulation_as_csv_begins_at_the_start_factor_and_repeats(capsys: Capture) -> None:
    first = said(capsys, "simulate", "cifar", 60, "--lr", 0.2, "--csv")
    rows = list(csv.DictReader(io.StringIO("\n".join(first))))
    assert [int(row["step"]) for row in rows] == list(range(60))
    assert float(rows[0]["lr"]) == pytest.approx(0.2 * 0.03)
    assert said(capsys, "simulate", "cifar", 60, "--lr", 0.2, "--csv") == first
    assert said(capsys, "simulate", "cifar", 60, "--lr", 0.2, "--csv", "--seed", 1) != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "cifar", "0"], "`total_steps` must be at least 1, got 0"),
        (["simulate", "cifar", "9", "--lr", "nan"], "`--lr` must be positive, got nan"),
        (["simulate", "cifar", "9", "--seed", "-1"], "`--seed` must be 0 or more, got -1"),
        (["card", "nope"], f"no policy at nope; shipped are {SHIPPED_NAMES}"),
        (["report", "nope"], "`runs` must be run folders of evaluate.py, with runs.csv, got nope"),
        (["collect", "nope"], "`folder` must hold run folders with a summary.json, got nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_named_in_one_line(
    capsys: Capture, arguments: list[str], message: str
) -> None:
    assert failed(capsys, *arguments) == f"lrpilot {arguments[0]}: {message}\n"


def test_an_unknown_command_has_exit_code_2() -> None:
    with pytest.raises(SystemExit) as end:
        main(["fly"])
    assert end.value.code == 2


def test_collect_writes_all_summaries_and_shows_what_differs(
    capsys: Capture, tmp_path: Path
) -> None:
    for job, lr in ((10, 0.3), (9, 0.1)):
        (tmp_path / str(job)).mkdir()
        summary = {"task": {"name": "nmf", "base_lr": lr}, "return_mean_last_rollouts": 2 * lr}
        (tmp_path / str(job) / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "11").mkdir()
    (tmp_path / "11" / "error.txt").write_text("no data")
    lines = said(capsys, "collect", tmp_path)
    assert [line.split() for line in lines[:3]] == [
        ["job", "task.base_lr", "return_mean_last_rollouts"],
        ["9", "0.1", "0.2"],
        ["10", "0.3", "0.6"],
    ]
    assert lines[3:] == ["failed: 11", str(tmp_path / "summaries.csv")]
    with (tmp_path / "summaries.csv").open(newline="") as file:
        assert [row["task.name"] for row in csv.DictReader(file)] == ["nmf", "nmf"]

"""A run folder is claimed by one run, and given back when nothing came of it."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from omegaconf import OmegaConf

from scripts.jobs import each_warning_once
from scripts.run_folders import claimed

CFG = OmegaConf.create({"seed": 1, "policy": "/home/me/runs/3"})


def test_of_runs_that_claim_a_folder_at_once_one_gets_it(tmp_path: Path) -> None:
    together = Barrier(8)

    def claim(_: Any) -> Any:
        together.wait()
        try:
            with claimed(tmp_path, CFG):
                together.wait(timeout=20)
        except ValueError as error:
            together.wait(timeout=20)
            return str(error)
        return "mine"

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(claim, range(8)))
    assert answers.count("mine") == 1
    assert sum("must be a folder without results" in answer for answer in answers) == 7


def test_a_run_that_fails_without_results_gives_its_folder_back(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no data"), claimed(tmp_path, CFG):
        raise OSError("no data")
    with claimed(tmp_path, CFG):
        assert (tmp_path / "config.yaml").is_file()


def test_a_run_that_fails_with_results_keeps_its_folder(tmp_path: Path) -> None:
    def broken_off() -> None:
        with claimed(tmp_path, CFG):
            (tmp_path / "metrics.csv").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    with pytest.raises(ValueError, match=r"holds config\.yaml, metrics\.csv"):
        claimed(tmp_path, CFG).__enter__()


def test_what_is_written_before_a_run_claims_its_folder_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "overrides.yaml").touch()
    (tmp_path / "train_agent.log").touch()
    with claimed(tmp_path, CFG):
        assert (tmp_path / "config.yaml").read_text() == "seed: 1\npolicy: '3'\n"


def test_a_warning_of_many_runs_is_shown_once() -> None:
    with warnings.catch_warnings(record=True) as caught, each_warning_once():
        warnings.simplefilter("always")
        for step in range(1000):
            warnings.warn(f"the loss exploded at step {step}", RuntimeWarning, stacklevel=1)
            warnings.warn("another", RuntimeWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == [
        "the loss exploded at step 0",
        "another",
    ]

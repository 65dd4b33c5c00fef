"""An update that gives NaN is taken back, whatever the algorithm."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO

from lrpilot.agents import checkpoint
from lrpilot.agents.metrics import read_rows
from lrpilot.agents.rollback import UpdateError
from tests.training import ALGORITHMS, PPO_TINY, policy_file, run

BACK = "an update of the agent gave parameters that are not finite, and is taken back"


def spoiled(algorithm: Any, updates: set[int]) -> Any:
    """The algorithm, of which some updates put a NaN into the policy in their midst."""

    class Spoiled(algorithm.func):  # type: ignore[misc]
        num_updates = 0

        def train(self, *args: Any, **kwargs: Any) -> None:
            self.num_updates += 1
            if self.num_updates in updates:
                with torch.no_grad():
                    next(iter(self.policy.parameters())).fill_(torch.nan)
            super().train(*args, **kwargs)

    Spoiled.__name__ = algorithm.func.__name__
    return partial(Spoiled, *algorithm.args, **algorithm.keywords)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.func.__name__)
def test_an_update_that_gives_nan_is_taken_back_and_counted(tmp_path: Path, algorithm: Any) -> None:
    with pytest.warns(RuntimeWarning, match=BACK):
        summary = run(tmp_path, total_steps=120, algorithm=spoiled(algorithm, {2}))
    assert summary["num_rolled_back"] == 1
    rows = read_rows((tmp_path / "metrics.csv").read_text())
    counts = [row["num_rolled_back"] for row in rows if row["num_rolled_back"]]
    assert counts[:3] == ["0", "1", "0"]
    parameters = checkpoint.read_snapshot(tmp_path / "checkpoint.pt")["agent"]["parameters"]
    assert all(value.isfinite().all() for value in parameters["policy"].values())


def test_an_update_that_is_taken_back_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    run(tmp_path / "one", total_steps=24)
    with pytest.warns(RuntimeWarning, match=BACK):
        run(tmp_path / "two", total_steps=48, algorithm=spoiled(PPO_TINY, {2}))
    policies = [
        checkpoint.read_snapshot(tmp_path / name / "checkpoint.pt")["agent"]["parameters"]
        for name in ("one", "two")
    ]
    torch.testing.assert_close(policies[0], policies[1], rtol=0.0, atol=0.0)


@pytest.mark.filterwarnings(f"ignore:{BACK}")
def test_the_third_such_update_in_a_row_is_an_error_and_the_checkpoint_goes_on(
    tmp_path: Path,
) -> None:
    with pytest.raises(UpdateError, match="3 updates of the agent in a row"):
        run(tmp_path / "cut", total_steps=240, algorithm=spoiled(PPO_TINY, {2, 4, 5, 6}))
    assert checkpoint.read_snapshot(tmp_path / "cut" / "checkpoint.pt")["num_env_steps"] == 120
    run(tmp_path / "rest", total_steps=168, resume_from=tmp_path / "cut")
    assert policy_file(tmp_path / "rest")


def test_another_error_of_an_update_is_raised_as_it_is(tmp_path: Path) -> None:
    class Failing(PPO):
        def train(self) -> None:
            raise ZeroDivisionError("in the update")

    algorithm = partial(Failing, *PPO_TINY.args, **PPO_TINY.keywords)
    with pytest.raises(ZeroDivisionError, match="in the update"):
        run(tmp_path, total_steps=24, algorithm=algorithm)

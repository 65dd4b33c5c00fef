"""Actors of Ray as workers."""

import os
import signal
import sys
from typing import Any

import numpy as np
import pytest

from lrpilot.envs import WorkerVecEnv, make_vec_env
from lrpilot.envs.lost_episodes import is_lost
from tests.training import quadratic

SIZES: Any = {"num_envs": 3, "num_workers": 2, "num_decisions": 4}


def trajectory(env: Any) -> Any:
    """What some steps with given actions give, through several resets."""
    env.seed(7)
    found = [[env.reset()]]
    rng = np.random.default_rng(0)
    for _ in range(9):
        actions = rng.uniform(-1, 1, size=(env.num_envs, 1)).astype(np.float32)
        found.append(list(env.step(actions)))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_looped_environments_processes_and_ray_agree_and_a_dead_actor_is_replaced() -> None:
    pytest.importorskip("ray")
    expected = trajectory(make_vec_env(quadratic(), runner="looped", **SIZES))
    processes = make_vec_env(quadratic(), runner="subprocess", **SIZES)
    np.testing.assert_equal(trajectory(processes), expected)
    processes.close()
    actors = make_vec_env(quadratic(), runner="ray", **SIZES)
    np.testing.assert_equal(trajectory(actors), expected)
    assert isinstance(actors, WorkerVecEnv)
    os.kill(actors.pids[0], signal.SIGKILL)
    steps = [actors.step(np.zeros((3, 1), np.float32)) for _ in range(2)]
    lost = [[is_lost(info) for info in infos] for _, _, _, infos in steps]
    assert lost == [[True, True, False], [False] * 3]
    actors.close()


def test_ray_that_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install lrpilot\[sweep\]"):
        make_vec_env(quadratic(), runner="ray", **SIZES)

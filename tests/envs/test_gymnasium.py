"""The environment under Gymnasium's own tools."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from lrpilot.envs import LRControlEnv, LRControlVectorEnv
from lrpilot.tasks.nmf.task import NMFTask
from lrpilot.tasks.quadratic import QuadraticTask

ROOT = Path(__file__).resolve().parents[2]
ENV_ID = "lrpilot/LRControl-v0"
COMMON: dict[str, Any] = {"optimizer": torch.optim.SGD, "base_lr": 0.003, "total_steps": 24}
QUADRATIC = QuadraticTask(name="bowl", dimension=5, **COMMON)
NMF = NMFTask(name="nmf", shape=(8, 6), rank=2, batch_size=2, **COMMON)
MODES = (None, "vector_entry_point")


def run_python(program: str) -> str:
    """What a new process in the checkout prints."""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def make_vec(task: Any, mode: str | None = "vector_entry_point", **arguments: Any) -> Any:
    return gymnasium.make_vec(
        ENV_ID, num_envs=3, vectorization_mode=mode, task=task, num_decisions=4, **arguments
    )


def play(env: Any, num_steps: int) -> list[tuple[Any, ...]]:
    env.reset(seed=0)
    return [env.step(np.full(env.action_space.shape, 0.1, np.float32)) for _ in range(num_steps)]


# ---- the name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imports", "name"),
    [("gymnasium, lrpilot", ENV_ID), ("lrpilot, gymnasium", f"lrpilot.envs:{ENV_ID}")],
)
def test_the_name_is_known_once_lrpilot_is_imported_and_in_any_order_with_its_module(
    imports: str, name: str
) -> None:
    program = f"import {imports}; print(gymnasium.make('{name}', task='quadratic'))"
    assert "<LRControlEnv<lrpilot/LRControl-v0>>" in run_python(program)


@pytest.mark.slow
def test_without_the_research_packages_the_error_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['hydra'] = sys.modules['stable_baselines3'] = None\n"
        "import gymnasium, lrpilot\n"
        f"try: gymnasium.make('{ENV_ID}', task='quadratic')\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    assert 'needs `pip install "lrpilot[research]"`' in run_python(program)


def test_making_without_a_task_names_the_shipped_ones() -> None:
    with pytest.raises(TypeError, match=r"`task` must be a Task or the name of .*quadratic.*None"):
        gymnasium.make(ENV_ID)


# ---- wrappers


def test_episode_statistics_are_recorded_and_equal_the_environments_own() -> None:
    env: Any = wrappers.RecordEpisodeStatistics(
        gymnasium.make(ENV_ID, task=QUADRATIC, num_decisions=4)
    )
    *_, info = play(env, 3)[-1]

    assert info["episode"]["r"] == pytest.approx(info["episode_return"])
    assert info["episode"]["l"] == info["episode_length"] == 3


@pytest.mark.parametrize("task", [QUADRATIC, NMF], ids=["looped", "batched"])
@pytest.mark.parametrize("mode", [*MODES, "sync"])
def test_episode_statistics_of_vector_environments_are_recorded(task: Any, mode: Any) -> None:
    env = wrappers.vector.RecordEpisodeStatistics(make_vec(task, mode))
    *_, info = play(env, 3)[-1]

    assert info["episode"]["l"].tolist() == [3, 3, 3]


# ---- vector environments


@pytest.mark.parametrize("mode", MODES)
def test_a_task_that_can_be_batched_is(mode: Any) -> None:
    assert isinstance(make_vec(NMF, mode), LRControlVectorEnv)


@pytest.mark.parametrize("mode", MODES)
def test_a_task_that_cannot_be_batched_is_looped_with_the_same_resets(mode: Any) -> None:
    env = make_vec(QUADRATIC, mode)

    assert isinstance(env, SyncVectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP


def test_vector_environments_give_what_single_ones_give() -> None:
    steps = play(make_vec(NMF), 3)
    for i in range(3):
        single = LRControlEnv(NMF, num_decisions=4)
        single.reset(seed=i)
        for found in steps:
            observation, reward, terminated, _, info = single.step(np.array([0.1], np.float32))
            expected = found[4]["final_obs"][i] if terminated else found[0][i]
            np.testing.assert_allclose(expected, observation, atol=2e-3)
            assert found[1][i] == pytest.approx(reward, abs=2e-3)
            for name in ("task", "task_seed", "total_steps", "num_steps", "is_diverged"):
                assert found[4][name][i] == info[name]
        assert found[4]["episode_return"][i] == pytest.approx(info["episode_return"], abs=2e-3)
        assert found[4]["_episode_return"][i]


@pytest.mark.parametrize("task", [QUADRATIC, NMF], ids=["looped", "batched"])
def test_a_wrong_argument_of_vector_environments_is_named(task: Any) -> None:
    with pytest.raises(ValueError, match="`reward` must be one of"):
        make_vec(task, reward="none")

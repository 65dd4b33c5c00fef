"""The ways of running many environments: alike in what they give, and the fastest one kept."""

import json
import logging
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import lrpilot
from lrpilot import ControlSettings
from lrpilot.agents import train
from lrpilot.envs import (
    LRControlEnv,
    LRControlVecEnv,
    WorkerVecEnv,
    looped,
    make_vec_env,
)
from lrpilot.envs.runners import choose_runner, fastest_runner, measure_runners, num_cores
from lrpilot.tasks.images.models import mlp
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.quadratic import QuadraticTask

NUM_ENVS = 3


class FailingEnv(LRControlEnv):
    """Has a method that fails."""

    def fail(self) -> None:
        raise ValueError("this went wrong")


def digits(**changes: Any) -> Any:
    arguments = {"base_lr": 0.1, "total_steps": 12, "batch_size": 32, **changes}
    arguments.setdefault("model", partial(mlp, width=8))
    return ImageTask(
        name="digits",
        data="digits",
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        **arguments,
    )


def quadratic() -> Any:
    return QuadraticTask(
        name="quadratic", optimizer=torch.optim.SGD, base_lr=0.1, total_steps=20, dimension=10
    )


MAKE_ENV = partial(FailingEnv, digits(), num_decisions=4, horizon_factors=(0.5, 1.0))
MAKE_ENVS = partial(looped, MAKE_ENV)


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    env = WorkerVecEnv(MAKE_ENVS, NUM_ENVS, num_workers=2)
    yield env
    env.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path))
    return tmp_path


def actions_of(step: Any) -> Any:
    return np.random.default_rng(step).uniform(-1, 1, size=(NUM_ENVS, 1)).astype(np.float32)


def rollout(env: Any, steps: Any) -> Any:
    """Observations, rewards, dones and infos of some steps."""
    return [env.step(actions_of(step)) for step in steps]


def assert_equal(left: Any, right: Any) -> None:
    for (*left_arrays, left_infos), (*right_arrays, right_infos) in zip(left, right, strict=True):
        for a, b in zip(left_arrays, right_arrays, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        np.testing.assert_equal(left_infos, right_infos)


# workers


@pytest.mark.slow
def test_workers_give_exactly_what_looped_environments_give_through_their_resets(
    workers: Any,
) -> None:
    looped = DummyVecEnv([MAKE_ENV] * NUM_ENVS)
    workers.seed(7)
    looped.seed(7)
    np.testing.assert_array_equal(workers.reset(), looped.reset())
    found = rollout(workers, range(9))
    assert sum(dones.sum() for _, _, dones, _ in found) >= 2 * NUM_ENVS
    assert_equal(found, rollout(looped, range(9)))


@pytest.mark.slow
def test_state_from_workers_continues_bit_identically_in_looped_environments(workers: Any) -> None:
    looped = DummyVecEnv([MAKE_ENV] * NUM_ENVS)
    workers.seed(1)
    workers.reset()
    rollout(workers, range(2))
    for i, state in enumerate(workers.env_method("state_dict")):
        looped.env_method("load_state_dict", state, indices=i)
    assert_equal(rollout(workers, range(2, 6)), rollout(looped, range(2, 6)))


def test_attributes_come_in_the_order_of_the_indices(workers: Any) -> None:
    workers.set_attr("mark", "first", indices=0)
    workers.set_attr("mark", "last", indices=[2])
    assert workers.get_attr("mark", indices=[2, 0]) == ["last", "first"]


def test_error_in_a_worker_is_raised_here_and_the_workers_go_on(workers: Any) -> None:
    with pytest.raises(ValueError, match="this went wrong"):
        workers.env_method("fail")
    assert workers.reset().shape == (NUM_ENVS, 12)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_training(workers: Any, number: Any) -> None:
    for pid in workers.pids:
        os.kill(pid, number)
    assert workers.reset().shape == (NUM_ENVS, 12)


@pytest.mark.slow
def test_stopped_worker_does_not_keep_the_environments_from_closing() -> None:
    env = WorkerVecEnv(MAKE_ENVS, 1, num_workers=1)
    os.kill(env.pids[0], signal.SIGSTOP)
    env.close()
    with pytest.raises(ProcessLookupError):
        os.kill(env.pids[0], 0)


@pytest.mark.slow
def test_error_while_an_environment_is_made_is_raised_here() -> None:
    make_env = partial(LRControlEnv, digits(), reward="none")
    with pytest.raises(ValueError, match="`reward` must be one of"):
        WorkerVecEnv(partial(looped, make_env), 1, num_workers=1)


class SeeingEnv(LRControlEnv):
    """Tells a variable of its process."""

    @property
    def variable(self) -> str | None:
        return os.environ.get("A_VARIABLE")


@pytest.mark.slow
def test_workers_have_the_variables_of_the_moment_in_which_they_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_envs = partial(looped, partial(SeeingEnv, digits()))
    found = []
    for value in ("before", "after"):
        monkeypatch.setenv("A_VARIABLE", value)
        env = WorkerVecEnv(make_envs, 1, num_workers=1)
        found += env.get_attr("variable")
        env.close()
    assert found == ["before", "after"]


class InterruptingEnvs:
    """Presses Ctrl-C while it is sent to a worker."""

    def __reduce__(self) -> Any:
        signal.raise_signal(signal.SIGINT)
        return InterruptingEnvs, ()

    def __call__(self, num_envs: int) -> VecEnv:
        return MAKE_ENVS(num_envs)


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """This process, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_while_a_worker_starts_leaves_no_process() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        WorkerVecEnv(InterruptingEnvs(), 2, num_workers=2)
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("num_workers", [0, 3])
def test_number_of_workers_out_of_range_is_refused(num_workers: Any) -> None:
    with pytest.raises(ValueError, match=f"`num_workers` must be 1 to 2, got {num_workers}"):
        WorkerVecEnv(MAKE_ENVS, 2, num_workers=num_workers)


@pytest.mark.slow
def test_training_on_workers_and_its_resumption_equal_an_uninterrupted_looped_training(
    tmp_path: Path,
) -> None:
    def trained(name: str, runner: Any, total_steps: Any, **kwargs: Any) -> Any:
        summary = train(
            quadratic(),
            ControlSettings(num_decisions=5),
            algorithm=partial(PPO, "MlpPolicy", n_steps=12, batch_size=12, n_epochs=2),
            total_steps=total_steps,
            num_envs=2,
            runner=runner,
            run_dir=tmp_path / name,
            show_progress=False,
            **kwargs,
        )
        return summary["policy_fingerprint"]

    whole = trained("whole", "looped", 72)
    trained("half", "subprocess", 24)
    assert trained("rest", "subprocess", 72, resume_from=tmp_path / "half") == whole


# the choice


@pytest.mark.parametrize(
    ("runner", "kind"),
    [
        ("looped", DummyVecEnv),
        pytest.param("subprocess", WorkerVecEnv, marks=pytest.mark.slow),
        ("batched", LRControlVecEnv),
    ],
)
def test_runner_is_built(runner: Any, kind: Any) -> None:
    env = make_vec_env(digits(), 1, runner=runner)
    assert isinstance(env, kind)
    env.close()


def test_unknown_runner_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`runner` must be one of \['auto', .*, got 'parallel'"):
        make_vec_env(digits(), 2, runner="parallel")


@pytest.mark.parametrize("runner", ["auto", "looped", "subprocess", "batched"])
def test_no_environments_are_refused(runner: Any) -> None:
    with pytest.raises(ValueError, match="`num_envs` must be at least 1, got 0"):
        make_vec_env(digits(), 0, runner=runner)


def test_wrong_argument_is_refused_before_anything_is_measured(cache: Any) -> None:
    with pytest.raises(ValueError, match="`reward` must be one of"):
        make_vec_env(digits(), 1, reward="none")
    assert not list(cache.rglob("*.json"))


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"looped": 100.0, "subprocess": 109.0, "batched": 108.0}, "looped"),
        ({"looped": 100.0, "subprocess": 190.0, "batched": 60.0}, "subprocess"),
        ({"looped": 100.0, "subprocess": 190.0, "batched": 200.0}, "subprocess"),
        ({"looped": 100.0, "batched": 2000.0}, "batched"),
    ],
)
def test_a_tie_goes_to_the_simpler_runner(rates: Any, expected: Any) -> None:
    assert choose_runner(rates) == expected


def test_a_single_environment_is_measured_without_workers() -> None:
    assert list(measure_runners(digits(), 1, ControlSettings())) == ["looped", "batched"]


def test_what_cannot_be_batched_is_not_measured_batched() -> None:
    assert list(measure_runners(quadratic(), 1, ControlSettings())) == ["looped"]


class BranchingNetwork(torch.nn.Linear):
    """What its forward pass does depends on the data, which `torch.func.vmap` cannot map."""

    def forward(self, images: Any) -> Any:
        logits = super().forward(images.flatten(1))
        return logits if logits.sum() > 0.0 else 2.0 * logits


def test_network_that_fails_batched_runs_looped_with_a_warning_that_says_why(
    cache: Any, caplog: pytest.LogCaptureFixture
) -> None:
    task = digits(model=lambda channels, num_classes: BranchingNetwork(64, num_classes))
    assert isinstance(make_vec_env(task, 1, num_decisions=4), DummyVecEnv)
    assert "batched runs of digits are left out: " in caplog.text
    assert "data-dependent control flow" in caplog.text


def test_task_that_refuses_to_be_batched_is_noted_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    measure_runners(quadratic(), 1, ControlSettings())
    (record,) = [record for record in caplog.records if "left out" in record.getMessage()]
    assert record.levelno == logging.INFO
    assert "`task` must be one that can be batched" in record.getMessage()


@pytest.mark.slow
def test_dear_tasks_are_measured_with_and_without_workers(cache: Any) -> None:
    rates = measure_runners(
        digits(batch_size=1000, total_steps=300), 4, ControlSettings(interval_steps=150)
    )
    assert set(rates) >= {"looped", "batched"}
    assert all(rate > 0.0 for rate in rates.values())


@pytest.mark.slow
@pytest.mark.skipif(num_cores() < 2, reason="needs two cores")
def test_workers_are_measured_where_batching_gains_less_than_the_cores(cache: Any) -> None:
    rates = measure_runners(quadratic(), 2, ControlSettings())
    assert list(rates) == ["looped", "subprocess"]
    assert all(rate > 0.0 for rate in rates.values())


@pytest.fixture
def remembered(cache: Any, caplog: pytest.LogCaptureFixture) -> Any:
    """The file of a choice that measuring would not make: another one by far."""
    caplog.set_level(logging.INFO)
    first = fastest_runner(digits(), 1, ControlSettings(num_decisions=4))
    (path,) = (cache / "runners").iterdir()
    kept = json.loads(path.read_text())
    other = {"looped": "batched", "batched": "looped"}[first]
    kept["inner_steps_per_second"][other] = 1e12
    path.write_text(json.dumps(kept))
    return path, first, other


def test_choice_is_logged_kept_and_taken_again(
    remembered: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path, first, other = remembered
    assert fastest_runner(digits(), 1, ControlSettings(num_decisions=4)) == other
    records = caplog.get_records("setup") + caplog.get_records("call")
    texts = [record.getMessage() for record in records]
    assert texts[0].startswith("measuring which runner is fastest for 1 environments of digits")
    assert texts[1].startswith(f"runner {first}: looped ")
    assert "measured now" in texts[1]
    date = json.loads(path.read_text())["measured_on"]
    assert date.startswith(time.strftime("%Y-"))
    assert f"measured on {date}; runner=measure measures anew" in texts[2]


def test_choice_is_kept_with_the_versions_that_it_depends_on(remembered: Any) -> None:
    kept = json.loads(remembered[0].read_text())
    assert (kept["torch"], kept["lrpilot"]) == (torch.__version__, lrpilot.__version__)


def test_choice_is_measured_anew_where_that_is_asked_for(remembered: Any) -> None:
    path, _, _ = remembered
    make_vec_env(digits(), 1, runner="measure", num_decisions=4)
    assert max(json.loads(path.read_text())["inner_steps_per_second"].values()) < 1e12


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: '{"inner_steps_per_second": {}}',
        lambda text: text.replace('"looped"', '"lopped"'),
        lambda text: text.replace("measured_on", "when"),
        lambda text: re.sub('"num_threads": 1', '"num_threads": 2', text),
        lambda text: re.sub(r'("looped": )[\d.e+]+', r"\1NaN", text),
        lambda text: re.sub(r'("looped": )[\d.e+]+', r"\1null", text),
        lambda text: re.sub(r'("looped": )[\d.e+]+', r"\1-3.0", text),
        lambda text: "\udcff",
    ],
)
def test_damaged_choice_is_measured_anew_with_a_notice_and_replaced(
    remembered: Any, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    path, _, _ = remembered
    text = path.read_text()
    damaged = damage(text)
    assert damaged != text
    path.write_bytes(damaged.encode(errors="surrogateescape"))
    fastest_runner(digits(), 1, ControlSettings(num_decisions=4))
    assert f"{path} is damaged, and is measured anew" in caplog.text
    kept = json.loads(path.read_text())
    assert 0.0 < kept["inner_steps_per_second"]["looped"] < 1e12
    assert list(path.parent.iterdir()) == [path]


def test_another_setting_is_measured_anew(cache: Any) -> None:
    fastest_runner(digits(), 1, ControlSettings())
    fastest_runner(digits(batch_size=64), 1, ControlSettings())
    fastest_runner(digits(), 1, ControlSettings(reward="training"))
    assert len(list((cache / "runners").iterdir())) == 3


def numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return list(state[1])


def test_measuring_touches_no_generator(cache: Any) -> None:
    before = torch.get_rng_state(), numpy_state(), random.getstate()
    fastest_runner(digits(), 1, ControlSettings())
    after = torch.get_rng_state(), numpy_state(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.slow
def test_cache_that_cannot_be_written_costs_a_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path / "file"))
    assert fastest_runner(quadratic(), 1, ControlSettings()) == "looped"
    assert "cannot be kept" in caplog.text

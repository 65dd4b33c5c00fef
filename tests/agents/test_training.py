import csv
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from lrpilot import ObservationSpec, Policy
from lrpilot.agents import checkpoint
from lrpilot.agents.tracking import Tracker
from lrpilot.envs import LRControlEnv, LRControlVecEnv
from lrpilot.tasks.images.task import ImageTask
from lrpilot.tasks.nmf.task import NMFTask
from tests.training import (
    ALGORITHMS,
    PPO_TINY,
    RECURRENT_TINY,
    SAC_TINY,
    policy_file,
    quadratic,
    run,
)


def digits() -> Any:
    optimizer = partial(torch.optim.SGD, momentum=0.9)
    return ImageTask(name="digits", data="digits", optimizer=optimizer, base_lr=0.1, total_steps=20)


class SignallingEnv(LRControlEnv):
    """Sends this process a signal in its n-th step, as a user would."""

    def __init__(self, task: Any, *, number: Any, at_step: Any) -> None:
        super().__init__(task, num_decisions=5)
        self.number, self.steps_left = number, at_step

    def step(self, action: Any) -> Any:
        self.steps_left -= 1
        if self.steps_left == 0:
            signal.raise_signal(self.number)
        return super().step(action)


every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.func.__name__)


def read_metrics(folder: Any) -> Any:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def comparable(rows: Any) -> Any:
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "env_steps_per_second")}
        for row in rows
    ]


@every_algorithm
def test_run_folder_holds_policy_agent_metrics_summary_and_checkpoint(
    tmp_path: Path, algorithm: Any
) -> None:
    run(tmp_path, total_steps=48, algorithm=algorithm)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "policy.safetensors",
        "agent.zip",
        "metrics.csv",
        "summary.json",
        "checkpoint.pt",
    }


@every_algorithm
def test_metrics_have_one_row_per_rollout(tmp_path: Path, algorithm: Any) -> None:
    run(tmp_path, total_steps=72, algorithm=algorithm)
    assert [row["num_env_steps"] for row in read_metrics(tmp_path)] == ["24", "48", "72"]


def test_summary_file_is_what_is_returned(tmp_path: Path) -> None:
    summary = run(tmp_path, total_steps=24)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_agent_zip_and_policy_file_hold_the_same_actor(tmp_path: Path) -> None:
    run(tmp_path, total_steps=48)
    model = PPO.load(tmp_path / "agent.zip", device="cpu")
    weight = model.policy.get_submodule("action_net").get_parameter("weight").detach().numpy().T
    assert (Policy.load(tmp_path).layers[-1][0] == weight).all()


def test_metrics_of_sac_have_no_losses_before_its_first_update(tmp_path: Path) -> None:
    run(tmp_path, total_steps=72, algorithm=SAC_TINY)
    names = ("policy_loss", "value_loss", "entropy_coefficient")
    known = [[row[name] != "" for name in names] for row in read_metrics(tmp_path)]
    assert known == [[False] * 3, [True] * 3, [True] * 3]


@pytest.mark.slow
@every_algorithm
def test_training_twice_with_one_seed_gives_identical_policy_files(
    tmp_path: Path, algorithm: Any
) -> None:
    for name in ("a", "b"):
        run(tmp_path / name, total_steps=72, algorithm=algorithm)
    assert policy_file(tmp_path / "a") == policy_file(tmp_path / "b")


def test_another_seed_gives_another_policy(tmp_path: Path) -> None:
    fingerprints = {
        run(tmp_path / str(seed), total_steps=48, seed=seed)["policy_fingerprint"]
        for seed in range(2)
    }
    assert len(fingerprints) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "task"),
    [(PPO_TINY, quadratic), (PPO_TINY, digits), (RECURRENT_TINY, quadratic), (SAC_TINY, quadratic)],
)
def test_resumed_training_ends_bit_identical_to_an_uninterrupted_one(
    tmp_path: Path, algorithm: Any, task: Any
) -> None:
    train = partial(run, task=task, algorithm=algorithm)
    train(tmp_path / "whole", total_steps=120)
    train(tmp_path / "half", total_steps=48)
    train(tmp_path / "rest", total_steps=120, resume_from=tmp_path / "half")
    assert policy_file(tmp_path / "rest") == policy_file(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("half", "learning_starts"), [(48, 60), (192, 30)], ids=["random actions", "full memory"]
)
@pytest.mark.filterwarnings("ignore:`total_steps` = 48 is smaller than the 72 env steps")
def test_resumed_sac_ends_bit_identical_to_an_uninterrupted_one(
    tmp_path: Path, half: Any, learning_starts: Any
) -> None:
    train = partial(run, algorithm=partial(SAC_TINY, learning_starts=learning_starts))
    train(tmp_path / "whole", total_steps=half + 72)
    train(tmp_path / "half", total_steps=half)
    train(tmp_path / "rest", total_steps=half + 72, resume_from=tmp_path / "half")
    assert policy_file(tmp_path / "rest") == policy_file(tmp_path / "whole")


@every_algorithm
def test_a_card_has_the_range_of_every_feature_in_training(tmp_path: Path, algorithm: Any) -> None:
    seen: list[Any] = []

    class Watched(DummyVecEnv):
        def step_wait(self) -> Any:
            result = super().step_wait()
            seen.append(np.array(result[0]))
            return result

    def make(task: Any, num_envs: int, settings: Any, *, runner: str) -> Any:
        return Watched([partial(LRControlEnv, task, settings)] * num_envs)

    run(tmp_path, total_steps=48, algorithm=algorithm, make_env=make)
    policy = Policy.load(tmp_path)
    rows = np.concatenate(seen)
    bounds = zip(rows.min(axis=0).tolist(), rows.max(axis=0).tolist(), strict=True)
    expected = dict(zip(policy.observation.names, map(list, bounds), strict=True))
    assert policy.card["feature_range"] == expected
    assert len({low for low, _ in expected.values()}) > 5


@every_algorithm
def test_a_refined_policy_has_seen_what_it_saw_before(tmp_path: Path, algorithm: Any) -> None:
    run(tmp_path / "first", total_steps=48, algorithm=algorithm)
    given = Policy.load(tmp_path / "first")
    given.card["feature_range"]["log_loss"] = [-4.0, 3.0]
    run(tmp_path / "second", total_steps=48, init_from=given, seed=1, algorithm=algorithm)

    refined = Policy.load(tmp_path / "second").card["feature_range"]
    assert refined["log_loss"] == [-4.0, 3.0]
    for name, (low, high) in given.card["feature_range"].items():
        assert refined[name][0] <= low <= high <= refined[name][1]


def test_checkpoints_of_sac_hold_the_filled_part_of_its_replay_buffer(tmp_path: Path) -> None:
    run(tmp_path, total_steps=48, algorithm=partial(SAC_TINY, buffer_size=100_000))
    snapshot = checkpoint.read_snapshot(tmp_path / checkpoint.FILE_NAME)
    arrays = snapshot["agent"]["replay_buffer"]["arrays"].values()
    assert {len(array) for array in arrays} == {24}
    num_bytes = sum(array.numel() * array.element_size() for array in arrays)
    assert num_bytes == 48 * (8 * 12 + 16)


def test_resumed_training_on_batched_runs_ends_bit_identical_to_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    task = NMFTask(
        name="nmf",
        optimizer=torch.optim.SGD,
        base_lr=0.003,
        total_steps=20,
        shape=(12, 10),
        rank=2,
        batch_size=4,
        noise="gaussian",
    )

    def batch_run(name: str, **kwargs: Any) -> Any:
        env = LRControlVecEnv(task, 3, num_decisions=5, horizon_factors=(0.5, 1.0))
        return run(tmp_path / name, task=lambda: task, env=env, settings=env.settings, **kwargs)

    whole = batch_run("whole", total_steps=144)
    batch_run("half", total_steps=72)
    rest = batch_run("rest", total_steps=144, resume_from=tmp_path / "half")
    assert rest["policy_fingerprint"] == whole["policy_fingerprint"]


def test_resumed_metrics_equal_those_of_an_uninterrupted_training(tmp_path: Path) -> None:
    run(tmp_path / "whole", total_steps=120)
    run(tmp_path / "half", total_steps=48)
    run(tmp_path / "rest", total_steps=120, resume_from=tmp_path / "half")
    assert comparable(read_metrics(tmp_path / "rest")) == comparable(
        read_metrics(tmp_path / "whole")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "algorithm"),
    [
        (signal.SIGTERM, PPO_TINY),
        (signal.SIGINT, PPO_TINY),
        (signal.SIGTERM, RECURRENT_TINY),
        (signal.SIGTERM, SAC_TINY),
    ],
)
def test_signal_in_mid_rollout_keeps_the_last_rollout_and_resumes_bit_identically(
    tmp_path: Path, number: Any, algorithm: Any
) -> None:
    run(tmp_path / "whole", total_steps=120, algorithm=algorithm)
    env = partial(SignallingEnv, quadratic(), number=number, at_step=30)
    summary = run(tmp_path / "cut", total_steps=120, first_env=env, algorithm=algorithm)
    assert summary["stopped_by"] == signal.Signals(number).name
    assert summary["num_env_steps"] == 48
    run(tmp_path / "rest", total_steps=120, resume_from=tmp_path / "cut", algorithm=algorithm)
    assert policy_file(tmp_path / "rest") == policy_file(tmp_path / "whole")


def test_signal_handlers_are_restored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path, total_steps=24)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_checkpoints_are_written_while_training(tmp_path: Path) -> None:
    seen = []

    class Watch(Tracker):
        def log(self, row: Any, *, step: Any) -> None:
            seen.append((tmp_path / checkpoint.FILE_NAME).exists())

    run(tmp_path, total_steps=120, checkpoint_steps=48, tracker=Watch(tmp_path, {}))
    assert seen == [False, False, True, True, True]


@pytest.mark.parametrize(("algorithm", "needed"), [(PPO_TINY, 24), (SAC_TINY, 48)])
def test_budget_that_ends_before_the_first_update_warns(
    tmp_path: Path, algorithm: Any, needed: Any
) -> None:
    message = f"`total_steps` = 10 is smaller than the {needed} env steps before the first update"
    with pytest.warns(UserWarning, match=message):
        run(tmp_path, total_steps=10, algorithm=algorithm)


def test_checkpoint_interval_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`interval_env_steps` must be at least 1, got 0"):
        run(tmp_path, total_steps=24, checkpoint_steps=0)


@every_algorithm
def test_an_agent_starts_with_the_actor_of_the_given_policy(tmp_path: Path, algorithm: Any) -> None:
    run(tmp_path / "first", total_steps=48, algorithm=algorithm)
    given = Policy.load(tmp_path / "first")
    still = partial(algorithm, learning_rate=0.0)
    run(tmp_path / "second", total_steps=48, init_from=given, seed=1, algorithm=still)
    assert Policy.load(tmp_path / "second").fingerprint == given.fingerprint


@every_algorithm
def test_an_actor_is_trained_on_from_the_given_policy(tmp_path: Path, algorithm: Any) -> None:
    run(tmp_path / "first", total_steps=48, algorithm=algorithm)
    given = Policy.load(tmp_path / "first")
    run(tmp_path / "second", total_steps=48, init_from=given, seed=1, algorithm=algorithm)
    refined = Policy.load(tmp_path / "second")
    assert refined.fingerprint != given.fingerprint
    for (new, _), (old, _) in zip(refined.layers, given.layers, strict=True):
        assert abs(new - old).max() < 0.05


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [(PPO_TINY, SAC_TINY, "output tanh"), (PPO_TINY, RECURRENT_TINY, "weights")],
)
def test_an_agent_of_another_kind_cannot_start_from_a_policy(
    tmp_path: Path, first: Any, second: Any, what: Any
) -> None:
    run(tmp_path / "first", total_steps=24, algorithm=first)
    given = Policy.load(tmp_path / "first")
    with pytest.raises(ValueError, match=f"`init_from` must have the {what}"):
        run(tmp_path / "second", total_steps=24, init_from=given, algorithm=second)


def test_a_policy_with_another_observation_cannot_be_refined(tmp_path: Path) -> None:
    run(tmp_path / "first", total_steps=24)
    given = Policy.load(tmp_path / "first")
    env = LRControlEnv(quadratic(), num_decisions=5, observation=ObservationSpec(("loss",)))
    changes = {"env": DummyVecEnv([lambda: env]), "settings": env.settings}
    with pytest.raises(ValueError, match="`init_from` must have the observation"):
        run(tmp_path / "second", total_steps=24, init_from=given, **changes)


class NoteAtClose(Tracker):
    """Keeps the names of the run folder's files at the time when it is closed."""

    names: tuple[str, ...] = ()

    def close(self, *, exit_code: Any = 0) -> None:
        self.names = tuple(sorted(path.name for path in self.run_dir.iterdir()))


RESULTS = ("agent.zip", "checkpoint.pt", "metrics.csv", "policy.safetensors", "summary.json")


def test_results_are_written_before_the_tracker_is_closed(tmp_path: Path) -> None:
    tracker = NoteAtClose(tmp_path, {})
    run(tmp_path, total_steps=24, tracker=tracker)
    assert tracker.names == RESULTS


def test_tracker_is_closed_when_training_fails(tmp_path: Path) -> None:
    tracker = NoteAtClose(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`total_steps` must be at least 1"):
        run(tmp_path, total_steps=0, tracker=tracker)
    assert tracker.names == ("file",)


@every_algorithm
def test_a_complete_checkpoint_alone_gives_all_results(tmp_path: Path, algorithm: Any) -> None:
    run(tmp_path / "whole", total_steps=72, algorithm=algorithm)
    (tmp_path / "killed").mkdir()
    checkpoint_file = (tmp_path / "whole" / checkpoint.FILE_NAME).read_bytes()
    (tmp_path / "killed" / checkpoint.FILE_NAME).write_bytes(checkpoint_file)
    run(tmp_path / "rest", total_steps=72, resume_from=tmp_path / "killed", algorithm=algorithm)
    assert policy_file(tmp_path / "rest") == policy_file(tmp_path / "whole")
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "rest")]
    assert metrics[0] == metrics[1]
    assert tuple(sorted(path.name for path in (tmp_path / "rest").iterdir())) == RESULTS


def test_a_signal_after_the_last_rollout_does_not_undo_it(tmp_path: Path) -> None:
    class Stop(Tracker):
        def log(self, row: Any, *, step: Any) -> None:
            if step == 48:
                signal.raise_signal(signal.SIGTERM)

    summary = run(tmp_path, total_steps=48, tracker=Stop(tmp_path, {}))
    assert (summary["stopped_by"], summary["num_env_steps"]) == (None, 48)
    snapshot = checkpoint.read_snapshot(tmp_path / checkpoint.FILE_NAME)
    assert snapshot["num_env_steps"] == 48


def test_a_card_and_a_summary_name_no_folder_of_the_machine(tmp_path: Path) -> None:
    run(tmp_path / "first", total_steps=24)
    given = Policy.load(tmp_path / "first")
    card = {
        "agent": {"init_from": str(tmp_path / "first"), "net_arch": [8]},
        "task": {"data_dir": "~/data", "matrices": [f"{tmp_path}/x.npy"], "name": "a/b"},
    }
    summary = run(tmp_path / "second", total_steps=24, init_from=given, card=card)
    card = Policy.load(tmp_path / "second").card
    assert card["agent"] == {"init_from": "first", "net_arch": [8]}
    assert card["task"] == {"data_dir": "data", "matrices": ["x.npy"], "name": "a/b"}
    assert card["init_from_fingerprint"] == given.fingerprint
    assert summary["policy"] == "policy.safetensors"
    for text in (json.dumps(card), (tmp_path / "second" / "summary.json").read_text()):
        assert str(tmp_path) not in text


def test_a_resumed_refinement_still_names_what_it_began_from(tmp_path: Path) -> None:
    run(tmp_path / "first", total_steps=24)
    given = Policy.load(tmp_path / "first")
    run(tmp_path / "whole", total_steps=72, init_from=given)
    run(tmp_path / "half", total_steps=48, init_from=given)
    run(tmp_path / "rest", total_steps=72, resume_from=tmp_path / "half")
    assert policy_file(tmp_path / "rest") == policy_file(tmp_path / "whole")

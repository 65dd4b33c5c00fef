"""What a checkpoint file may hold, and what its reader does with anything else."""

import base64
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from lrpilot.agents import checkpoint
from lrpilot.agents.tracking import Tracker
from lrpilot.envs import LRControlEnv
from tests.full_disk import full_disk
from tests.training import PPO_TINY, SAC_TINY, policy_file, quadratic, run

NAMES = (checkpoint.FILE_NAME, checkpoint.PREVIOUS_NAME)


class WritesAFile:
    """Unpickled, it writes a file."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("half")
    run(folder, total_steps=48)
    return folder


def resume_from(content: Any, tmp_path: Path, **changes: Any) -> Any:
    """Train on from a checkpoint file of this content."""
    (tmp_path / "cut").mkdir(exist_ok=True)
    (tmp_path / "cut" / checkpoint.FILE_NAME).write_bytes(content)
    (tmp_path / "cut" / "metrics.csv").write_text("num_env_steps\n")
    return run(tmp_path / "rest", total_steps=72, resume_from=tmp_path / "cut", **changes)


def bit_flips(content: Any, rng: Any) -> Iterator[Any]:
    while True:
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def truncations(content: Any, rng: Any) -> Iterator[Any]:
    yield b""
    while True:
        yield content[: rng.randrange(len(content))]


def swapped_parts(content: Any, rng: Any) -> Iterator[Any]:
    while True:
        size = rng.randrange(1, len(content) // 3)
        i = rng.randrange(len(content) - 2 * size)
        j = rng.randrange(i + size, len(content) - size)
        first, second = content[i : i + size], content[j : j + size]
        if first != second:
            middle = content[i + size : j]
            yield content[:i] + second + middle + first + content[j + size :]


@pytest.mark.parametrize("mutate", [bit_flips, truncations, swapped_parts])
def test_no_damaged_checkpoint_is_resumed(folder: Any, tmp_path: Path, mutate: Any) -> None:
    content = (folder / checkpoint.FILE_NAME).read_bytes()
    mutations = mutate(content, random.Random(0))
    for _ in range(150 if mutate is bit_flips else 50):
        with pytest.raises(ValueError, match=r"damaged|is empty|no checkpoint of this version"):
            resume_from(next(mutations), tmp_path)


def with_its_digest(payload: Any) -> Any:
    """A checkpoint file of any payload, as somebody would make it who knows the format."""
    digest = hashlib.sha256(payload).hexdigest().encode()
    return b"lrpilot checkpoint 3 " + digest + b"\n" + payload


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_no_checkpoint_runs_code(folder: Any, tmp_path: Path) -> None:
    evil = WritesAFile(tmp_path / "executed")
    payloads = [pickle.dumps(evil), saved(evil), saved({"agent": evil})]
    payloads += [pickle.dumps(evil, protocol) for protocol in range(5)]
    for payload in [*payloads, *map(with_its_digest, payloads)]:
        with pytest.raises(ValueError, match=r"no checkpoint of this version|plain values"):
            resume_from(payload, tmp_path)
    assert not (tmp_path / "executed").exists()


def test_an_archive_of_sb3_inside_a_checkpoint_is_not_opened(folder: Any, tmp_path: Path) -> None:
    evil = base64.b64encode(cloudpickle.dumps(WritesAFile(tmp_path / "executed"))).decode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data", json.dumps({"policy_class": {":type:": "x", ":serialized:": evil}}))
    snapshot = checkpoint.read_snapshot(folder / checkpoint.FILE_NAME)
    snapshot["agent"] = torch.frombuffer(archive.getbuffer(), dtype=torch.uint8)
    checkpoint.write_snapshot(snapshot, tmp_path / "changed.pt")
    with pytest.raises(ValueError, match="the checkpoint does not fit"):
        resume_from((tmp_path / "changed.pt").read_bytes(), tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "value", [{}, 3, [], {"algorithm": "PPO"}, {"algorithm": "PPO", "agent": {}}]
)
def test_a_checkpoint_without_a_state_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"holds no snapshot|does not fit"):
        resume_from(with_its_digest(saved(value)), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": SAC_TINY},
        {"algorithm": partial(PPO_TINY, policy_kwargs={"net_arch": [9]})},
        {"env": DummyVecEnv([partial(LRControlEnv, quadratic(), num_decisions=5)])},
    ],
    ids=["algorithm", "size", "number of environments"],
)
def test_a_checkpoint_of_another_training_is_refused(
    folder: Any, tmp_path: Path, changes: Any
) -> None:
    content = (folder / checkpoint.FILE_NAME).read_bytes()
    with pytest.raises(ValueError, match="resume with the configuration that it was written with"):
        resume_from(content, tmp_path, **changes)


class Failing(LRControlEnv):
    """Ends in an error in its n-th step."""

    steps_left = 30

    def step(self, action: Any) -> Any:
        self.steps_left -= 1
        if self.steps_left == 0:
            raise ZeroDivisionError("in the environment")
        return super().step(action)


def test_an_error_in_mid_rollout_keeps_the_last_rollout_and_resumes_bit_identically(
    tmp_path: Path,
) -> None:
    run(tmp_path / "whole", total_steps=120)
    env = partial(Failing, quadratic(), num_decisions=5)
    with pytest.raises(ZeroDivisionError, match="in the environment"):
        run(tmp_path / "cut", total_steps=120, first_env=env)
    assert checkpoint.read_snapshot(tmp_path / "cut" / "checkpoint.pt")["num_env_steps"] == 48
    run(tmp_path / "rest", total_steps=120, resume_from=tmp_path / "cut")
    assert policy_file(tmp_path / "rest") == policy_file(tmp_path / "whole")


def test_a_checkpoint_is_written_when_the_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_WRITES", 0.0, raising=False)
    seen = []

    class Watch(Tracker):
        def log(self, row: Any, *, step: Any) -> None:
            seen.append((tmp_path / checkpoint.FILE_NAME).exists())

    run(tmp_path, total_steps=72, tracker=Watch(tmp_path, {}))
    assert seen == [True, True, True]


def two_checkpoints(folder: Path) -> Path:
    """A run folder of a training to env step 72, with checkpoints of 72 and 48."""
    run(folder, total_steps=72, checkpoint_steps=24)
    done = [checkpoint.read_snapshot(folder / name)["num_env_steps"] for name in NAMES]
    assert done == [72, 48]
    return folder


def test_a_torn_checkpoint_is_replaced_by_the_one_before_it_which_resumes_bit_identically(
    tmp_path: Path,
) -> None:
    run(tmp_path / "whole", total_steps=120)
    cut = two_checkpoints(tmp_path / "cut")
    content = (cut / checkpoint.FILE_NAME).read_bytes()
    (cut / checkpoint.FILE_NAME).write_bytes(content[: len(content) // 2])
    said = rf"{cut}/checkpoint.pt is damaged.* at env step 48, and 24 env steps are made again"
    with pytest.warns(RuntimeWarning, match=said):
        run(tmp_path / "rest", total_steps=120, resume_from=cut)
    assert policy_file(tmp_path / "rest") == policy_file(tmp_path / "whole")


def test_a_kill_between_two_renames_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    cut = two_checkpoints(tmp_path)
    (cut / checkpoint.FILE_NAME).unlink()
    (cut / "metrics.csv").write_text("num_env_")
    assert checkpoint.has_checkpoint(cut)
    with pytest.warns(RuntimeWarning, match=r"is missing: .* and an unknown number of env steps"):
        assert checkpoint.read_newest(cut)["num_env_steps"] == 48


def test_two_damaged_checkpoints_are_an_error_that_names_both(tmp_path: Path) -> None:
    cut = two_checkpoints(tmp_path)
    for name in NAMES:
        (cut / name).write_bytes((cut / name).read_bytes()[:-1])
    with pytest.raises(
        checkpoint.CheckpointError,
        match=r"no checkpoint is left: .*checkpoint\.pt is dam.*checkpoint_previous\.pt is dam",
    ):
        run(tmp_path / "rest", total_steps=120, resume_from=cut)


def test_a_resumed_training_does_not_keep_a_damaged_checkpoint_as_the_one_before(
    tmp_path: Path,
) -> None:
    cut = two_checkpoints(tmp_path)
    (cut / checkpoint.FILE_NAME).write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="is empty"):
        run(cut, total_steps=72, resume_from=cut)
    done = [checkpoint.read_snapshot(cut / name)["num_env_steps"] for name in NAMES]
    assert done == [72, 48]


class Act(Tracker):
    """Does something at the end of rollouts, named by their env steps."""

    def __init__(self, acts: dict[int, Callable[[], Any]]) -> None:
        self.acts = acts

    def log(self, row: Any, *, step: Any) -> None:
        self.acts.get(step, lambda: None)()


def test_a_full_disk_is_named_and_loses_nothing_once_there_is_room(tmp_path: Path) -> None:
    run(tmp_path / "whole", total_steps=120)
    with ExitStack() as disk:
        tracker = Act({24: lambda: disk.enter_context(full_disk(300)), 96: disk.close})
        with pytest.warns(RuntimeWarning) as warned:
            run(tmp_path / "cut", total_steps=120, checkpoint_steps=24, tracker=tracker)
    texts = "\n".join(str(warning.message) for warning in warned)
    for name in (checkpoint.FILE_NAME, "metrics.csv"):
        assert (
            f"training goes on without: [Errno 27] File too large: '{tmp_path}/cut/{name}" in texts
        )
    assert policy_file(tmp_path / "cut") == policy_file(tmp_path / "whole")
    rows = (tmp_path / "cut" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["24", "48", "72", "96", "120"]


@pytest.mark.filterwarnings("ignore:.* cannot be written and training goes on")
def test_results_that_cannot_be_written_are_an_error_and_the_older_checkpoint_stays(
    tmp_path: Path,
) -> None:
    run(tmp_path, total_steps=48)
    before = (tmp_path / checkpoint.FILE_NAME).read_bytes()
    with full_disk(), pytest.raises(OSError, match=rf"{tmp_path}/policy\.safetensors"):
        run(tmp_path, total_steps=96, resume_from=tmp_path)
    assert (tmp_path / checkpoint.FILE_NAME).read_bytes() == before


@pytest.mark.filterwarnings("ignore:metrics cannot be written and training goes on")
def test_a_run_folder_that_is_deleted_is_made_anew(tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    tracker = Act({48: lambda: shutil.rmtree(cut)})
    run(cut, total_steps=120, checkpoint_steps=24, tracker=tracker)
    assert len((cut / "metrics.csv").read_text().splitlines()) == 6
    assert {path.name for path in cut.iterdir()} > {"policy.safetensors", *NAMES}

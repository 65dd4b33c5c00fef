"""What `resume=` makes of run folders in any state, and what it never does."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir

from lrpilot.agents import checkpoint
from scripts import resuming
from tests.programs import ROOT, TINY, run_scripts

RESULTS = ("agent.zip", "metrics.csv", "policy.safetensors", "summary.json")
OWN = "agent.algorithm._target_=stable_baselines3.PPO"
TRAIN = {
    "whole": ["train_agent.py", *TINY],
    "own": ["train_agent.py", *TINY, OWN],
}
COPIES = ("killed", "evil_config", "evil_override", "empty", "truncated", "foreign", "reproduced")
# name of the new run, run folder that it continues, more arguments
RESUMED = {
    "finished": ["whole"],
    "other_agent": ["whole", "agent.total_steps=116", "agent.algorithm.n_epochs=3"],
    "own": ["own", "agent.total_steps=116"],
    "own_again": ["own", "agent.total_steps=116", OWN],
    **{name: [name] for name in COPIES},
}


def rewrite(path: Any, settings: Any) -> None:
    checkpoint.write_snapshot({**checkpoint.read_snapshot(path), "settings": settings}, path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run folders: finished ones, and copies of these that lost, or got, something."""
    root = tmp_path_factory.mktemp("root")
    done = run_scripts([[*run, f"hydra.run.dir={name}"] for name, run in TRAIN.items()], root)
    assert [code for code, _, _ in done] == [0, 0], done
    for name in COPIES:
        shutil.copytree(root / "whole", root / name)
    for name in ("killed", "evil_config", "evil_override"):
        (root / name / "summary.json").unlink()
    for name in ("agent.zip", "policy.safetensors"):
        (root / "killed" / name).unlink()
    (root / "killed" / "config.yaml").write_text("task: [")
    (root / "killed" / "metrics.csv").write_text("num_env_")
    text = (root / "evil_config" / "config.yaml").read_text()
    evil = f"_target_: os.mkdir\n  path: {root}/executed"
    assert "_target_: lrpilot.agents.tracking.Tracker" in text
    text = text.replace("_target_: lrpilot.agents.tracking.Tracker", evil)
    (root / "evil_config" / "config.yaml").write_text(text)
    evil = f"+task.more={{_target_: os.mkdir, path: {root}/executed}}"
    kept = checkpoint.read_snapshot(root / "whole" / "checkpoint.pt").get("settings", {})
    rewrite(root / "evil_override" / "checkpoint.pt", {**kept, "overrides": [*TINY, evil]})
    rewrite(root / "reproduced" / "checkpoint.pt", {})
    whole = (root / "whole" / "checkpoint.pt").read_bytes()
    (root / "empty" / "checkpoint.pt").write_bytes(b"")
    (root / "truncated" / "checkpoint.pt").write_bytes(whole[:-1])
    torch.save({"epoch": 3}, root / "foreign" / "checkpoint.pt")
    return root


@pytest.fixture(scope="module")
def answers(root: Any) -> Any:
    """Exit code, output and errors of every resume."""
    commands = [
        ["train_agent.py", f"resume={folder}", f"hydra.run.dir=out/{name}", *more]
        for name, (folder, *more) in RESUMED.items()
    ]
    return dict(zip(RESUMED, run_scripts(commands, root), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_no_resume_ends_in_a_traceback(answers: Any, name: str) -> None:
    assert "Traceback" not in answers[name][2]


@pytest.mark.slow
def test_a_run_that_lost_its_results_is_finished_bit_identically(root: Any, answers: Any) -> None:
    assert answers["killed"][0] == 0
    for name in ("policy.safetensors", "metrics.csv"):
        assert (root / "out" / "killed" / name).read_bytes() == (root / "whole" / name).read_bytes()
    assert all((root / "out" / "killed" / name).exists() for name in RESULTS)


@pytest.mark.slow
def test_a_finished_run_is_not_resumed(answers: Any) -> None:
    code, _, errors = answers["finished"]
    assert code == 1
    assert "nothing is left" in errors


@pytest.mark.slow
def test_no_code_of_a_run_folder_is_run(root: Any, answers: Any) -> None:
    assert answers["evil_config"][0] == 0
    assert answers["evil_override"][0] == 1
    assert "`task.more` must be given again" in answers["evil_override"][2]
    assert not (root / "executed").exists()


@pytest.mark.slow
def test_code_of_the_first_command_line_is_run_again_only_where_it_is_given_again(
    answers: Any,
) -> None:
    code, _, errors = answers["own"]
    assert code == 1
    assert errors.startswith("`agent.algorithm._target_` must be given again")
    assert answers["own_again"][0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "what"),
    [("empty", "is empty"), ("truncated", "is damaged"), ("foreign", "is no checkpoint of this")],
)
def test_a_file_that_is_no_whole_checkpoint_is_named_in_one_line(
    answers: Any, name: str, what: Any
) -> None:
    code, _, errors = answers[name]
    assert code == 1
    assert errors.startswith(f"{name}/checkpoint.pt {what}")
    assert len(errors.splitlines()) == 1


@pytest.mark.slow
def test_a_checkpoint_of_another_script_is_refused(answers: Any) -> None:
    code, _, errors = answers["reproduced"]
    assert code == 1
    assert errors.startswith("`resume` must be a run folder of train_agent.py, got reproduced")


@pytest.mark.slow
def test_another_agent_is_named_with_both_values(answers: Any) -> None:
    code, _, errors = answers["other_agent"]
    assert code == 1
    assert errors.startswith("`agent.algorithm.n_epochs`: 8 kept, 3 given\n")


@pytest.fixture(scope="module")
def is_plain_override() -> Iterator[Any]:
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        yield resuming.is_plain_override


@pytest.mark.parametrize(
    "override",
    [
        "task=quadratic",
        "task/optimizer=adam",
        "seed=3",
        "env.horizon_factors=[0.5,1.0]",
        "agent.init_from='/runs/my run'",
        "agent.algorithm.policy_kwargs={net_arch:[8,8]}",
        "~env.num_epochs",
        "+task.optimizer.nesterov=true",
    ],
)
def test_choices_and_plain_values_are_taken_from_a_checkpoint(
    is_plain_override: Any, override: Any
) -> None:
    assert is_plain_override(override)


@pytest.mark.parametrize(
    "override",
    [
        "logger._target_=os.mkdir",
        "++logger._target_=os.mkdir",
        "+task.x={_target_: os.mkdir, path: x}",
        "+task.x=[{a: {_target_: os.mkdir}}]",
        "+task.x={'_target_': os.mkdir}",
        "+task.x=${oc.create:'{_target_: os.mkdir}'}",
        "+task.x='${oc.create:{_target_: os.mkdir}}'",
        "task=../../../tmp/evil",
        "task=/tmp/evil",
        "task=unknown",
        "+../../tmp/evil=x",
        "hydra.searchpath=[/tmp]",
        "+hydra.callbacks.x=1",
        "hydra/launcher=basic",
        "task=choice(quadratic,nmf)",
        "no override",
    ],
)
def test_code_is_never_taken_from_a_checkpoint(is_plain_override: Any, override: Any) -> None:
    assert not is_plain_override(override)

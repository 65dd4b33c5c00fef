"""Nothing that a run leaves tells a secret, or whose machine it was."""

import json
from typing import Any

import pytest

from lrpilot.redaction import without_folders
from tests.programs import TINY, run_scripts
from tests.wandb_runs import read_run

pytestmark = pytest.mark.slow

SECRET = "0123456789abcdef0123456789abcdef01234567"
PASSWORD = "hunter2"
NMF = ["task=nmf", "task.shape=[8,8]", "task.rank=2", "task.batch_size=2"]
EVALUATION = ["scheduler=[constant]", "num_seeds=1", "initial_lr_factors=[1]", "num_threads=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The home folder of a user whose data and runs are in it."""
    home = tmp_path_factory.mktemp("jane")
    data, runs = home / "data", home / "runs"
    data.mkdir()
    tiny = [*NMF, *TINY[1:-1], f"task.data_dir={data}"]
    wandb = ["logger=wandb", "logger.mode=offline"]
    commands = [
        ["train_agent.py", *tiny, *wandb, f"hydra.run.dir={runs}/one"],
        ["train_agent.py", f"resume={runs}/one", "agent.total_steps=116", *wandb[:1],
         f"hydra.run.dir={runs}/rest"],
        ["train_agent.py", "-m", *tiny, "seed=1", f"hydra.sweep.dir={runs}/sweep"],
        ["train_agent.py", "-m", *tiny, f"agent.init_from={home}/none",
         f"hydra.sweep.dir={runs}/bad"],
        ["evaluate.py", *NMF, "task.total_steps=20", f"task.data_dir={data}", *EVALUATION,
         f"policy={runs}/one", "placebos=false", f"hydra.run.dir={runs}/evaluated"],
        ["report.py", f"runs=[{runs}/evaluated]", f"hydra.run.dir={runs}/page"],
    ]  # fmt: skip
    codes = run_scripts(commands, home, environment={"HOME": str(home), "WANDB_API_KEY": SECRET})
    assert [code for code, _, _ in codes] == [0, 0, 0, 1, 0, 0], codes
    return home


@pytest.mark.parametrize("kind", ["one", "rest", "sweep", "bad", "evaluated", "page"])
def test_no_file_of_a_run_tells_the_home_folder_or_a_secret(home: Any, kind: str) -> None:
    files = [path for path in (home / "runs" / kind).rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        # an offline run says where the files lie that are to be uploaded, and sends no paths
        assert path.suffix == ".wandb" or str(home).encode() not in content, path


def test_what_weights_and_biases_would_send_has_no_home_folder(home: Any) -> None:
    assert str(home) not in json.dumps(read_run(home / "runs/one"))


def test_hydra_leaves_no_snapshot_of_its_own_in_a_run_folder(home: Any) -> None:
    assert not list((home / "runs").rglob(".hydra"))


def test_a_url_in_a_configuration_loses_its_password() -> None:
    given = {"storage": f"postgresql://jane:{PASSWORD}@host/x", "other": ["a", 1, None]}
    expected = {"storage": "postgresql://jane:***@host/x", "other": ["a", 1, None]}
    assert without_folders(given) == expected

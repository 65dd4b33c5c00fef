"""What a sweep's sweeper and its user get from the jobs."""

import json
from pathlib import Path

import pytest

from tests.script_runs import TINY, run_scripts

pytestmark = pytest.mark.slow

# keeps what the jobs return to Hydra's own sweeper
RECORDED = """
import json
from hydra._internal.hydra import Hydra

multirun = Hydra.multirun

def recorded(*arguments, **more):
    batches = multirun(*arguments, **more)
    with open("returns.json", "w") as file:
        json.dump([job.return_value for batch in batches for job in batch], file)
    return batches

Hydra.multirun = recorded
"""


def test_a_sweeper_gets_the_final_return_of_every_job(tmp_path: Path) -> None:
    rates = "agent.algorithm.learning_rate=0.001,0.01"
    command = [
        "train_agent.py",
        "-m",
        *TINY,
        "agent.total_steps=116",
        rates,
        f"output_root={tmp_path}",
    ]
    ((code, _, err),) = run_scripts([command], tmp_path, before=RECORDED)
    assert code == 0, err
    returns = json.loads((tmp_path / "returns.json").read_text())
    (sweep,) = (tmp_path / "train_agent_sweep").iterdir()
    summaries = [json.loads((sweep / job / "summary.json").read_text()) for job in ("0", "1")]
    assert returns == [summary["return_mean_last_rollouts"] for summary in summaries]
    assert all(isinstance(value, float) for value in returns)

"""On the noisy quadratic the best schedule is known: a trained agent must come close to it."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lrpilot import Policy, PolicyLR
from lrpilot.envs.lr_control import FIRST_EVALUATION_SEED
from lrpilot.evaluation.runs.grid import Method, train
from tests.best_return import best_return

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_agent_on_the_quadratic_reaches_90_percent_of_the_best_return_under_its_limits(
    tmp_path: Path,
) -> None:
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "train_agent.py"),
            *("task=quadratic", "logger=csv", "num_threads=1", f"hydra.run.dir={tmp_path}"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    policy = Policy.load(tmp_path)
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        task = instantiate(compose("train_agent", ["task=quadratic"]).task, _convert_="all")
    method = Method("policy", lambda optimizer, **kw: PolicyLR(optimizer, policy, **kw))
    low, high = policy.card["env"]["initial_lr_factors"]
    reached, best = [], []
    for i, factor in enumerate(np.geomspace(low, high, 60)):
        result = train(
            task, method, initial_lr_factor=float(factor), seed=FIRST_EVALUATION_SEED + i
        )
        final_power = 2 * result.row["held_out_loss"] / task.curvature
        reached.append(math.log(task.initial_power / final_power))
        best.append(
            best_return(
                task,
                policy.action,
                initial_lr=task.base_lr * float(factor),
                interval_steps=policy.clock.interval_steps(task.total_steps),
                num_intervals=policy.clock.num_decisions,
            )
        )
    share = np.mean(reached) / np.mean(best)
    print(f"reached {np.mean(reached):.3f} of {np.mean(best):.3f}: {share:.3f}")
    assert 0.9 <= share <= 1.01

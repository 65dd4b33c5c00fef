"""The examples as their reader runs them: a process, in an empty folder."""

import re
from pathlib import Path

import pytest
import torch

from lrpilot import Policy, PolicyLR
from tests import programs
from tests.programs import NO_USER_WARNING, ROOT


def run(name: str, *arguments: str, cwd: Path) -> str:
    code, out, err = programs.run(
        ROOT / "examples" / name, *arguments, cwd=cwd, before=NO_USER_WARNING
    )
    assert code == 0, err
    return out


def returns(output: str) -> list[float]:
    return [float(value) for value in re.findall(r"return ([+-]\d+\.\d+)", output)]


def rows(output: str) -> dict[str, list[float]]:
    """The numbers of the table's lines, by the scheduler's name."""
    lines = re.findall(r"^(policy|cosine|linear) +(.+)$", output, re.M)
    return {name: [float(value) for value in values.split()] for name, values in lines}


@pytest.mark.slow
def test_ppo_learns_and_leaves_a_policy_that_runs(tmp_path: Path) -> None:
    arguments = ["--task", "quadratic", "--num-envs", "8", "--num-updates", "8"]
    found = returns(run("ppo.py", *arguments, cwd=tmp_path))
    assert len(found) == 8
    assert sum(found[-2:]) > sum(found[:2]) + 1.0
    policy = Policy.load(tmp_path / "outputs" / "ppo.safetensors")
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scheduler = PolicyLR(optimizer, policy, total_steps=60)
    for _ in range(60):
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    assert float(loss.detach()) < 3.0


@pytest.mark.slow
def test_ppo_trains_on_batched_environments(tmp_path: Path) -> None:
    output = run("ppo.py", "--num-envs", "4", "--num-updates", "2", cwd=tmp_path)
    assert len(returns(output)) == 2


@pytest.mark.slow
def test_the_own_loop_compares_policy_and_cosine(tmp_path: Path) -> None:
    table = rows(run("own_loop.py", "--num-seeds", "1", "--total-steps", "150", cwd=tmp_path))
    assert set(table) == {"policy", "cosine"}
    # the policy is good from every initial learning rate; cosine is not
    assert min(table["policy"]) > 0.8 > min(table["cosine"])


@pytest.mark.slow
def test_the_own_task_learns_and_compares(tmp_path: Path) -> None:
    arguments = ["--agent-steps", "1856", "--num-seeds", "1"]
    output = run("own_task.py", *arguments, cwd=tmp_path)
    for scheduler in ("policy", "cosine"):
        # held-out losses at five initial learning rates, and their median
        assert re.search(rf"^\| {scheduler} +(\| +[\d.]+ ){{6}}\|$", output, re.M)
    assert (tmp_path / "outputs" / "own_task" / "policy.safetensors").is_file()


@pytest.mark.slow
def test_a_policy_runs_in_the_trainer_beside_linear_decay(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    table = rows(run("trainer.py", "--total-steps", "300", cwd=tmp_path))
    assert set(table) == {"policy", "linear"}
    # at the smallest initial learning rate, which linear decay does not get away from
    assert table["policy"][0] < table["linear"][0]

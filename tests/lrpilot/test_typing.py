"""Every public name is typed for users, whose checker is strict."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import lrpilot

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

import lrpilot
from lrpilot.policy.parameter_sample import ParameterSample


class HalfLR(lrpilot.AdaptiveLR):
    def _next_lrs(self) -> list[float]:
        return self.limit([lr / 2 for lr in self.current_lrs()])


def make_cap(optimizer: Optimizer, loss: Tensor) -> lrpilot.Cap:
    cap = lrpilot.CurvatureCap(optimizer, lambda: loss, safety=0.2)
    eta_max, guarantee = cap()
    total: float = eta_max + len(guarantee)
    return cap if total else lambda: (1.0, "estimate")


def schedulers(optimizer: Optimizer, cap: lrpilot.Cap) -> Iterator[LRScheduler]:
    yield lrpilot.GreedyLR(optimizer, window_size=50, min_factor=0.1, cap=cap)
    yield lrpilot.HypergradientLR(optimizer, hyper_lr=0.02, level="tensor")
    yield lrpilot.LineSearchLR(optimizer, torch.nn.Linear(1, 1), condition="goldstein")
    yield lrpilot.D2ZLR(optimizer, total_steps=500, cap=cap)
    yield lrpilot.CosineWarmupLR(optimizer, total_steps=500)
    yield lrpilot.WSDLR(optimizer, total_steps=500)
    yield lrpilot.PolicyLR(optimizer, lrpilot.Policy.load("cifar"), total_steps=500)
    yield HalfLR(optimizer, cap=cap)


def train(optimizer: Optimizer, loss: Tensor, model: torch.nn.Module) -> list[float]:
    guard = lrpilot.Guard(ConstantLR(optimizer), model=model, cap=make_cap(optimizer, loss))
    try:
        guard.step(loss)
    except lrpilot.DivergenceError as error:
        print(error)
    log: lrpilot.DecisionLog = guard.log
    decision: lrpilot.Decision = log[0]
    print(decision.rule.upper(), decision.new_lr / 2)
    return lrpilot.GreedyLR.simulate([1.0, loss], initial_lr=0.1, factor=0.5)


def control(parameters: list[Tensor]) -> float:
    try:
        policy = lrpilot.Policy.load("policy.safetensors")
    except lrpilot.PolicyFileError:
        return 0.0
    clock: lrpilot.ClockSpec = policy.clock
    action: lrpilot.ActionSpec = policy.action
    observation: lrpilot.ObservationSpec = policy.observation
    controller = lrpilot.Controller(
        observation,
        action,
        ParameterSample(parameters, observation.num_entries),
        interval_steps=clock.interval_steps(100),
        total_steps=100,
    )
    observer: lrpilot.Observer = controller.observer
    observer.add_loss(1.0)
    settings = lrpilot.ControlSettings(observation=observation, action=action)
    return float(controller.act(0.5)) * settings.divergence_factor


version: str = lrpilot.__version__
optimizer = SGD([torch.ones(1, requires_grad=True)], lr=0.1)
names = [type(scheduler).__name__ for scheduler in schedulers(optimizer, lambda: (1.0, "given"))]
"""
MISTAKE = "lrpilot.GreedyLR(optimizer, window_size='50')\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter in whose site-packages lrpilot is installed, beside the other packages."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    shutil.copytree(
        ROOT / "lrpilot",
        site / "lrpilot",
        ignore=lambda path, names: [name for name in names if (Path(path) / name).is_symlink()],
    )
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def mypy(python: Path, folder: Path, program: str) -> str:
    """What the checker says of a user's file."""
    (folder / "user.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "user.py"],
        cwd=folder,
        capture_output=True,
        text=True,
    ).stdout


def test_the_program_of_a_user_uses_every_public_name() -> None:
    assert set(re.findall(r"(?<!from )\blrpilot\.(\w+)", PROGRAM)) == set(lrpilot.__all__)


@pytest.mark.slow
def test_a_strict_checker_knows_the_types_of_every_public_name(
    python: Path, tmp_path: Path
) -> None:
    assert mypy(python, tmp_path, PROGRAM) == "Success: no issues found in 1 source file\n"
    (mistake, _) = mypy(python, tmp_path, PROGRAM + MISTAKE).splitlines()
    assert 'incompatible type "str"; expected "int | None"' in mistake

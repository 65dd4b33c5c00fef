"""What is installed: one package that holds all parts, and works beside a rival `agents`."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages with the unpacked wheel and a distribution that installs `agents`, `envs`."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for rival in ("agents", "envs", "tasks"):
        (folder / rival).mkdir()
        (folder / rival / "__init__.py").write_text("RIVAL = True\n")
    return folder


def run(site: Path, program: str) -> str:
    """What a new process prints that finds the unpacked wheel before the checkout."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_wheel_holds_one_package(site: Path) -> None:
    (wheel,) = site.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lrpilot"}


@pytest.mark.slow
def test_the_environment_is_made_from_the_wheel(site: Path) -> None:
    program = (
        "import gymnasium, lrpilot, agents; assert agents.RIVAL;"
        "env = gymnasium.make('lrpilot/LRControl-v0', task='quadratic'); env.reset(seed=0);"
        "print(lrpilot.__file__, env.step(env.action_space.sample())[2])"
    )
    assert run(site, program) == f"{site / 'lrpilot' / '__init__.py'} False"


@pytest.mark.slow
def test_the_policies_and_every_module_are_in_the_wheel(site: Path) -> None:
    for link in ("tasks", "envs", "agents", "evaluation", "conf"):
        kept = {
            path.relative_to(ROOT)
            for path in (ROOT / link).rglob("*")
            if path.suffix in (".py", ".yaml", ".html", ".css", ".js")
        }
        assert kept
        assert not [path for path in kept if not (site / "lrpilot" / path).is_file()]
    assert run(site, "from lrpilot import Policy; print(Policy.load('cifar').card['task'])")

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESEARCH = (
    "gymnasium",
    "stable_baselines3",
    "hydra",
    "omegaconf",
    "wandb",
    "tensorboard",
    "sklearn",
    "matplotlib",
    "pandas",
    "transformers",
    "accelerate",
    "lightning",
    "lrpilot.tasks",
    "lrpilot.envs",
    "lrpilot.agents",
    "lrpilot.evaluation",
)
# those of torch itself, or of an object that the user brings
INTEGRATIONS = [f"lrpilot.integrations.{name}" for name in ("distributed", "amp", "tracking")]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["lrpilot", *INTEGRATIONS])
def test_an_import_pulls_in_nothing_of_the_research_stack(module: str) -> None:
    program = f"import sys, {module}; print([n for n in {RESEARCH!r} if n in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    import lrpilot

    assert [name for name in lrpilot.__all__ if not hasattr(lrpilot, name)] == []

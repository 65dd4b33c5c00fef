import subprocess
import sys
from pathlib import Path

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
    "tasks",
    "envs",
    "agents",
    "evaluation",
)


def test_importing_lrpilot_pulls_in_nothing_of_the_research_stack() -> None:
    program = f"import sys, lrpilot; print([n for n in {RESEARCH!r} if n in sys.modules])"
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

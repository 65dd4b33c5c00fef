"""Every agent's configuration builds an agent that trains, and exports a policy."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lrpilot import ControlSettings, Policy
from lrpilot.agents import train

CONF = Path(__file__).resolve().parents[2] / "conf"
AGENTS = sorted(path.stem for path in (CONF / "agent").glob("*.yaml"))


def composed(agent: Any) -> Any:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("train_agent", [f"agent={agent}", "task=quadratic", "env.runner=looped"])


@pytest.mark.parametrize("agent", AGENTS)
def test_a_rollout_is_whole_episodes(agent: Any) -> None:
    cfg = composed(agent)
    steps = cfg.agent.algorithm.get("n_steps") or cfg.agent.algorithm.train_freq
    assert steps % (ControlSettings().num_decisions - 1) == 0


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_it_trains_and_exports(agent: Any, tmp_path: Path) -> None:
    cfg = composed(agent)
    if agent == "sac":
        cfg.agent.algorithm.update(learning_starts=0, gradient_steps=2)
    summary = train(
        "quadratic",
        algorithm=instantiate(cfg.agent.algorithm, _convert_="all"),
        total_steps=464,
        num_envs=cfg.agent.num_envs,
        runner="looped",
        run_dir=tmp_path,
        show_progress=False,
    )
    assert Policy.load(tmp_path).fingerprint == summary["policy_fingerprint"]

"""What `imitate.py` leaves, and that an agent can go on from there as it says."""

import shlex
from pathlib import Path

import pytest

from lrpilot import Policy
from tests.programs import run_scripts

SMALL = [
    *("num_threads=1", "show_progress=false", "task.total_steps=40", "env.horizon_factors=[0.8,1]"),
    *("task.num_setups=1", "task.calibrate=false", "experts.num_batches=1", "experts.batch_size=4"),
    *("imitation.num_runs=8", "imitation.num_rounds=2", "imitation.updates_per_round=5"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [["lstm_units=8", "num_members=2"], ["lstm_units=0", "hidden_sizes=[8,4]"]]
)
def test_the_command_that_is_named_next_trains_an_agent_from_there(
    tmp_path: Path, sizes: list[str]
) -> None:
    arguments = [*SMALL, *(f"imitation.{size}" for size in sizes)]
    ((code, out, err),) = run_scripts([["imitate.py", *arguments, "hydra.run.dir=im"]], tmp_path)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "im").glob("*.*")} >= {
        *("experts.csv", "metrics.csv", "policy.safetensors", "config.yaml")
    }
    (line,) = [line for line in out.splitlines() if line.startswith("next")]
    _, script, *given = shlex.split(line.removeprefix("next"))
    more = ["agent.num_envs=8", "agent.total_steps=8", "agent.algorithm.n_steps=4", "num_threads=1"]
    small = ["agent.algorithm.batch_size=32", "show_progress=false", "hydra.run.dir=agent"]
    command = [Path(script).name, *given, *more, *small]
    ((code, _, err),) = run_scripts([command], tmp_path)
    assert code == 0, err
    started = Policy.load(tmp_path / "im")
    refined = Policy.load(tmp_path / "agent")
    assert refined.card["init_from_fingerprint"] == started.fingerprint
    assert refined.clock == started.clock  # the same trainings, of the same lengths
    assert {o for o in SMALL if o.startswith(("task", "env"))} <= set(given)
    assert [w.shape for w, _ in refined.layers] == [w.shape for w, _ in started.layers]


@pytest.mark.slow
def test_an_imitation_learns_from_what_others_noted(tmp_path: Path) -> None:
    first = ["imitate.py", *SMALL, "hydra.run.dir=first"]
    second = ["imitate.py", *SMALL, "seed=1", "hydra.run.dir=second"]
    given = ["rollouts_from=[first]", "experts.path=first/experts.csv"]
    for command in (first, [*second, *given]):
        ((code, _, err),) = run_scripts([command], tmp_path)
        assert code == 0, err
    cards = [Policy.load(tmp_path / name).card for name in ("first", "second")]
    earlier = [card["num_earlier_env_steps"] for card in cards]
    assert earlier == [0, cards[0]["num_env_steps"]]

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch.optim import SGD, AdamW

from lrpilot import Policy
from lrpilot.evaluation.experiments.optimizer_pairs import compare_pairs, moving_mean
from lrpilot.evaluation.experiments.pair_claims import TaskOutcome, claims_of
from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds, tuning_seeds
from lrpilot.evaluation.runs.store import read_results
from lrpilot.evaluation.statistics import best_factor, select
from lrpilot.tasks.images.task import ImageTask

FACTORS = [0.1, 1.0]
OPTIMIZERS: dict[str, Any] = {
    "sgd": {"optimizer": SGD, "base_lr": 0.1},
    "adamw": {"optimizer": AdamW, "base_lr": 0.01},
}


def no_bar(iterable: Any, **_: Any) -> Any:
    return iterable


def compare(policy: Policy, folder: Path, **changes: Any) -> None:
    task = ImageTask(
        name="digits", data="digits", optimizer=SGD, base_lr=0.1, total_steps=20, batch_size=16
    )
    arguments: dict[str, Any] = {
        "tasks": {"digits": task},
        "optimizers": OPTIMIZERS,
        "schedulers": {"constant": schedules.constant, "cosine": schedules.cosine},
        "target_scheduler": "cosine",
        "initial_lr_factors": FACTORS,
        "num_tuning": 1,
        "num_seeds": 2,
        "policy": policy,
        "output": Output(folder, "machine of this test", no_bar),
        "only": None,
    }
    compare_pairs(**{**arguments, **changes})


@pytest.fixture(scope="module")
def folder(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    compare(policy, folder)
    return folder


@pytest.mark.slow
def test_the_grid_trains_on_tuning_seeds_and_its_choices_on_unseen_ones(folder: Path) -> None:
    rows = [result.row for result in read_results(folder / "runs.parquet")]
    grid, unseen = select(rows, part="tuning"), select(rows, part="report")
    assert len(grid) == 5 * 2
    assert {row["seed"] for row in grid} == {*tuning_seeds(1)}
    assert {row["seed"] for row in unseen} == {*evaluation_seeds(2)}
    for name in ("sgd + constant", "sgd + cosine", "adamw + constant", "adamw + cosine"):
        tuned = best_factor(select(grid, scheduler=name))
        assert {row["initial_lr_factor"] for row in select(unseen, scheduler=name)} == {tuned}
    mine = select(unseen, scheduler="policy")
    assert sorted({row["initial_lr_factor"] for row in mine}) == FACTORS


@pytest.mark.slow
def test_pairs_multiply_the_learning_rate_of_their_own_optimizer(folder: Path) -> None:
    rows = [result.row for result in read_results(folder / "runs.parquet")]
    for name, arguments in OPTIMIZERS.items():
        mine = select(rows, scheduler=f"{name} + cosine", part="tuning")
        expected = [arguments["base_lr"] * factor for factor in FACTORS]
        assert [row["initial_lr"] for row in mine] == pytest.approx(expected)


@pytest.mark.slow
def test_the_table_names_the_choice_of_the_grid_and_every_pair(folder: Path) -> None:
    text = (folder / "table.md").read_text()
    claims, summary, table = text.split("\n\n")[1:]
    assert [line.split("|")[1].strip() for line in claims.splitlines()[2:]] == [
        "better than all pairs of optimizer and scheduler",
        "worth more than a search",
        "does not diverge",
    ]
    assert summary.splitlines()[2].split("|")[2].strip() in {
        line.split("|")[1].strip() for line in table.splitlines()[3:]
    }
    assert len(table.splitlines()) == 2 + 5
    assert (folder / "grid_search.png").stat().st_size > 5000


def test_claims_count_the_tasks_on_which_they_hold() -> None:
    good = TaskOutcome(0.4, 0.5, [0.6, 0.7], worth=9.0, num_diverged=0, num_runs=20)
    bad = TaskOutcome(0.5, 0.7, [0.6, 0.4], worth=math.inf, num_diverged=1, num_runs=20)
    beats, worth, stable = claims_of([good, bad])
    assert beats[2:] == ("tuned, on 1 of 2 tasks", "untuned, on 1 of 2 tasks", "does not hold on 1")
    assert worth.fair == "one run equals 9, over 64 runs of the grid"
    assert worth.verdict == "one run is worth 9 at least"
    # the exact interval of 1 in 40 ends where so few or fewer have a probability of 2.5 %
    high = float(stable.fair.split("at most ")[1].rstrip("%")) / 100
    assert binom.cdf(1, 40, high) == pytest.approx(0.025, rel=0.02)
    assert stable.verdict == "does not hold"
    assert claims_of([good])[0].verdict == claims_of([good])[2].verdict == "holds"


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.integers(0, 20))
def test_a_moving_mean_is_that_of_its_window(losses: list[float], missing: int) -> None:
    total_steps = len(losses) + missing
    means = moving_mean(losses, total_steps)
    window = max(1, round(0.05 * total_steps))
    assert len(means) == total_steps
    for t, mean in enumerate(means):
        if window - 1 <= t < len(losses):
            expected = sum(losses[t - window + 1 : t + 1]) / window
            assert mean == pytest.approx(expected, abs=1e-9)
        else:
            assert mean == math.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_scheduler": "wsd"}, "`target_scheduler` must be among the schedulers"),
        ({"only": ["cnn"]}, "`only` must be among the tasks"),
    ],
)
def test_names_of_nothing_are_refused(
    policy: Policy, tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(policy, tmp_path, **changes)

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from lrpilot import Policy
from lrpilot.evaluation.experiments.networks import (
    compare_schedulers,
    median_losses,
    tuned_losses,
    verdict,
)
from lrpilot.evaluation.methods import schedules
from lrpilot.evaluation.runs.output import Output
from lrpilot.evaluation.runs.seeds import evaluation_seeds, tuning_seeds
from lrpilot.tasks.quadratic import QuadraticTask

FACTORS = [0.1, 1.0]


def no_bar(iterable: Any, **_: Any) -> Any:
    return iterable


@pytest.fixture(scope="module")
def out_dir(task: QuadraticTask, policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("compared")
    compare_schedulers(
        task=task,
        schedulers={name: getattr(schedules, name) for name in ("constant", "cosine")},
        initial_lr_factors=FACTORS,
        num_tuning=1,
        num_seeds=2,
        num_replay=1,
        policy=policy,
        output=Output(out_dir, "machine of this test", no_bar),
    )
    return out_dir


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_method_is_run_at_every_initial_lr_on_every_seed(out_dir: Path) -> None:
    rows = rows_of(out_dir / "runs.csv")
    assert len(rows) == 8 * len(FACTORS) * 2
    assert len({(r["scheduler"], r["initial_lr_factor"], r["seed"]) for r in rows}) == len(rows)


def test_tuning_and_reporting_share_no_seed(out_dir: Path) -> None:
    seeds = [
        {int(row["seed"]) for row in rows_of(out_dir / name)} for name in ("tuning.csv", "runs.csv")
    ]
    assert seeds == [{*tuning_seeds(1)}, {*evaluation_seeds(2)}]
    assert seeds[0].isdisjoint(seeds[1])


def test_table_names_origin_placebos_and_verdict(out_dir: Path) -> None:
    text = (out_dir / "table.md").read_text()
    for part in ("machine of this test", "placebo: replay", "policy minus", "median"):
        assert part in text


def test_figure_is_written(out_dir: Path) -> None:
    assert (out_dir / "curves.png").read_bytes().startswith(b"\x89PNG")


def row(scheduler: str, factor: float, seed: int, loss: float) -> dict[str, Any]:
    return {
        "scheduler": scheduler,
        "initial_lr_factor": factor,
        "seed": seed,
        "held_out_loss": loss,
    }


TUNING = [
    row("policy", 0.1, 0, 1.0),
    row("policy", 1.0, 0, 2.0),
    row("cosine", 0.1, 0, 2.0),
    row("cosine", 1.0, 0, 1.0),
]
ROWS = [
    row("policy", 0.1, 1, 0.5),
    row("policy", 1.0, 1, 0.4),
    row("policy", 0.1, 2, 0.6),
    row("policy", 1.0, 2, 0.4),
    row("cosine", 0.1, 1, math.inf),
    row("cosine", 1.0, 1, 0.7),
    row("cosine", 0.1, 2, math.inf),
    row("cosine", 1.0, 2, 0.9),
]


def test_initial_lr_is_the_tuning_seeds_choice() -> None:
    assert tuned_losses(ROWS, TUNING, "policy") == [0.5, 0.6]


def test_median_is_taken_over_initial_lrs_for_each_seed() -> None:
    assert median_losses(ROWS, "policy") == [pytest.approx(0.45), pytest.approx(0.5)]


def test_verdict_is_paired_by_seed() -> None:
    rows = [{**r, "seed": 2 * i + r["seed"]} for i in range(3) for r in ROWS]
    text = verdict(rows, TUNING)
    assert "tuned: policy minus cosine: -0.2500 [-0.2833, -0.2167], lower" in text


def test_no_verdict_is_passed_on_fewer_than_five_seeds() -> None:
    line = "tuned: policy minus cosine: -0.2500 (-0.3000 to -0.2000), lower on 2 of 2 seeds"
    assert f"{line}: too few for a verdict" in verdict(ROWS, TUNING)


def test_quick_version_says_so_in_its_table_and_passes_no_verdict(
    task: QuadraticTask, policy: Policy, tmp_path: Path
) -> None:
    compare_schedulers(
        task=task,
        schedulers={"cosine": schedules.cosine},
        initial_lr_factors=[1.0],
        num_tuning=1,
        num_seeds=1,
        num_replay=1,
        policy=policy,
        output=Output(tmp_path, "machine of this test", no_bar, is_quick=True),
    )
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("quick: shows that everything runs, means nothing\n")
    assert "policy minus" not in text


def test_verdict_counts_seeds_where_a_rival_diverged() -> None:
    assert "minus cosine: lower on 2 of 2 seeds; a run diverged" in verdict(ROWS, TUNING)


def test_verdict_on_one_seed_claims_no_interval() -> None:
    one = [r for r in ROWS if r["seed"] == 1]
    assert "tuned: policy minus cosine: -0.2000 on one seed" in verdict(one, TUNING)

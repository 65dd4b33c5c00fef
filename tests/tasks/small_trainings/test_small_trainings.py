from functools import partial

import pytest

from lrpilot.tasks.small_trainings.task import SmallTrainingTask
from tests.running import check_batched_runs

FAMILIES = ("mlp", "cnn", "transformer", "rnn")
SEEDS = list(range(12))
make_task = partial(
    SmallTrainingTask,
    name="small_trainings",
    base_lr=0.1,
    total_steps=40,
    num_setups=6,
    num_privileged=32,
    dtype="float64",
)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_runs_equal_single_runs(family: str) -> None:
    check_batched_runs(make_task(families=(family,)), SEEDS, num_steps=50)

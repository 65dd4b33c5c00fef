"""What benchmarks do on a GPU, on a CPU: that it runs; no time is asserted."""

import pytest

from benchmarks.fine_tuning import PROBLEMS, fine_tune, schedulers
from benchmarks.network_batch import Case, gpu_cases, measure
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.images.task import ImageTask

CASES = gpu_cases(device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case_for_a_gpu_runs_on_a_cpu(case: Case) -> None:
    assert isinstance(case.task, ImageTask)
    try:
        case.task.load()
    except DataError:
        pytest.skip("needs the CIFAR-10 files: set LRPILOT_DATA")
    measured = measure(case._replace(num_runs=2), num_turns=1)
    assert measured.batched > 0.0
    assert measured.num_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["small_networks", "cifar"])
def test_a_fine_tuning_with_max_factor_1_never_exceeds_its_learning_rate(policy: str) -> None:
    problem = PROBLEMS["digits"]
    made = schedulers([policy], [1.0])
    unbounded = fine_tune(problem, 0, 1e-5, made[policy])
    bounded = fine_tune(problem, 0, 1e-5, made[f"{policy}, max_factor=1"])
    assert bounded.peak <= 1.0 < 10.0 < unbounded.peak
    assert unbounded.old < bounded.old

"""What benchmarks do on a GPU, on a CPU: that it runs; no time is asserted."""

import pytest

from benchmarks.network_batch import Case, gpu_cases, measure
from tasks.files import DataError

CASES = gpu_cases(device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case_for_a_gpu_runs_on_a_cpu(case: Case) -> None:
    try:
        case.task.load()
    except DataError:
        pytest.skip("needs the CIFAR-10 files: set LRPILOT_DATA")
    measured = measure(case._replace(num_runs=2), num_turns=1)
    assert measured.batched > 0.0
    assert measured.num_bytes == 0

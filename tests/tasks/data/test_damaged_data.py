"""Two hundred damaged data files."""

import os

import pytest

from tests.damaged_data import NUM_CASES, measure


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_no_damaged_data_is_believed_or_executed_or_ends_in_a_traceback() -> None:
    cases = measure(NUM_CASES)
    assert len(cases) == 200
    assert {case["outcome"].split(":")[0] for case in cases} == {"refused", "correct"}
    assert max(case["seconds"] for case in cases) < 10.0
    assert max(case["megabytes"] for case in cases) < 100.0

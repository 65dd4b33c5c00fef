"""A few of the hostile files of `tests/hostile_files.py`, which tries 1,400."""

import pytest

from tests.hostile_files import GOOD, KINDS, run_case


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file_is_refused_by_name_or_says_what_the_whole_one_says(kind: str) -> None:
    cases = [run_case(kind, index) for index in range(1000, 1024)]
    assert {case["damage"] for case in cases} == {d.__name__ for d in KINDS[kind].damages}
    assert [case for case in cases if case["outcome"].split(":")[0] not in GOOD] == []

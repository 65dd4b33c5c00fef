import os
from pathlib import Path

import pytest

from lrpilot import Policy
from lrpilot.files import write_whole
from tests.full_disk import full_disk


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    contents: tuple[str | bytes, ...] = ("first", b"second")
    for content in contents:
        write_whole(tmp_path / "sub" / "file.txt", content)
    assert (tmp_path / "sub" / "file.txt").read_bytes() == b"second"
    assert os.listdir(tmp_path / "sub") == ["file.txt"]


def test_a_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_whole(tmp_path / "file.csv", "µ\r\n1\r\n")
    assert (tmp_path / "file.csv").read_bytes() == "µ\r\n1\r\n".encode()


def test_a_policy_that_cannot_be_written_is_named_and_the_older_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    path.write_text("older")
    with full_disk(), pytest.raises(OSError, match=rf"File too large: '{path}'"):
        Policy.load("cifar").save(path)
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == [path.name]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=str(tmp_path)):
        write_whole(tmp_path / "file" / "inner", "text")

"""Data that may not be read: the reason is said, in the words of the operating system."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.data.files import read_files

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import os
from pathlib import Path
import pooch, requests
from lrpilot.tasks.data.archives import DataError
from lrpilot.tasks.data.files import read_files
# from inside, so that no folder above needs to be opened to everybody
os.chdir({folder!r})
if os.getuid() == 0:
    os.setgid(4711), os.setuid(4711)
try:
    read_files("shakespeare", (Path("data"), Path("cache")))
except DataError as error:
    print(error)
"""
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs permissions")


def read_as_somebody_else(folder: Path) -> str:
    """What is printed when a user without rights of its own reads the text."""
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9"}
    code = CODE.format(folder=str(folder))
    return subprocess.check_output(
        [sys.executable, "-c", code], text=True, env=environment, cwd=ROOT
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text's file in a folder that everybody may enter."""
    tmp_path.chmod(0o755)
    path = tmp_path / "data" / "shakespeare" / "input.txt"
    path.parent.mkdir(parents=True)
    path.write_text("To be")
    return path


@pytest.mark.slow
@POSIX
def test_a_file_without_read_permission_is_named(text: Path, tmp_path: Path) -> None:
    text.chmod(0o000)
    message = read_as_somebody_else(tmp_path)
    assert message == "data/shakespeare/input.txt cannot be read: permission denied\n"


@pytest.mark.slow
@POSIX
def test_a_folder_that_may_not_be_entered_is_not_taken_for_empty(
    text: Path, tmp_path: Path
) -> None:
    text.parent.chmod(0o000)
    message = read_as_somebody_else(tmp_path)
    text.parent.chmod(0o755)
    assert message == "data/shakespeare/input.txt cannot be read: permission denied\n"


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shakespeare" / "input.txt"
    path.mkdir(parents=True)
    with pytest.raises(DataError, match=rf"^{path} must be a file, got a folder$"):
        read_files("shakespeare", (tmp_path, tmp_path / "cache"))


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shakespeare" / "input.txt"
    path.parent.mkdir()
    path.symlink_to(path)
    with pytest.raises(DataError, match=rf"^{path} cannot be read: too many levels"):
        read_files("shakespeare", (tmp_path, tmp_path / "cache"))

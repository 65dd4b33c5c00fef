import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lrpilot.tasks.data import images as data
from lrpilot.tasks.data import shared_tensors
from lrpilot.tasks.data.images import load_image_data
from lrpilot.tasks.data.shared_tensors import one_at_a_time, share_tensors
from tests.full_disk import full_disk

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def path() -> Path:
    return Path(os.environ["LRPILOT_CACHE"]) / "tensors" / "set.safetensors"


class Maker:
    """Makes tensors, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> dict[str, Tensor]:
        self.count += 1
        return {"x": torch.arange(6.0).view(2, 3) + self.count, "y": torch.tensor([1, 2])}


def share_slowly_made(_: int) -> int:
    """How often a process had to make the tensors, making which takes longer than starting."""
    make = Maker()

    def slowly() -> dict[str, Tensor]:
        time.sleep(1.5)
        return make()

    share_tensors(path(), slowly, source="one")
    return make.count


def test_tensors_of_the_file_are_those_that_were_made() -> None:
    expected = {"x": torch.arange(6.0).view(2, 3) + 1.0, "y": torch.tensor([1, 2])}
    make = Maker()
    for _ in range(2):
        found = share_tensors(path(), make, source="one")
        assert set(found) == {"x", "y"}
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert make.count == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_tensors_lie_in_the_mapped_file(cache: Path) -> None:
    tensors = share_tensors(path(), Maker(), source="one")
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith("set.safetensors")]
    assert any(int(low, 16) <= tensors["x"].data_ptr() < int(high, 16) for low, high in ranges)


def test_another_source_replaces_the_file_but_not_the_tensors_in_use() -> None:
    make = Maker()
    first = share_tensors(path(), make, source="one")
    second = share_tensors(path(), make, source="two")
    assert (float(first["x"][0, 0]), float(second["x"][0, 0])) == (1.0, 2.0)


def test_damaged_file_is_replaced(cache: Path) -> None:
    make = Maker()
    share_tensors(path(), make, source="one")
    (cache / "tensors" / "set.safetensors").write_bytes(b"damaged")
    share_tensors(path(), make, source="one")
    share_tensors(path(), make, source="one")
    assert make.count == 2


def test_no_flipped_bit_of_the_file_is_believed() -> None:
    make = Maker()
    first = {key: value.clone() for key, value in share_tensors(path(), make, source="one").items()}
    content = path().read_bytes()
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 1 << place % 8
        path().write_bytes(altered)
        make.count = 0
        found = share_tensors(path(), make, source="one")
        assert set(found) == set(first)
        for key, value in first.items():
            assert torch.equal(found[key], value)
            assert found[key].dtype == value.dtype


def test_a_damaged_file_is_made_anew_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    make = Maker()
    share_tensors(path(), make, source="one")
    content = bytearray(path().read_bytes())
    content[-5] ^= 1
    path().write_bytes(content)
    share_tensors(path(), make, source="one")
    assert make.count == 2
    assert f"{path()} is damaged and is made anew" in caplog.text


def test_a_full_disk_costs_no_data_and_leaves_nothing(cache: Path) -> None:
    with full_disk(100):
        assert share_tensors(path(), Maker(), source="one")["x"][0, 0] == 1.0
    assert [file.name for file in path().parent.iterdir()] == [".set.safetensors.lock"]


def test_an_interrupted_maker_leaves_nothing_half_written() -> None:
    def make() -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share_tensors(path(), make, source="one")
    assert [file.name for file in path().parent.iterdir()] == [".set.safetensors.lock"]
    assert share_tensors(path(), Maker(), source="one")["x"][0, 0] == 1.0


@pytest.mark.slow
def test_what_a_killed_process_left_is_removed_at_the_next_use() -> None:
    code = (
        "import os; from pathlib import Path; from lrpilot.files import write_whole\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        f"write_whole({str(path())!r}, b'half')"
    )
    subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT)
    assert [file.read_bytes() for file in path().parent.iterdir()] == [b"half"]
    for _ in range(2):
        share_tensors(path(), Maker(), source="one")
    assert {file.name for file in path().parent.iterdir()} == {
        "set.safetensors",
        ".set.safetensors.lock",
    }


def test_without_a_source_no_file_is_written(cache: Path) -> None:
    assert share_tensors(path(), Maker(), source=None)["x"][0, 0] == 1.0
    assert not cache.exists()


def test_cache_that_cannot_be_written_costs_no_data(cache: Path) -> None:
    cache.touch()
    assert share_tensors(path(), Maker(), source="one")["x"][0, 0] == 1.0


@pytest.mark.slow
def test_of_processes_that_start_at_once_one_makes_the_file(cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        made = pool.map(share_slowly_made, range(2), chunksize=1)
    assert sorted(made) == [0, 1]


def test_writing_into_a_tensor_leaves_the_file_as_it_was() -> None:
    share_tensors(path(), Maker(), source="one")["x"].zero_()
    assert share_tensors(path(), Maker(), source="one")["x"][0, 0] == 1.0


def test_digits_of_two_sizes_are_two_files(cache: Path) -> None:
    data._load.cache_clear()  # an earlier test may have loaded them into another cache folder
    for num_train in (10, 11):
        load_image_data("digits", num_train=num_train)
    names = {path.name for path in (cache / "tensors").glob("*.safetensors")}
    assert names == {"digits-10.safetensors", "digits-11.safetensors"}


# the lock: what is waited for, and for how long

HOLD = "import fcntl, time; f = open({!r}, 'w'); fcntl.flock(f, 2); print(flush=True); {}"


@pytest.fixture
def _hung(tmp_path: Path) -> Iterator[None]:
    """Another process that holds the lock and does nothing."""
    code = HOLD.format(str(tmp_path / ".file.lock"), "time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_tensors, "SECONDS_BEFORE_NOTICE", 0.1, raising=False)
    monkeypatch.setattr(shared_tensors, "SECONDS_BEFORE_GOING_ON", 0.3, raising=False)


@pytest.mark.usefixtures("_hung", "_impatient")
def test_who_waits_for_a_hung_process_says_so_and_goes_on_without_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = share_tensors(tmp_path / "file", lambda: {"x": torch.ones(2)}, source="one")
    assert made["x"].tolist() == [1.0, 1.0]
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"waiting for another process that makes {tmp_path / 'file'}")
    assert second.startswith(f"{tmp_path / '.file.lock'} has been held for")
    assert not (tmp_path / "file").exists()


@pytest.mark.usefixtures("_impatient")
def test_a_process_that_ends_in_time_is_waited_for(tmp_path: Path) -> None:
    code = HOLD.format(str(tmp_path / ".file.lock"), "time.sleep(0.2)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with one_at_a_time(tmp_path / "file") as may_write:
            assert may_write


def test_a_folder_that_cannot_be_made_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").touch()
    with one_at_a_time(tmp_path / "cache" / "file") as may_write:
        assert not may_write
    assert "going on without the cache folder" in caplog.text

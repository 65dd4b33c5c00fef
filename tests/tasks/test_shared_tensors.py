import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks import data
from tasks.data import load_image_data
from tasks.shared_tensors import share_tensors


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("LRPILOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
        time.sleep(3)
        return make()

    share_tensors("set", slowly, source="one")
    return make.count


def test_tensors_of_the_file_are_those_that_were_made() -> None:
    expected = {"x": torch.arange(6.0).view(2, 3) + 1.0, "y": torch.tensor([1, 2])}
    make = Maker()
    for _ in range(2):
        found = share_tensors("set", make, source="one")
        assert set(found) == {"x", "y"}
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert make.count == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_tensors_lie_in_the_mapped_file(cache: Path) -> None:
    tensors = share_tensors("set", Maker(), source="one")
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith("set.safetensors")]
    assert any(int(low, 16) <= tensors["x"].data_ptr() < int(high, 16) for low, high in ranges)


def test_another_source_replaces_the_file_but_not_the_tensors_in_use() -> None:
    make = Maker()
    first = share_tensors("set", make, source="one")
    second = share_tensors("set", make, source="two")
    assert (first["x"][0, 0], second["x"][0, 0]) == (1.0, 2.0)


def test_damaged_file_is_replaced(cache: Path) -> None:
    make = Maker()
    share_tensors("set", make, source="one")
    (cache / "tensors" / "set.safetensors").write_bytes(b"damaged")
    share_tensors("set", make, source="one")
    share_tensors("set", make, source="one")
    assert make.count == 2


def test_without_a_source_no_file_is_written(cache: Path) -> None:
    assert share_tensors("set", Maker(), source=None)["x"][0, 0] == 1.0
    assert not cache.exists()


def test_cache_that_cannot_be_written_costs_no_data(cache: Path) -> None:
    cache.touch()
    assert share_tensors("set", Maker(), source="one")["x"][0, 0] == 1.0


def test_of_processes_that_start_at_once_one_makes_the_file(cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        made = pool.map(share_slowly_made, range(3), chunksize=1)
    assert sorted(made) == [0, 0, 1]


def test_writing_into_a_tensor_leaves_the_file_as_it_was() -> None:
    share_tensors("set", Maker(), source="one")["x"].zero_()
    assert share_tensors("set", Maker(), source="one")["x"][0, 0] == 1.0


def test_digits_of_two_sizes_are_two_files(cache: Path) -> None:
    data._load.cache_clear()  # an earlier test may have loaded them into another cache folder
    for num_train in (10, 11):
        load_image_data("digits", num_train=num_train)
    names = {path.name for path in (cache / "tensors").glob("*.safetensors")}
    assert names == {"digits-10.safetensors", "digits-11.safetensors"}

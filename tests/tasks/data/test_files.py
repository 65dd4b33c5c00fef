import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from lrpilot.tasks.data import files
from lrpilot.tasks.data.archives import DataError, Official
from tests.full_disk import full_disk

_FILES = {"images": b"1" * 1000, "labels": b"2" * 1000}
_OFFICIAL = {
    file: Official(len(content), (hashlib.md5(content).hexdigest(),))
    for file, content in _FILES.items()
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive of `_FILES`, not yet read."""
    return _write_archive(tmp_path / "set.tar.gz", _FILES)


@pytest.fixture
def unpacked(archive: Path, tmp_path: Path) -> Path:
    """The folder in the cache into which `archive` was verified and unpacked."""
    folder = tmp_path / "cache" / "set"
    files._unpack(archive, _OFFICIAL, folder)
    return folder


def _write_archive(path: Path, contents: dict[str, bytes]) -> Path:
    folder = path.with_suffix(".members")
    folder.mkdir(exist_ok=True)
    with tarfile.open(path, "w:xz" if path.suffix == ".xz" else "w:gz") as tar:
        for file, content in contents.items():
            (folder / file).write_bytes(content)
            tar.add(folder / file, f"set/{file}")
    return path


def _make_unreadable(archive: Path) -> None:
    """Overwrites an archive by zeros, with its size and its modification time kept."""
    stat = archive.stat()
    archive.write_bytes(bytes(stat.st_size))
    os.utime(archive, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_archive_is_unpacked_with_a_record_of_its_source(archive: Path, unpacked: Path) -> None:
    assert {file: (unpacked / file).read_bytes() for file in _FILES} == _FILES
    stat = archive.stat()
    expected = {"path": str(archive), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    assert json.loads((unpacked / "source.json").read_bytes()) == expected


def test_files_come_in_the_order_asked_for_not_in_that_of_the_archive(tmp_path: Path) -> None:
    archive = _write_archive(tmp_path / "set.tar.gz", dict(reversed(_FILES.items())))
    assert list(files._unpack(archive, _OFFICIAL, tmp_path / "cache")) == list(_FILES)


def test_second_load_does_not_read_the_archive(archive: Path, unpacked: Path) -> None:
    # That the load works with an archive of zeros is what tells that the archive is not read.
    _make_unreadable(archive)
    assert files._unpack(archive, _OFFICIAL, unpacked) == _FILES


def test_archive_altered_after_a_good_unpack_is_refused(archive: Path, unpacked: Path) -> None:
    _write_archive(archive, _FILES | {"labels": b"altered"})
    with pytest.raises(DataError, match=f"^{archive} .its member labels. is damaged"):
        files._unpack(archive, _OFFICIAL, unpacked)


def test_archive_truncated_after_a_good_unpack_is_refused_at_equal_modification_time(
    archive: Path, unpacked: Path
) -> None:
    stat = archive.stat()
    os.truncate(archive, 100)
    os.utime(archive, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=f"^{archive} is truncated or damaged"):
        files._unpack(archive, _OFFICIAL, unpacked)


def test_archive_overwritten_after_a_good_unpack_is_refused_at_equal_size(
    archive: Path, unpacked: Path
) -> None:
    mtime_ns = archive.stat().st_mtime_ns
    _make_unreadable(archive)
    os.utime(archive, ns=(mtime_ns, mtime_ns + 1))
    with pytest.raises(DataError, match=f"^{archive} is truncated or damaged"):
        files._unpack(archive, _OFFICIAL, unpacked)


@pytest.mark.parametrize("name", ["set.tar.gz", "set.tar.xz"])
def test_archive_that_lacks_only_its_last_byte_is_refused(name: str, tmp_path: Path) -> None:
    archive = _write_archive(tmp_path / name, _FILES)
    os.truncate(archive, archive.stat().st_size - 1)
    with pytest.raises(DataError, match=f"^{archive} is truncated .*: expected a readable end"):
        files._unpack(archive, _OFFICIAL, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_archive_at_another_path_is_read(archive: Path, unpacked: Path) -> None:
    _make_unreadable(archive)
    moved = archive.rename(archive.with_name("moved.tar.gz"))
    with pytest.raises(DataError, match=f"^{moved} is truncated or damaged"):
        files._unpack(moved, _OFFICIAL, unpacked)


@pytest.mark.parametrize("file", ["images", "source.json"])
def test_archive_is_read_again_when_the_cache_lacks_a_file(
    file: str, archive: Path, unpacked: Path
) -> None:
    (unpacked / file).unlink()
    assert files._unpack(archive, _OFFICIAL, unpacked) == _FILES
    assert (unpacked / file).exists()


def test_altered_copy_of_an_archive_is_made_anew(
    archive: Path, unpacked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (unpacked / "labels").write_bytes(b"altered")
    assert files._unpack(archive, _OFFICIAL, unpacked) == _FILES
    assert (unpacked / "labels").read_bytes() == _FILES["labels"]
    assert f"{unpacked / 'labels'} is damaged" in caplog.text


def test_files_are_kept_in_memory_where_the_cache_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_bytes(b"a file, not a folder")
    assert files._store({"a": b"1"}, tmp_path / "cache" / "set") == {"a": b"1"}
    assert "going on without the cache folder" in caplog.text


def test_a_full_disk_costs_no_data_and_leaves_no_half_file(archive: Path, tmp_path: Path) -> None:
    with full_disk(500):
        assert files._unpack(archive, _OFFICIAL, tmp_path / "cache") == _FILES
    assert os.listdir(tmp_path / "cache") == []

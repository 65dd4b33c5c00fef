"""Archives that are not in order: a sentence each, and nothing is unpacked without measure."""

import gzip
import hashlib
import io
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from lrpilot.tasks.data.archives import DataError, Official, read_archive

CONTENT = b"1" * 1000
OFFICIAL = {"images": Official(1000, (hashlib.md5(CONTENT).hexdigest(),))}


def member(name: str, content: bytes = b"", **attributes: Any) -> bytes:
    """A member's header and content, as they lie in an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def write(path: Path, *members: bytes) -> Path:
    path.write_bytes(gzip.compress(b"".join(members) + bytes(1024)))
    return path


def test_an_archive_in_order_is_read(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar.gz", member("readme"), member("set/images", CONTENT))
    assert read_archive(archive, OFFICIAL) == {"images": CONTENT}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("target", ["set/images", "/etc/passwd", "elsewhere"])
def test_a_link_in_the_place_of_a_file_is_refused(kind: bytes, target: str, tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar.gz", member("set/images", type=kind, linkname=target))
    with pytest.raises(DataError, match=r"member images\) is damaged: expected a file, got a link"):
        read_archive(archive, OFFICIAL)


def test_a_path_that_leads_out_of_the_archive_is_only_a_name(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar.gz", member("../../images", CONTENT))
    assert read_archive(archive, OFFICIAL) == {"images": CONTENT}
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("name", ["images", "other"])
def test_a_small_archive_of_many_zeros_is_refused_before_it_is_unpacked(
    name: str, tmp_path: Path
) -> None:
    archive = write(tmp_path / "a.tar.gz", member(name, bytes(512 << 16)))
    assert archive.stat().st_size < 40_000
    tracemalloc.start()
    with pytest.raises(DataError, match="it holds more than its files"):
        read_archive(archive, OFFICIAL)
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()


def test_zeros_without_end_behind_the_members_are_refused(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar.gz", member("images", CONTENT), bytes(512 << 16))
    with pytest.raises(DataError, match="it holds more than its files"):
        read_archive(archive, OFFICIAL)


def test_a_member_larger_than_the_official_one_is_not_read(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar.gz", member("images", CONTENT * 2))
    with pytest.raises(DataError, match=r"images\) is damaged: expected at most 1000 bytes, got 2"):
        read_archive(archive, OFFICIAL)


def test_members_without_end_are_refused(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar.gz", *[member("x")] * 200, member("images", CONTENT))
    with pytest.raises(DataError, match="it holds more than its files"):
        read_archive(archive, OFFICIAL)


def test_a_negative_size_is_refused(tmp_path: Path) -> None:
    header = member("images", size=-512)
    with pytest.raises(DataError, match="truncated or damaged"):
        read_archive(write(tmp_path / "a.tar.gz", header), OFFICIAL)


def test_what_is_no_archive_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"<html>404 Not Found</html>")
    message = r"truncated or damaged \(ValueError: it is compressed neither by gzip nor by xz\)"
    with pytest.raises(DataError, match=message):
        read_archive(tmp_path / "a.tar.gz", OFFICIAL)


def test_an_archive_that_ends_within_a_member_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO(member("images", CONTENT)[:800])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(buffer.getvalue()))
    with pytest.raises(DataError, match="ReadError: unexpected end of data"):
        read_archive(tmp_path / "a.tar.gz", OFFICIAL)

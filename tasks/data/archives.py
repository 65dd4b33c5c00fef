"""Files and archives of files, whose contents are checked before they are believed."""

import gzip
import hashlib
import io
import lzma
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

# what an archive may hold beside the files that it is read for
_OTHER_BYTES = 4 << 20
_OTHER_MEMBERS = 100
_CHUNK = 1 << 20
_ALGORITHMS = {32: "MD5", 64: "SHA-256"}
_CURE = "delete the file or replace it by the official one"


class DataError(RuntimeError):
    """Files of a data set are missing, damaged, unreadable or not the official ones."""


@dataclass(frozen=True)
class Official:
    """What is known of an official file.

    Attributes:
        max_bytes: its size, or a bound of it; a larger one is not read.
        digests: hexadecimal MD5 or SHA-256 of the file, or of each of its editions.
    """

    max_bytes: int
    digests: tuple[str, ...]

    @property
    def named_digest(self) -> str:
        """The digest as errors name it."""
        return f"{_ALGORITHMS[len(self.digests[0])]} {' or '.join(self.digests)}"


def read_file(path: Path, official: Official) -> bytes:
    """The content of a file, if it is the official one.

    Raises:
        DataError: if it is not, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(official.max_bytes + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    return _checked(content, official, str(path))


def read_archive(archive: Path, members: dict[str, Official]) -> dict[str, bytes]:
    """The contents of the members with these file names, in this order, wherever they lie.

    Nothing is written. A member is read if it is a regular file of the right size, and handed on
    if its digest is right. The archive is not unpacked further than to the size of these members
    and 4 MiB.

    Args:
        archive: a tar file, compressed by gzip or xz.
        members: what is expected.

    Raises:
        DataError: if anything is wrong with the archive, or it cannot be read.
    """
    files: dict[str, bytes] = {}
    problem = ""
    try:
        with archive.open("rb") as file, _decompressed(file) as stream:
            num_bytes = sum(official.max_bytes for official in members.values()) + _OTHER_BYTES
            _read_members(_LimitedStream(stream, num_bytes), members, archive, files)
    except DataError:
        raise
    except PermissionError as error:
        raise unreadable(archive, error) from error
    # What is wrong with a damaged archive has many names: those of gzip, zlib, lzma and tar.
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    missing = [f"{name} with {members[name].named_digest}" for name in members if name not in files]
    if missing or problem:
        expected = missing[0] if missing else "a readable end"
        with archive.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        raise DataError(
            f"{archive} is truncated or damaged ({problem or 'it ends early'}): expected "
            f"{expected}, got an archive with MD5 {md5} without it; {_CURE}"
        )
    return {name: files[name] for name in members}


def unreadable(path: Path, error: OSError) -> DataError:
    """The error that says why a file cannot be read, such as for a lack of permission."""
    return DataError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}")


def _decompressed(file: IO[bytes]) -> IO[bytes]:
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if start == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(file)
    raise ValueError("it is compressed neither by gzip nor by xz")


class _LimitedStream(io.RawIOBase):
    """A stream that is refused once more than so many bytes of it have been read."""

    def __init__(self, stream: IO[bytes], num_bytes: int) -> None:
        self._stream = stream
        self.num_left = num_bytes

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self.num_left -= len(content)
        if self.num_left < 0:
            raise ValueError("it holds more than its files")
        return content


def _read_members(
    stream: _LimitedStream, members: dict[str, Official], archive: Path, files: dict[str, bytes]
) -> None:
    """One pass over the members, and to the end of the stream, whose checksum lies there."""
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for num_before, member in enumerate(tar):
            is_refused = num_before > len(members) + _OTHER_MEMBERS
            if is_refused or not 0 <= member.size <= stream.num_left:
                raise ValueError("it holds more than its files")
            name = PurePosixPath(member.name).name
            if name in members:
                source = f"{archive} (its member {name})"
                file = tar.extractfile(member) if member.isreg() else None
                if file is None:
                    raise DataError(f"{source} is damaged: expected a file, got a link or a folder")
                most = members[name].max_bytes
                if member.size > most:
                    raise _damaged(source, f"at most {most} bytes", f"{member.size}")
                files[name] = _checked(file.read(), members[name], source)
    while stream.read(_CHUNK):
        pass


def _checked(content: bytes, official: Official, source: str) -> bytes:
    if len(content) > official.max_bytes:
        raise _damaged(source, f"at most {official.max_bytes} bytes", "more")
    algorithm = _ALGORITHMS[len(official.digests[0])].replace("-", "").lower()
    received = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if received not in official.digests:
        raise _damaged(source, official.named_digest, received)
    return content


def _damaged(source: str, expected: str, received: str) -> DataError:
    return DataError(f"{source} is damaged: expected {expected}, got {received}; {_CURE}")

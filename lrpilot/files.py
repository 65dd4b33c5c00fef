"""Files that are written whole or not at all."""

import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_HOST = re.sub(r"\W", "", socket.gethostname()) or "host"
# names in which the process is not named are those of earlier versions
_TEMPORARY = re.compile(r"\..+?(?:\.(?P<host>\w+)\.(?P<pid>\d+))?\.[0-9a-f]{16}")
_SECONDS_PER_DAY = 24 * 3600


def write_whole(
    path: str | os.PathLike[str], content: bytes | str, *, previous: Path | None = None
) -> None:
    """Write or replace a file, with its folder, completely or not at all.

    Args:
        path: the file.
        content: what it will hold; a text is written as UTF-8, as it is.
        previous: where the file that is replaced is kept, in the same folder. The new one is on
            the disk before that, so that at every moment, a power cut included, one of the two
            is whole; between the two renames there is the previous one alone.

    Raises:
        OSError: if that fails, as it does in a full or read-only folder; it names the file.
    """
    path = Path(path)
    # A name of its own for each process; the last rename wins.
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{secrets.token_hex(8)}")
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                if previous is not None:
                    file.flush()
                    os.fsync(file.fileno())
            if previous is not None and path.exists():
                path.replace(previous)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def append(path: str | os.PathLike[str], text: str) -> None:
    """Add a text to a file, as it is.

    Raises:
        OSError: if that fails; it names the file, which may hold a part of the text.
    """
    with _named(path), open(path, "a", encoding="utf-8", newline="") as file:
        file.write(text)


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in the errors of a full disk, too, which come without a name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed calls of `write_whole` left in a folder.

    Of this machine's processes that are gone, and of any process after a day.
    """
    with suppress(OSError):  # there is no folder, or it cannot be written
        # a folder may hold ten thousand runs, and is looked through whenever one is added
        for name in os.listdir(folder):
            if name.startswith(".") and (match := _TEMPORARY.fullmatch(name)):
                path = folder / name
                if _is_of_a_gone_process(match) or _is_older_than_a_day(path):
                    path.unlink(missing_ok=True)


def _is_of_a_gone_process(match: re.Match[str]) -> bool:
    # to send signal 0 is to ask, but not on Windows
    if match["host"] != _HOST or os.name != "posix":
        return False
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is somebody else's
        return False
    return False


def _is_older_than_a_day(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _SECONDS_PER_DAY

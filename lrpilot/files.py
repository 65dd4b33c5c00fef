"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write or replace a file, with its folder, completely or not at all.

    Args:
        path: the file.
        content: what it will hold; a text is written as UTF-8, as it is.

    Raises:
        OSError: if that fails, as it does in a full or read-only folder; it names the file.
    """
    path = Path(path)
    # A name of its own for each process; the last rename wins.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


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

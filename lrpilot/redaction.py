"""What of a configuration may leave the machine: no secret, and no folder that tells who ran it."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PASSWORD = re.compile(r"(\w+://[^/\s:@]*):[^/\s@]*@")


def without_password(text: str) -> str:
    """A text in whose URLs passwords are three stars.

    >>> without_password("postgresql://me:secret@host/runs")
    'postgresql://me:***@host/runs'
    """
    return _PASSWORD.sub(r"\1:***@", text)


def without_home(value: Any) -> Any:
    """Plain values in which this user's home folder is "~", as paths are read here, too.

    >>> without_home(["task.data_dir=" + os.path.expanduser("~/data")])
    ['task.data_dir=~/data']
    """
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or home == os.sep:
        return value
    folder = re.compile(rf"{re.escape(home)}(?![\w.-])")
    return _mapped(lambda text: folder.sub("~", without_password(text)), value)


def without_folders(value: Any) -> Any:
    """Plain values in which absolute paths are their last part, and URLs have no password.

    >>> without_folders({"data_dir": "/home/me/data", "init_from": "small_networks"})
    {'data_dir': 'data', 'init_from': 'small_networks'}
    """
    return _mapped(_without_folder, value)


def _without_folder(text: str) -> str:
    is_path = os.path.isabs(os.path.expanduser(text))
    return Path(text).name if is_path else without_password(text)


def _mapped(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(change, item) for item in value]
    return change(value) if isinstance(value, str) else value

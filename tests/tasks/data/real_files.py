"""Where the real files lie, and one that would do harm."""

import os
from pathlib import Path

# before a test takes the variable away; without it there is nothing in this folder
FOLDER = Path(os.environ.get("LRPILOT_DATA") or "no data").absolute()


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)

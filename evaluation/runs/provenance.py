"""Where a number comes from: command, machine, versions and commit."""

import functools
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from lrpilot.version import __version__


def describe_provenance() -> dict[str, str]:
    """Command, processor, threads, versions and commit of this process, for reports.

    The commit is read once, when it is first asked for, as the code is.
    """
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "num_threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lrpilot": __version__,
        "commit": _commit(),
        "command": _command(),
    }


def provenance_line() -> str:
    """`describe_provenance`, but the command, in one line, for the heads of tables."""
    described = describe_provenance()
    del described["command"]
    return ", ".join(f"{key} {value}" for key, value in described.items())


def _command() -> str:
    """The command line, with the last part alone of absolute paths."""
    named = [
        "=".join(Path(part).name if os.path.isabs(part) else part for part in argument.split("="))
        for argument in sys.argv
    ]
    return shlex.join(["python", *named])


@functools.cache
def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).resolve().parents[2]
    try:
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()

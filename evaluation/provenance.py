"""Where a number comes from: machine, versions and commit."""

import functools
import platform
import subprocess
from pathlib import Path

import torch


def describe_provenance() -> dict[str, str]:
    """Processor, threads, versions and commit of this process, for reports.

    The commit is read once, when it is first asked for, as the code is.
    """
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "num_threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def provenance_line() -> str:
    """`describe_provenance` in one line, for the heads of tables."""
    return ", ".join(f"{key} {value}" for key, value in describe_provenance().items())


@functools.cache
def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).resolve().parents[1]
    try:
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()

"""Where a number comes from: command, machine, versions and commit."""

import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from lrpilot.redaction import without_home
from lrpilot.version import __version__

_ROOT = Path(__file__).resolve().parents[2]


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
        "command": _command(*sys.argv),
    }


def provenance_line() -> str:
    """`describe_provenance`, but the command, in one line, for the heads of tables."""
    described = describe_provenance()
    del described["command"]
    return ", ".join(f"{key} {value}" for key, value in described.items())


@functools.cache
def _command(program: str, *arguments: str) -> str:
    """The command line: of absolute paths the last part, and no home folder or password."""
    script = Path(program).resolve()
    named = [
        "=".join(Path(part).name if os.path.isabs(part) else part for part in argument.split("="))
        for argument in arguments
    ]
    shown = script.relative_to(_ROOT) if script.is_relative_to(_ROOT) else script.name
    return shlex.join(["python", str(shown), *map(without_home, named)])


@functools.cache
def _commit() -> str:
    """The commit, and a digest of what is changed since: two dirty trees are not one version."""
    try:
        name = _git("describe", "--always", "--dirty", "--abbrev=12").decode().strip()
        if not name.endswith("-dirty"):
            return name
        return f"{name}-{hashlib.sha256(_git('diff', 'HEAD')).hexdigest()[:8]}"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, check=True).stdout

"""Scripts as their user runs them, several after each other in one process, for speed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# each line of the input is one run: the script and its arguments
DRIVER = """
import contextlib, io, json, runpy, sys, traceback
from hydra.core.global_hydra import GlobalHydra

for line in sys.stdin:
    sys.argv = json.loads(line)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            code = 1
            traceback.print_exc()
    GlobalHydra.instance().clear()
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""
# two rollouts of a second in all
TINY = ["task=quadratic", "task.total_steps=60", "env.runner=looped", "agent.num_envs=2"]
TINY += ["agent.total_steps=58", "agent.algorithm.n_steps=29", "agent.algorithm.batch_size=58"]
TINY += ["show_progress=false", "logger=csv"]


def run_scripts(
    commands: list[list[str]], cwd: Path, *, before: str = "", **environment: str
) -> list[tuple[int, str, str]]:
    """The exit code and both outputs of each command, a list of a script and its arguments.

    Args:
        commands: what to run, in this order.
        cwd: the folder to be in.
        before: Python to run first.
        **environment: variables to set.
    """
    lines = [json.dumps([str(ROOT / "scripts" / name), *more]) for name, *more in commands]
    done = subprocess.run(
        [sys.executable, "-c", before + DRIVER],
        input="\n".join(lines),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LRPILOT_CACHE": str(cwd), **environment},
    )
    answers: list[Any] = [json.loads(line) for line in done.stdout.splitlines()]
    return [(code, out, err) for code, out, err in answers]

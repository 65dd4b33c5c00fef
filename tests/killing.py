"""Kill trainings between their last checkpoint and their results, and resume each of them.

`python -m tests.killing FOLDER NUM` prints how many were killed there, and what became of them.
Every training is a fork of this process, so that it starts at once, and runs `train_agent.py`.
"""

import hashlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

# what the forks need is imported once; torch's optimizers import `_dynamo`
import torch._dynamo

import scripts.train_agent  # noqa: F401
from tests.script_runs import ROOT, TINY

RESULTS = ("agent.zip", "metrics.csv", "policy.safetensors", "summary.json")


def start(run_dir: Path, *arguments: str) -> int:
    """Run the script in a fork; returns its process."""
    process = os.fork()
    if process:
        return process
    log = os.open(f"{run_dir}.log", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.argv = ["train_agent.py", *arguments, f"hydra.run.dir={run_dir}"]
    try:
        runpy.run_path(str(ROOT / "scripts" / "train_agent.py"), run_name="__main__")
    except SystemExit as end:
        print(end, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def digest(run_dir: Path) -> str:
    """Of the policy file, or a text that says that there is none."""
    path = run_dir / "policy.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "none"


def kill_and_resume(folder: Path, name: str, seconds: float) -> tuple[bool, str]:
    """Whether a training was killed before its results were there, and its policy at last."""
    run_dir = folder / name
    process = start(run_dir, *TINY)
    while not (run_dir / "checkpoint.pt").exists():
        assert not os.waitpid(process, os.WNOHANG)[0], f"{name} ended without a checkpoint"
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    if all((run_dir / result).exists() for result in RESULTS):
        return False, digest(run_dir)
    os.waitpid(start(folder / f"{name}-rest", f"resume={run_dir}"), 0)
    return True, digest(folder / f"{name}-rest")


def run(folder: Path, num_kills: int) -> dict[str, int]:
    """Kill so many trainings, at times that cover the writing of the results.

    They are denser at its beginning, since the first training may take longer than the others.
    """
    torch.set_num_threads(1)
    os.waitpid(start(folder / "whole", *TINY), 0)
    written = [(folder / "whole" / n).stat().st_mtime for n in ("checkpoint.pt", "summary.json")]
    results = [
        kill_and_resume(folder, str(i), (i / num_kills) ** 2 * (written[1] - written[0]))
        for i in range(num_kills)
    ]
    logs = [path.read_text() for path in folder.glob("*-rest.log")]
    return {
        "killed_before_results": sum(is_between for is_between, _ in results),
        "other_policies": sum(policy != digest(folder / "whole") for _, policy in results),
        "tracebacks": sum("Traceback" in log for log in logs),
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))))

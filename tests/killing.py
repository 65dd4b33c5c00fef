"""Kill trainings between their last checkpoint and their results, and resume each of them.

`python -m tests.killing FOLDER NUM` prints how many were killed there, and what became of them.
Every training is a fork of this process, so that it starts at once, and runs `train_agent.py`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from benchmarks.kill_and_resume import digest, start
from tests.programs import TINY

RESULTS = ("agent.zip", "metrics.csv", "policy.safetensors", "summary.json")


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

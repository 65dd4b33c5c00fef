"""Kill trainings at random moments with SIGKILL, resume each, and compare the policies.

`python benchmarks/kill_and_resume.py --num-kills 50` prints a row per training. A training is
killed once or, when it has been resumed, again: after each kill with a probability of one half. One
that has no checkpoint yet is started anew, as its user would. Every process is a fork of this one,
so that it starts at once, and runs `train_agent.py`.
"""

import hashlib
import os
import random
import runpy
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# what the forks need is imported once, here and below; torch's optimizers import `_dynamo`
import torch._dynamo  # noqa: F401

from benchmarks.side_by_side import print_origin, read_options
from lrpilot.agents.checkpoint import PREVIOUS_NAME, has_checkpoint
from lrpilot.agents.training import has_results
from lrpilot.evaluation.report import format_table

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train_agent.py"
# eight rollouts, with a checkpoint after each
TRAINING = ["task=quadratic", "task.total_steps=60", "env.runner=looped", "agent.num_envs=2"]
TRAINING += ["agent.total_steps=464", "agent.checkpoint_steps=58", "agent.algorithm.n_steps=29"]
TRAINING += ["agent.algorithm.batch_size=58", "show_progress=false", "logger=csv"]

runpy.run_path(str(SCRIPT), run_name="imported")


class Outcome(NamedTuple):
    """What became of a training that was killed."""

    killed_at: list[str]
    """Seconds after the start of each process, and what it left."""
    policy: str
    """Digest of the policy file at last, "none" without one."""
    has_traceback: bool


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
        runpy.run_path(str(SCRIPT), run_name="__main__")
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


def is_killed(process: int, seconds: float) -> bool:
    """Whether a process was there to be killed after so many seconds."""
    time.sleep(seconds)
    if os.waitpid(process, os.WNOHANG)[0]:
        return False
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def kill_and_resume(root: Path, rng: random.Random, *, seconds: float) -> Outcome:
    """Kill a training at a random moment of the seconds that it takes, and see it through.

    Args:
        root: a folder for its run folders.
        rng: source of the moments.
        seconds: that a whole training takes.
    """
    root.mkdir()
    killed_at: list[str] = []
    run_dirs = [root / "0"]
    process = start(run_dirs[-1], *TRAINING)
    while not killed_at or rng.random() < 0.5:
        moment = rng.uniform(0.0, seconds)
        if not is_killed(process, moment):
            break
        left = "results" if has_results(run_dirs[-1]) else "a checkpoint"
        if not has_checkpoint(run_dirs[-1]):
            left = "nothing"
        elif not (run_dirs[-1] / PREVIOUS_NAME).exists():
            left = left.replace("a checkpoint", "its first checkpoint")
        killed_at.append(f"{moment:.2f} s: {left}")
        if left == "results":
            return _outcome(root, run_dirs[-1], killed_at)
        run_dirs.append(root / str(len(run_dirs)))
        resume = ["resume=true", f"output_root={root}"]
        process = start(run_dirs[-1], *(resume if any(map(has_checkpoint, run_dirs)) else TRAINING))
    else:
        os.waitpid(process, 0)
    return _outcome(root, run_dirs[-1], killed_at)


def _outcome(root: Path, run_dir: Path, killed_at: list[str]) -> Outcome:
    has_traceback = any("Traceback" in path.read_text() for path in root.glob("*.log"))
    return Outcome(killed_at, digest(run_dir), has_traceback)


def main() -> None:
    """Kill so many times, and print what became of each training."""
    options = read_options(__doc__, num_kills=50, seed=0)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "whole"):  # the first one fills caches
            begin = time.monotonic()
            os.waitpid(start(Path(folder) / name, *TRAINING), 0)
            seconds = time.monotonic() - begin
        expected = digest(Path(folder) / "whole")
        print_origin(f"a whole training takes {seconds:.1f} s, seed {options.seed}")
        outcomes: list[Outcome] = []
        while sum(len(outcome.killed_at) for outcome in outcomes) < options.num_kills:
            root = Path(folder) / f"training-{len(outcomes)}"
            outcomes.append(kill_and_resume(root, rng, seconds=seconds))
    rows = [
        [str(i), "; ".join(one.killed_at) or "not", "yes" if one.policy == expected else "NO"]
        for i, one in enumerate(outcomes)
    ]
    print(format_table(["training", "killed at, with what it had left", "same policy"], rows))
    num_same = sum(outcome.policy == expected for outcome in outcomes)
    num_kills = sum(len(outcome.killed_at) for outcome in outcomes)
    num_tracebacks = sum(outcome.has_traceback for outcome in outcomes)
    print(
        f"\n{num_kills} kills of {len(outcomes)} trainings: {num_same} end with the policy of the "
        f"uninterrupted one, bit for bit; {num_tracebacks} show a traceback"
    )
    if num_same < len(outcomes) or num_tracebacks or expected == "none":
        raise SystemExit(1)


if __name__ == "__main__":
    main()

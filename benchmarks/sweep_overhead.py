"""What a sweep costs per job, by launcher: `python benchmarks/sweep_overhead.py`.

Jobs that do nothing are swept, few and many of them: (seconds of many - seconds of few) / (many -
few) is what one more job costs, start of the launcher and its processes apart, times the jobs
that run at once. It includes what the plain script does, too: to compose and to check the
configuration. Wall time is what the bar is for, and other processes make it longer; processor
seconds, which they disturb less, are counted of processes that the sweep waits for: not Ray's.
Every job has to finish or to say why it failed, which every fiftieth does.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import print_origin, read_options
from lrpilot.envs.runners import num_cores
from scripts.sweeps import read_jobs

JOBS = Path(__file__).resolve().parent / "small_jobs.py"
LAUNCHERS = ("basic", "joblib", "ray")
MOST_SECONDS = 1.5
CHILDREN = ("children_user", "children_system")


def sweep(launcher: str, num_jobs: int) -> tuple[float, float]:
    """Seconds of a sweep of jobs that do nothing, on the wall and of processors.

    Raises:
        RuntimeError: if a job has neither finished nor said why it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        seeds = f"seed=range({num_jobs})"
        more = [f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}/sweep", "gpus_per_job=0"]
        start, before = time.perf_counter(), os.times()
        done = subprocess.run(
            [sys.executable, str(JOBS), "-m", seeds, *more], capture_output=True, text=True
        )
        seconds, after = time.perf_counter() - start, os.times()
        jobs = read_jobs(Path(folder) / "sweep")
        good = sum(job.is_done and job.error is None for job in jobs)
        failed = sum(not job.is_done and job.error is not None for job in jobs)
        if (good, failed) != (num_jobs - num_jobs // 50, num_jobs // 50):
            raise RuntimeError(f"{good} finished and {failed} failed of {num_jobs}: {done.stderr}")
    user, system = (getattr(after, n) - getattr(before, n) for n in CHILDREN)
    return seconds, user + system


def main() -> None:
    """Measure and print; the exit code is 1 if a launcher costs too much."""
    options = read_options(__doc__, launchers=list(LAUNCHERS), few=10, many=100, num_rounds=1)
    print_origin(f"whole sweeps on {num_cores()} cores, medians of {options.num_rounds} rounds")
    is_dear = False
    for launcher in options.launchers:
        rounds = [
            (sweep(launcher, options.few), sweep(launcher, options.many))
            for _ in range(options.num_rounds)
        ]
        (few, few_cpu), (many, many_cpu) = (
            [statistics.median(times) for times in zip(*turns, strict=True)]
            for turns in zip(*rounds, strict=True)
        )
        at_once = 1 if launcher == "basic" else num_cores()
        num_more = options.many - options.few
        cost = (many - few) / num_more * at_once
        is_dear |= cost > MOST_SECONDS
        processor = (
            "" if launcher == "ray" else f"{(many_cpu - few_cpu) / num_more:.2f} of processors, "
        )
        print(
            f"{launcher:8} {cost:.2f} seconds per job, {processor}{at_once} at once "
            f"({options.few} jobs in {few:.1f} s, {options.many} in {many:.1f} s)",
            flush=True,
        )
    print(f"bar: {MOST_SECONDS} seconds per job, {'missed' if is_dear else 'met'}")
    raise SystemExit(int(is_dear))


if __name__ == "__main__":
    main()

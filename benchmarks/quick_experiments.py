"""Seconds of every experiment's quick version: `python benchmarks/quick_experiments.py`.

Each is started as a user starts it, one after the other, `--num-workers` at a time within one.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.side_by_side import print_origin, read_options
from lrpilot.evaluation.report import format_table


def main() -> None:
    """Run and print; the exit code is 1 if an experiment failed."""
    names = sorted(path.stem for path in (ROOT / "conf/experiment/quick").glob("*.yaml"))
    options = read_options(__doc__, experiments=names, num_workers=0)
    print_origin(f"wall-clock and processor seconds, num_workers={options.num_workers}")
    lines, failures = [], []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.experiments:
            start, before = time.perf_counter(), os.times()
            command = [sys.executable, str(ROOT / "scripts/reproduce.py")]
            command += [f"experiment=quick/{name}", f"num_workers={options.num_workers}"]
            command += [f"hydra.run.dir={folder}/{name}", "show_progress=false"]
            done = subprocess.run(command, capture_output=True, text=True)
            after = os.times()
            processor = sum(after[2:4]) - sum(before[2:4])
            result = "done"
            if done.returncode != 0:
                result = "failed"
                failures.append(f"{name}: {done.stderr.strip()}")
            lines.append([name, f"{time.perf_counter() - start:.0f}", f"{processor:.0f}", result])
            print(" ".join(lines[-1]), file=sys.stderr, flush=True)
    lines.append(["all", f"{time.perf_counter() - begin:.0f}", "", ""])
    print(format_table(["experiment", "seconds", "processor", "result"], lines))
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()

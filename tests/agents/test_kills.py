import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import ROOT

NUM_KILLS = 6


@pytest.mark.slow
def test_every_run_that_is_killed_between_its_last_checkpoint_and_its_results_ends_bit_identically(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.killing", str(tmp_path), str(NUM_KILLS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(done.stdout)
    assert counts["killed_before_results"] >= NUM_KILLS // 2
    assert (counts["other_policies"], counts["tracebacks"]) == (0, 0)

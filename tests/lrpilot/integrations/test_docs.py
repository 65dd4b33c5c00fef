import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "integrations.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE, re.S | re.M))
LIBRARIES = ("transformers", "lightning", "accelerate", "torch_schedule_anything", "tensorboard")


def test_every_section_has_one_snippet() -> None:
    assert PAGE.count("\n## ") == PAGE.count("```python") == len(SECTIONS) == 8


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_the_snippet_runs(section: str, tmp_path: Path) -> None:
    code = SECTIONS[section]
    for library in LIBRARIES:
        if re.search(rf"^(from|import) {library}\b", code, re.M):
            pytest.importorskip(library)
    (tmp_path / "snippet.py").write_text(code)
    command = [sys.executable, "snippet.py"]
    if "torchrun" in PAGE.split(f"## {section}\n")[1].split("```")[0]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, *launcher, "snippet.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=240)

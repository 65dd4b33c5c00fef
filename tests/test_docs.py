"""What the pages show runs, and the reference has every public name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lrpilot

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SNIPPETS = [
    pytest.param(code, id=f"{name}-{i}")
    for name in ("your_own_loop", "caps")
    for i, code in enumerate(
        re.findall(r"^```python\n(.*?)^```$", (DOCS / f"{name}.md").read_text(), re.S | re.M)
    )
]


def test_the_pages_show_programs() -> None:
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize("code", SNIPPETS)
def test_the_program_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(code, {})


def test_the_reference_has_every_public_name() -> None:
    named = set(re.findall(r"^\.\. auto\w+:: .*\.(\w+)$", (DOCS / "api.md").read_text(), re.M))
    assert set(lrpilot.__all__) - {"__version__"} <= named


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "index.md").read_text()
    trees = " ".join(re.findall(r"```{toctree}\n(.*?)```", index, re.S)).split()
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert pages <= set(trees)


@pytest.mark.slow
def test_the_quickstart_leaves_a_policy_a_figure_and_a_table(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    arguments = ["--agent-steps", "1856", "--num-seeds", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        command + arguments,
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert re.search(r"^\| policy .*\|$", output, re.M)
    for name in ("policy.safetensors", "curves.png", "table.md"):
        assert (tmp_path / "outputs" / "quickstart" / name).is_file()

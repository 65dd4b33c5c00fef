import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lrpilot.policy.actor import Policy
from tests.programs import ROOT, run

PAGE = (ROOT / "docs" / "integrations.md").read_text()
FINE_TUNING = (ROOT / "docs" / "fine_tuning.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE, re.S | re.M))
LIBRARIES = ("transformers", "lightning", "accelerate", "torch_schedule_anything", "tensorboard")

LAST_LINES = """
import os
from pathlib import Path

Path(f"{os.getpid()}.ended").touch()
"""


def test_every_section_has_one_snippet() -> None:
    assert PAGE.count("\n## ") == PAGE.count("```python") == len(SECTIONS) == 9


def test_the_versions_on_the_page_are_those_that_are_tested() -> None:
    tested = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    named = re.findall(r"([a-z]+(?:-[a-z]+)*) (\d+\.\d+\.\d+)", PAGE)
    assert len(named) == 5
    for library, version in named:
        assert tested[library] == version


def test_what_the_page_installs_is_in_a_clone() -> None:
    (line,) = re.findall(r"^pip install .*$", PAGE, re.M)
    assert line == 'pip install -c constraints.txt ".[integrations]"'
    assert "\nintegrations = [" in (ROOT / "pyproject.toml").read_text()


def test_every_loop_that_a_policy_runs_in_shows_one_with_its_horizon() -> None:
    without = [section for section, code in SECTIONS.items() if "total_steps=" not in code]
    assert without == ["Momentum and weight decay, with schedule-anything"]


@pytest.mark.parametrize("name", ["small_networks", "cifar"])
def test_the_box_that_the_page_names_is_the_policies(name: str) -> None:
    action = Policy.load(name).action
    text = " ".join(FINE_TUNING.split())
    assert f"start at {action.start_factor} of it" in text
    assert f"between {action.min_factor} and {action.max_factor:g} times" in text


def test_the_recipe_of_fine_tuning_runs_and_stays_below_its_learning_rate() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", FINE_TUNING, re.S)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    scheduler = namespace["scheduler"]
    assert scheduler.last_epoch == 300
    assert max(decision.new_lr for decision in scheduler.log) <= 3e-4


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_the_snippet_runs(section: str, tmp_path: Path) -> None:
    text = SECTIONS[section]
    for library in LIBRARIES:
        if re.search(rf"^(from|import) {library}\b", text, re.M):
            pytest.importorskip(library)
    snippet = tmp_path / "snippet.py"
    snippet.write_text(text + LAST_LINES)
    if "torchrun" in PAGE.split(f"## {section}\n")[1].split("```")[0]:
        num_processes = 2
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", str(snippet)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, timeout=240, capture_output=True, text=True
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        num_processes = 1
        code, out, err = run(snippet, cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    output = out + err
    # after its last line, torch's threads of gloo can abort an interpreter, with or without us
    assert len(list(tmp_path.glob("*.ended"))) == num_processes, output
    assert code == 0 or num_processes > 1, output
    # the horizon is the loop's, and one that the policy knows
    assert "`total_steps`" not in output

"""What `docs/your_own_task.md` shows runs as it stands there, in a project of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs
from tests.programs import NO_USER_WARNING, ROOT

PAGE = (ROOT / "docs" / "your_own_task.md").read_text()
BLOCKS = re.findall(r"^```(python|yaml|bash)\n(.*?)^```$", PAGE, re.S | re.M)
FILE_NAME = re.compile(r"# (\S+\.(?:py|yaml))\n")
PROGRAMS = [code for kind, code in BLOCKS if kind == "python"]
COMMANDS = [code for kind, code in BLOCKS if kind == "bash"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the page names, outside of this repository."""
    folder = tmp_path_factory.mktemp("project")
    for _, code in BLOCKS:
        if name := FILE_NAME.match(code):
            path = folder / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
    return folder


def run(command: list[str], project: Path) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}.",
        "LRPILOT": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    result = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_page_shows_files_programs_and_commands() -> None:
    names = [name[1] for _, code in BLOCKS if (name := FILE_NAME.match(code))]
    assert names == ["train.py", "my_pkg/tasks.py", "conf/task/equation.yaml"]
    assert (len(PROGRAMS), len(COMMANDS)) == (4, 2)


def test_a_task_from_a_model_takes_under_15_lines() -> None:
    call = PROGRAMS[0].split("task = ")[1].split("run = ")[0]
    assert len(call.splitlines()) < 15


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(PROGRAMS)))
def test_the_program_runs(index: int, project: Path) -> None:
    path = project / f"program_{index}.py"
    path.write_text(PROGRAMS[index])
    code, _, err = programs.run(path, cwd=project, before=NO_USER_WARNING)
    assert code == 0, err


@pytest.mark.slow
def test_an_agent_learns_a_task_of_a_package_without_a_file_of_it(project: Path) -> None:
    output = run(["bash", "-euc", COMMANDS[0]], project)
    assert re.search(r"^task +own$", output, re.M)


@pytest.mark.slow
def test_an_agent_learns_a_task_of_a_config_folder_and_is_compared(project: Path) -> None:
    output = run(["bash", "-euc", COMMANDS[1]], project)
    assert re.search(r"^task +equation$", output, re.M)
    for scheduler in ("policy", "cosine", "greedy"):
        assert re.search(rf"^\| {scheduler} +\|", output, re.M)

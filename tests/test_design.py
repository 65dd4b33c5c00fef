"""The rules of the house: imports flow one way, and the documents say what is so."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("lrpilot", "tasks", "envs", "agents", "evaluation", "scripts", "benchmarks")
MAY_IMPORT = {
    "lrpilot": set(),
    "tasks": {"lrpilot"},
    "envs": {"lrpilot", "tasks"},
    "agents": {"lrpilot"},
    "evaluation": {"lrpilot", "tasks", "envs", "agents"},
    "scripts": {"lrpilot", "tasks", "envs", "agents", "evaluation"},
    "benchmarks": {"lrpilot", "tasks", "envs", "agents", "evaluation"},
}
README = (ROOT / "README.md").read_text()


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from {name.split(".")[0] for name in names} & set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_imports_flow_one_way(part):
    files = list((ROOT / part).rglob("*.py"))
    assert files
    found = {(path.name, name) for path in files for name in imported_parts(path)}
    forbidden = {pair for pair in found if pair[1] not in MAY_IMPORT[part] | {part}}
    assert not forbidden


def test_only_scripts_see_a_dict_config():
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            if part != "scripts":
                assert "omegaconf" not in path.read_text(), path


def private_names_of_others(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            owner = node.value.id if isinstance(node.value, ast.Name) else None
            if owner not in ("self", "cls"):
                yield node.attr


@pytest.mark.parametrize("part", ["agents", "evaluation", "scripts"])
def test_private_names_of_sb3_are_reached_for_in_one_file(part):
    for path in (ROOT / part).rglob("*.py"):
        if path.relative_to(ROOT).as_posix() != "agents/sb3.py":
            assert not list(private_names_of_others(path)), path


@pytest.mark.parametrize("folder", ["scripts", "tests", "conf"])
def test_folders_that_are_no_packages_have_no_init_file(folder):
    assert not list((ROOT / folder).rglob("__init__.py"))


OF_TORCH = re.compile(
    r"\b(_is_initial|_initial_mode|_initial_step|_update_lr|_get_lr_called_within_step"
    r"|_enable_get_lr_call|_schedulers|_milestones|_last_lr|_step_count|_opt_called"
    r"|_wrapped_by_lr_sched)\b"
)


def test_one_file_uses_the_private_names_of_schedulers_of_torch():
    using = {
        path.name for path in (ROOT / "lrpilot").rglob("*.py") if OF_TORCH.search(path.read_text())
    }
    assert using == {"torch_scheduler.py"}


def test_wheel_holds_lrpilot_alone():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'packages = ["lrpilot"]' in text
    assert 'dependencies = ["torch>=2.5", "numpy>=1.26", "safetensors>=0.4"]' in text


def test_readme_shows_code_by_line_25():
    assert "```python" in "\n".join(README.splitlines()[:25])


def test_readme_names_only_paths_that_exist():
    tree = re.search(r"```text\n(.*?)```", README, re.S)
    assert tree
    named = [line.split()[0] for line in tree[1].splitlines() if line and not line[0].isspace()]
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name


def test_readme_figures_exist():
    figures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert figures
    for figure in figures:
        assert (ROOT / figure).is_file()


def test_ci_runs_the_test_line_of_the_readme():
    line = README.split("# install, and run the tests\n")[1].splitlines()[0]
    find = re.search(r"line=\$\((.*)\)", (ROOT / ".ci" / "run").read_text())
    assert find
    found = subprocess.check_output(["bash", "-c", find[1]], cwd=ROOT, text=True).strip()
    assert found == line
    for tool in ("venv", "ruff check", "mypy", "pytest"):
        assert tool in line


def test_contributing_has_at_most_45_lines():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 45


def test_version_is_in_the_changelog():
    version = subprocess.check_output(
        [sys.executable, "-c", "import lrpilot; print(lrpilot.__version__)"], cwd=ROOT, text=True
    ).strip()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()

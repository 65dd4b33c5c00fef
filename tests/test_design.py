"""The rules of the house: imports flow one way, and the documents say what is so."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import stable_baselines3
from packaging.requirements import Requirement
from packaging.version import Version
from torch.optim import lr_scheduler, optimizer

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("lrpilot", "tasks", "envs", "agents", "evaluation", "scripts", "benchmarks", "examples")
# folders of the top level that are linked into the package
LINKED = ("tasks", "envs", "agents", "evaluation", "conf")
MAY_IMPORT = {
    "lrpilot": set(),
    "tasks": {"lrpilot"},
    "envs": {"lrpilot", "tasks"},
    "agents": {"lrpilot", "tasks", "envs"},
    "evaluation": {"lrpilot", "tasks", "envs", "agents"},
    "scripts": {"lrpilot", "tasks", "envs", "agents", "evaluation"},
    "benchmarks": {"lrpilot", "tasks", "envs", "agents", "evaluation", "scripts"},
    "examples": {"lrpilot", "tasks", "envs", "agents", "evaluation"},
}
README = (ROOT / "README.md").read_text()


def files_of(part: str) -> list[Path]:
    """The source files of a part; what is linked into lrpilot/ is a part of its own."""
    return [
        path
        for path in sorted((ROOT / part).rglob("*.py"))
        if not (part == "lrpilot" and path.relative_to(ROOT / part).parts[0] in LINKED)
    ]


@cache
def imported_modules(path: Path) -> list[str]:
    return list(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    """The dotted name under which a source file of the package is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts if parts[0] == "lrpilot" else ("lrpilot", *parts)
    return ".".join(package).removesuffix(".__init__")


def part_of(module: str) -> str | None:
    """The part to which the dotted name of a module of ours belongs, or None."""
    names = module.split(".")
    if names[0] == "lrpilot":
        return names[1] if len(names) > 1 and names[1] in LINKED else "lrpilot"
    return names[0] if names[0] in PARTS else None


@pytest.mark.parametrize("part", PARTS)
def test_imports_flow_one_way(part: str) -> None:
    files = files_of(part)
    assert files
    found = {
        (path.name, other)
        for path in files
        for other in {part_of(name) for name in imported_modules(path)} - {None}
    }
    # `from lrpilot.tasks import x` is an import of the part `tasks`
    forbidden = {pair for pair in found if pair[1] not in MAY_IMPORT[part] | {part}}
    assert not forbidden


@pytest.mark.parametrize("part", LINKED[:4])
def test_a_part_has_one_name(part: str) -> None:
    """`tasks` is imported as `lrpilot.tasks`, everywhere: two names would be two modules."""
    short = {
        (path.name, name)
        for folder in (*PARTS, "tests")
        for path in files_of(folder)
        for name in imported_modules(path)
        if name.split(".")[0] == part
    }
    assert not short


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Nor for types alone: what two modules need of each other is a third."""
    paths = {module_of(path): path for part in ("lrpilot", *LINKED[:4]) for path in files_of(part)}
    imports = {
        name: {other for other in imported_modules(path) if other in paths and other != name}
        for name, path in paths.items()
    }
    assert len(imports["lrpilot.envs.lr_control"]) > 5
    # raises a CycleError that names the circle
    tuple(TopologicalSorter(imports).static_order())


@pytest.mark.parametrize(("folders", "limit"), [(PARTS, 300), (("tests",), 600)])
def test_no_file_is_longer_than_a_reader_bears(folders: tuple[str, ...], limit: int) -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for folder in folders
        for path in files_of(folder)
    }
    assert {name: length for name, length in lengths.items() if length > limit} == {}


def test_no_door_leads_to_more_than_nine_rooms() -> None:
    """A room is a folder that holds Python; a linked one belongs to the top level."""
    rooms = {path.parent for folder in (*PARTS, "tests") for path in files_of(folder)}
    rooms |= {parent for room in rooms for parent in room.parents if parent.is_relative_to(ROOT)}
    doors: dict[Path, int] = {}
    for room in rooms - {ROOT}:
        doors[room.parent] = doors.get(room.parent, 0) + 1
    assert {door: count for door, count in doors.items() if count > 9} == {}


def test_only_scripts_see_a_dict_config() -> None:
    for part in PARTS:
        for path in files_of(part):
            if part != "scripts":
                assert "omegaconf" not in path.read_text(), path


PRIVATE_NAME = r"\bself\.(_[a-z]\w*)"
# the files that know how torch calls a scheduler, and what an SB3 agent has in flight
MAY_KNOW_PRIVATE_NAMES = {"lrpilot/schedulers/torch_scheduler.py", "agents/sb3.py"}


def private_names_of_libraries() -> set[str]:
    """The private attributes of torch's schedulers and optimizers and of SB3."""
    folder = Path(stable_baselines3.__file__).parent / "common"
    files = [Path(lr_scheduler.__file__), Path(optimizer.__file__), *folder.rglob("*.py")]
    return {name for file in files for name in re.findall(PRIVATE_NAME, file.read_text())}


def test_private_names_of_torch_and_sb3_are_used_in_one_file_each() -> None:
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for part in PARTS
        for path in files_of(part)
    }
    others = {name: text for name, text in texts.items() if name not in MAY_KNOW_PRIVATE_NAMES}
    # a name that one of our own classes defines is its own
    ours = set(re.findall(r"\bdef (_[a-z]\w*)", "".join(others.values())))
    ours |= set(re.findall(r"\bself\.(_[a-z]\w*)(?:: [^=\n]+)? = ", "".join(others.values())))
    foreign = private_names_of_libraries() - ours
    found = {
        (name, private)
        for name, text in others.items()
        for private in re.findall(r"\.(_[a-z]\w*)", text)
        if private in foreign
    }
    assert not found


@pytest.mark.parametrize("folder", ["scripts", "tests", "conf"])
def test_folders_that_are_no_packages_have_no_init_file(folder: str) -> None:
    assert not list((ROOT / folder).rglob("__init__.py"))


OF_TORCH = re.compile(
    r"\b(_is_initial|_initial_mode|_initial_step|_update_lr|_get_lr_called_within_step"
    r"|_enable_get_lr_call|_schedulers|_milestones|_last_lr|_step_count|_opt_called"
    r"|_wrapped_by_lr_sched)\b"
)


def test_one_file_uses_the_private_names_of_schedulers_of_torch() -> None:
    using = {path.name for path in files_of("lrpilot") if OF_TORCH.search(path.read_text())}
    assert using == {"torch_scheduler.py"}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_a_training_job_needs_three_packages() -> None:
    needed = {Requirement(line).name for line in PROJECT["project"]["dependencies"]}
    assert needed == {"torch", "numpy", "safetensors"}


# what checks and builds the project, and need not work in its lowest version
TOOLS = {"ruff", "mypy", "hatchling", "sphinx", "myst-parser", "furo"}
TOOLS |= {"nbclient", "nbformat", "ipykernel", "playwright"}


def pins(file: str) -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    lines = PROJECT["project"]["dependencies"] + [line for extra in extras for line in extra]
    return [Requirement(line) for line in lines if not line.startswith("lrpilot")]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_both_ends_of_the_stated_range_are_tested(requirement: Requirement) -> None:
    """CI installs the lowest version that is admitted, and the one of the README's command."""
    (bound,) = requirement.specifier
    assert bound.operator == ">="
    if requirement.name not in TOOLS:
        lowest = Version(pins("constraints-lowest.txt")[requirement.name])
        assert lowest == Version(bound.version)
    assert Version(pins("constraints.txt")[requirement.name]) >= Version(bound.version)


def test_readme_is_short_and_shows_code_at_once() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert "```python" in lines[:9]


def test_readme_names_only_paths_that_exist() -> None:
    tree = re.search(r"```text\n(.*?)```", README, re.S)
    assert tree
    named = [line.split()[0] for line in tree[1].splitlines() if not line.startswith(" ")]
    rooms = [f"lrpilot/{line.split()[0]}" for line in tree[1].splitlines() if line.startswith(" ")]
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert min(len(named), len(links)) >= 10 > len(rooms) > 3
    for name in named + rooms + links:
        assert (ROOT / name).exists(), name


def test_readme_figures_exist() -> None:
    figures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert figures
    for figure in figures:
        assert (ROOT / figure).is_file()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = README.split("# install, and run the tests\n")[1].split("```")[0].strip()
    find = re.search(r"command=\$\((.*)\)", (ROOT / ".ci" / "run").read_text())
    assert find
    found = subprocess.check_output(["bash", "-c", find[1]], cwd=ROOT, text=True).strip()
    assert found == command
    for tool in ("venv", "ruff check", "mypy", "pytest", "sphinx-build -q -W"):
        assert tool in command


def test_contributing_has_at_most_45_lines() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 45


def test_version_is_in_the_changelog() -> None:
    version = subprocess.check_output(
        [sys.executable, "-c", "import lrpilot; print(lrpilot.__version__)"], cwd=ROOT, text=True
    ).strip()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()

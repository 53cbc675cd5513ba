"""What is declared agrees: pyproject.toml, environment.yml, constraints.txt, Colab's image and the code's imports."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).parents[1]
PROJECT = read_configuration(ROOT / "pyproject.toml", expand=False)["project"]
EXTRAS = PROJECT["optional-dependencies"]
TO_USE = ["bnb", "data", "prodigy", "tagger", "lab"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
IMPORTED_AS = {"PIL": "pillow", "yaml": "pyyaml"}  # otherwise a package is imported by its own name
FIRST_CELL = """\
import sys

sys.path.append("..")  # a checkout's own code, where it is not installed
try:
    from widgets.project.opening import open_project
except ModuleNotFoundError:
    %pip install -q "lorakit[data,prodigy,tagger] @ git+{repository}"
    from widgets.project.opening import open_project
project = open_project()"""
COLAB_ALONE = {"google"}  # imported where Colab is known to be
PREINSTALLED = [line for line in (ROOT / "tests/colab-2026-08-19.txt").read_text().splitlines() if line[0] != "#"]
COLAB = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in PREINSTALLED)}
COLAB["torch"] = "2.11.0"


def declared(*extras: str) -> dict[str, Requirement]:
    """Requirements of the package and of some of its extras, by canonical name."""
    lines = [line for name in extras for line in EXTRAS[name] if not line.startswith("lorakit[")]
    wanted = [Requirement(line) for line in PROJECT["dependencies"] + lines]
    return {canonicalize_name(each.name): each for each in wanted}


def pins(python: str) -> dict[str, str]:
    """Versions that constraints.txt pins on a Python."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    here = {"python_version": python}
    chosen = [each for each in map(Requirement, lines) if not each.marker or each.marker.evaluate(here)]
    exact = {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in chosen}
    assert len(exact) == len(chosen), f"a package is pinned twice on Python {python}"
    return exact


def test_the_conda_environment_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = environment["dependencies"][-1]["pip"]
    assert listed[-1] == "-e ."
    assert {str(Requirement(line)) for line in listed[:-1]} == {str(each) for each in declared(*TO_USE).values()}
    (python,) = [each for each in environment["dependencies"] if str(each).startswith("python=")]
    assert python.removeprefix("python=") in PYTHONS


def test_nothing_that_colab_preinstalled_is_replaced():
    assert not set(declared()) - set(COLAB), "what is always needed is preinstalled"
    refused = [str(each) for name, each in declared().items() if not each.specifier.contains(COLAB[name])]
    assert not refused


def test_requirements_are_lower_bounds_only():
    bounds = {str(each): [bound.operator for bound in each.specifier] for each in declared(*EXTRAS).values()}
    assert not {each for each, operators in bounds.items() if operators != [">="]}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_within_its_bounds(python):
    pinned = pins(python)
    wanted = declared(*EXTRAS)
    assert not [str(each) for name, each in wanted.items() if not each.specifier.contains(pinned.get(name, "0"))]


def test_every_package_that_the_code_imports_is_declared():
    allowed = set(declared(*TO_USE, "timm")) | {"lorakit", "widgets"} | COLAB_ALONE
    missing = set()
    for path in [*(ROOT / "lorakit").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {each.partition(".")[0] for each in names} - sys.stdlib_module_names:
                if canonicalize_name(IMPORTED_AS.get(name, name)) not in allowed:
                    missing.add(f"{path.relative_to(ROOT)} imports {name}")
    assert not missing, "\n".join(sorted(missing))


def test_xformers_is_nowhere():
    assert "xformers" not in declared(*EXTRAS) and "xformers" not in pins("3.11")


def first_cells() -> dict[str, str]:
    """The first code cell of every notebook that opens a project."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        if any("open_project" in code for code in codes):
            found[path.name] = codes[0]
    return found


def test_every_notebook_begins_with_the_same_cell():
    same = FIRST_CELL.format(repository=PROJECT["urls"]["Repository"])
    found = {name: re.sub(r"open_project\(.*\)", "open_project()", code) for name, code in first_cells().items()}
    assert {name: code for name, code in found.items() if code != same} == {}


def test_every_address_in_the_notebooks_is_that_of_the_repository():
    repository = urlsplit(PROJECT["urls"]["Repository"]).path
    address = re.compile(r"(?:github\.com|colab\.research\.google\.com/github)(/[\w.-]+/[\w.-]+)")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert {*address.findall(path.read_text(encoding="utf-8"))} <= {repository}, path.name


def test_nothing_in_the_kit_listens():
    serving = re.compile(
        r"\b(http\.server|socketserver|serve_forever|start_server|ngrok|cloudflared|gradio|flask)\b|socket\(|\.bind\("
    )
    found = [
        f"{path.relative_to(ROOT)}: {hit[0]}"
        for package in ("lorakit", "widgets")
        for path in (ROOT / package).rglob("*.py")
        for hit in serving.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_both_packages(tmp_path):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = listed.splitlines()
    for name in tracked:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(tmp_path / "source")], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(ZipFile(wheel).namelist())
    missing = [name for name in tracked if name.startswith(("lorakit/", "widgets/")) and name not in inside]
    assert not missing

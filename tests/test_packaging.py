"""What is declared agrees: pyproject.toml, environment.yml, constraints.txt, Colab's image and the code's imports."""

import ast
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).parents[1]
PROJECT = read_configuration(ROOT / "pyproject.toml", expand=False)["project"]
EXTRAS = PROJECT["optional-dependencies"]
TO_USE = ["bnb", "prodigy", "tagger", "lab"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
IMPORTED_AS = {"PIL": "pillow", "yaml": "pyyaml"}  # otherwise a package is imported by its own name
# What Colab had preinstalled on 2026-08-19 (googlecolab/backend-info, pip-freeze).
COLAB = {
    "torch": "2.11.0",
    "diffusers": "0.39.0",
    "transformers": "5.15.0",
    "peft": "0.20.0",
    "accelerate": "1.14.0",
    "safetensors": "0.8.0",
    "huggingface-hub": "1.27.0",
    "numpy": "2.1.3",
    "pillow": "11.3.0",
    "pyyaml": "6.0.3",
    "requests": "2.32.4",
    "matplotlib": "3.10.0",
    "ipython": "7.34.0",
    "ipywidgets": "7.7.1",
}


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
    assert set(COLAB) == set(declared())
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
    allowed = set(declared(*TO_USE)) | {"lorakit", "widgets"}
    missing = set()
    for path in [*(ROOT / "lorakit").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {each.partition(".")[0] for each in names} - sys.stdlib_module_names:
                if canonicalize_name(IMPORTED_AS.get(name, name)) not in allowed:
                    missing.add(f"{path.relative_to(ROOT)} imports {name}")
    assert not missing, "\n".join(sorted(missing))


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

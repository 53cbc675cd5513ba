"""Installs lorakit on top of what Colab has preinstalled, sees that nothing of that changes, and runs the core there.

`make colab`: a venv in build/colab with the versions of tests/colab-2026-08-19.txt; no GPU and no Colab is needed. The
first cell of the notebooks is run in it before and after the installation. Takes minutes, and a connection to PyPI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from test_packaging import first_cell

from widgets.bootstrap import EXTRAS

ROOT = Path(__file__).parents[1]
PINS = ROOT / "tests" / "colab-2026-08-19.txt"
TORCH = "torch==2.13.0"  # nearest to Colab's 2.11.0+cu128 of which there is a build for CPUs
ABSENT_FROM_PYPI = ("jedi",)  # Colab's IPython does without; a plain one asks for it
HERE = ROOT / "build" / "colab"
PYTHON = HERE / "bin" / "python"
CORE = (
    *("test_config.py", "test_events.py", "test_doctor.py", "data/test_data.py", "data/test_captions.py"),
    *("data/test_buckets.py", "training/test_caches.py", "training/test_resume.py", "models/test_sd15.py"),
    *("lora/test_export.py", "run/test_checkpoint.py", "hub/test_hub.py", "project", "widgets/test_open_project.py"),
    "widgets/test_i18n.py",
)
IMPORT_ALL = """
import importlib, pkgutil, lorakit, widgets
for package in (lorakit, widgets):
    assert 'site-packages' in package.__file__, package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
        if not module.name.endswith('__main__'):
            importlib.import_module(module.name)
"""
RUN_CELL = """
import sys, time, nbformat
from nbclient import NotebookClient
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(sys.argv[1])])
begin = time.monotonic()
NotebookClient(notebook, timeout=120, resources={'metadata': {'path': sys.argv[2]}}).execute()
shown = [output.data.get('text/html', '') for output in notebook.cells[0].outputs if 'data' in output]
assert any('checks passed' in html for html in shown), notebook.cells[0].outputs
print(f'{time.monotonic() - begin:.1f} s with the start of the kernel')
"""


def main() -> None:
    begin = time.monotonic()
    image()
    before = freeze()
    print(f"the image: {len(before)} packages, {TORCH} in place of Colab's build, Python {sys.version.split()[0]}")
    print("the first cell in a checkout that is not installed:", run_cell(ROOT / "notebooks"))
    source = checkout()
    content = Path(tempfile.mkdtemp())
    shutil.make_archive(str(content / "lorakit"), "zip", source)
    requirement = f"{source}[{EXTRAS}]"
    planned = [(item["metadata"]["name"], item["metadata"]["version"]) for item in report(requirement)]
    print("to be installed:", ", ".join(f"{name} {version}" for name, version in planned))
    assert not {name.lower().replace("_", "-") for name, _ in planned} & set(before), (
        "a preinstalled package is replaced"
    )
    print("the first cell, which installs lorakit.zip, without a restart:", run_cell(content, content))
    after = freeze()
    changed = {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version}
    assert not changed, f"the installation changed {changed}"
    print(f"no preinstalled package changed; {len(after) - len(before)} were added")
    python("-c", IMPORT_ALL)
    print("every module was imported")
    print("the first cell, installed:", run_cell(Path(tempfile.mkdtemp())))
    tests = [f"tests/{name}" for name in CORE]
    # pytest as a program, not as a module: the checkout is not on its path, so what is tested is what was installed
    subprocess.run([PYTHON.with_name("pytest"), "-q", *tests], cwd=ROOT, env=environment(), check=True)
    print(f"done in {time.monotonic() - begin:.0f} s")


def image() -> None:
    """A new venv with what Colab has."""
    if HERE.exists():
        shutil.rmtree(HERE)
    venv.create(HERE, with_pip=True)
    pip("install", "--quiet", "--requirement", str(PINS), TORCH, *ABSENT_FROM_PYPI)


def checkout() -> Path:
    """A copy of the tracked files, so that building leaves nothing in the checkout."""
    copy = Path(tempfile.mkdtemp())
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    return copy


def report(requirement: str) -> list[dict]:
    """What pip would install."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        pip("install", "--quiet", "--dry-run", "--report", file.name, requirement)
        return json.load(file)["install"]


def freeze() -> dict[str, str]:
    packages = subprocess.check_output([PYTHON, "-m", "pip", "list", "--format", "json"], env=environment(), text=True)
    return {item["name"].lower().replace("_", "-"): item["version"] for item in json.loads(packages)}


def run_cell(folder: Path, content: Path | None = None) -> str:
    """Run the notebooks' first two cells in `folder`; as in Colab, with `content` as its /content, if that is given."""
    opening = f"from widgets import open_project\nproject = open_project(remote={tempfile.mkdtemp()!r})"
    cell = f"{first_cell.first_cell('')}\n{opening}"
    if content:
        cell = f"import sys, types\nsys.modules['google.colab'] = types.ModuleType('colab')\n{cell}"
        cell = cell.replace("/content", str(content))
    done = subprocess.run(
        [PYTHON, "-c", RUN_CELL, cell, str(folder)], cwd="/", env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def pip(*arguments: str) -> None:
    python("-m", "pip", "--disable-pip-version-check", *arguments)


def python(*arguments: str) -> None:
    subprocess.run([PYTHON, *arguments], cwd="/", env=environment(), check=True)


def environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "PIP_CONSTRAINT")
    }


if __name__ == "__main__":
    main()

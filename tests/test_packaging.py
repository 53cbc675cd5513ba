"""What is declared agrees: pyproject.toml, environment.yml, constraints.txt, Colab's image and the code's imports."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools.config.pyprojecttoml import read_configuration

from widgets import bootstrap

ROOT = Path(__file__).parents[1]
PROJECT = read_configuration(ROOT / "pyproject.toml", expand=False)["project"]
EXTRAS = PROJECT["optional-dependencies"]
TO_USE = ["bnb", "data", "prodigy", "tagger", "lab"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
IMPORTED_AS = {"PIL": "pillow", "yaml": "pyyaml"}  # otherwise a package is imported by its own name
spec = importlib.util.spec_from_file_location("first_cell", ROOT / "notebooks" / "first_cell.py")
first_cell = importlib.util.module_from_spec(spec)
spec.loader.exec_module(first_cell)
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


def test_every_local_link_of_the_readme_and_its_like_is_a_file_and_its_images_stay_small():
    for page in ROOT.glob("*.md"):
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (ROOT / link).exists()] == [], page.name
    images = (ROOT / "notebooks" / "images").iterdir()
    assert sum(file.stat().st_size for file in images) < 400_000, "bytes"


def test_xformers_is_nowhere():
    assert "xformers" not in declared(*EXTRAS) and "xformers" not in pins("3.11")


def test_every_notebook_begins_with_the_same_folded_cell_and_opens_the_project_in_three_lines():
    notebooks = [json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert len(notebooks) == 7
    for notebook in notebooks:
        find, open_it = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][:2]
        assert "".join(find["source"]) == first_cell.first_cell(first_cell.source())
        assert find["metadata"] == first_cell.FOLDED
        import_line, empty, call = "".join(open_it["source"]).splitlines()
        assert (import_line, empty) == ("from widgets import open_project", "") and "open_project(" in call


def test_the_notebooks_are_as_the_setting_of_the_source_makes_them(monkeypatch, tmp_path):
    copy = copied_notebooks(monkeypatch, tmp_path)
    first_cell.write(first_cell.source())
    for path in copy.glob("*.ipynb"):
        assert json.loads(path.read_text("utf-8")) == json.loads((ROOT / "notebooks" / path.name).read_text("utf-8"))


def test_a_source_is_written_into_cells_and_badges_and_taken_out_again(monkeypatch, tmp_path):
    copy = copied_notebooks(monkeypatch, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    first_cell.write("https://github.com/someone/their-kit")
    assert first_cell.source() == "https://github.com/someone/their-kit"
    text = (copy / "4_train.ipynb").read_text("utf-8")
    assert f"lorakit[{bootstrap.EXTRAS}] @ git+https://github.com/someone/their-kit" in text
    assert text.count("colab.research.google.com/github/someone/their-kit/blob/main/notebooks/4_train.ipynb)") == 1
    first_cell.write("https://example.org/kit.zip")
    assert f"lorakit[{bootstrap.EXTRAS}] @ https://example.org/kit.zip" in (copy / "4_train.ipynb").read_text("utf-8")
    assert "colab-badge" not in (copy / "4_train.ipynb").read_text("utf-8")
    first_cell.write("")
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    with pytest.raises(SystemExit, match="must be empty or begin with https://"):
        first_cell.write("http://example.org/kit.zip")


def copied_notebooks(monkeypatch, folder: Path) -> Path:
    """Copies of the notebooks and of pyproject.toml, for `first_cell.write` to change."""
    copy = Path(shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=lambda _, names: {"lora-projects"}))
    monkeypatch.setattr(first_cell, "NOTEBOOKS", copy)
    monkeypatch.setattr(first_cell, "PYPROJECT", Path(shutil.copy(ROOT / "pyproject.toml", folder)))
    return copy


# In place of Colab: its module, a mount of Drive, and a pip that "installs" by making the checkout importable.
COLAB_ALONE_CELL = """
import pathlib, subprocess, sys, types
# the kit may be installed where the tests run
sys.path[:] = [path for path in sys.path if not pathlib.Path(path, "widgets").exists()]
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
content, root, cell = sys.argv[1:]
drive = types.SimpleNamespace(mount=lambda folder: print("mounted", folder))
sys.modules["google.colab"] = types.SimpleNamespace(drive=drive)
def pip(command, **options):
    print(*command[-1:])
    sys.path.append(root)
    return types.SimpleNamespace(returncode=0)
subprocess.run = pip
exec(cell.replace("/content", content))
import widgets
from widgets import open_project
print(widgets.__file__)
try:
    open_project("con/trary")
except Exception as error:
    print(type(error).__name__, sys.modules["widgets"].__file__)
"""


def colab(folder: Path) -> list[str]:
    """What the first cell prints where a notebook is alone and `folder` is /content."""
    command = [sys.executable, "-c", COLAB_ALONE_CELL, str(folder), str(ROOT), first_cell.first_cell("")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (folder / "cwd").mkdir()
    done = subprocess.run(command, cwd=folder / "cwd", env=environment, capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line and "IPython" not in line]


@pytest.mark.parametrize("place", ["uploaded", "on Drive"])
@pytest.mark.parametrize("form", ["zip", "zip of a folder", "folder"])
def test_a_notebook_alone_in_colab_installs_the_kit_from_a_zip_or_folder(tmp_path, place, form):
    kit = (tmp_path if place == "uploaded" else tmp_path / "drive" / "MyDrive") / "lorakit"
    shutil.copytree(ROOT / "widgets", kit / "widgets", ignore=shutil.ignore_patterns("__pycache__"))
    place_of_kit = kit
    packed = {"zip": (kit, "."), "zip of a folder": (kit.parent, "lorakit")}
    if form in packed:
        archive = Path(shutil.make_archive(str(kit), "zip", *packed[form]))
        shutil.rmtree(kit)
        place_of_kit, kit = archive, archive / packed[form][1]
    lines = colab(tmp_path)
    assert any(line.startswith("mounted") for line in lines) == (place == "on Drive")
    (installed,) = [line for line in lines if line.endswith(f"[{bootstrap.EXTRAS}]")]
    assert installed.startswith(f"{place_of_kit}[") == (form in packed), (
        "pip builds inside a folder: a copy of it is taken"
    )
    assert f"{kit}/widgets/__init__.py" in lines
    assert lines[-1] == f"UserError {ROOT}/widgets/__init__.py", "then the installed one is used"


def test_a_notebook_without_the_kit_says_what_to_do(tmp_path):
    lines = colab(tmp_path)
    assert lines[0] == f"mounted {tmp_path}/drive" and lines[-1].startswith("Put lorakit.zip on Google")
    assert "请把 lorakit.zip 放到" in lines[-1]


def test_a_failed_installation_is_shown_in_pips_words(monkeypatch, tmp_path):
    failed = SimpleNamespace(returncode=1, stderr="ERROR: no connection")
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="(?s)could not be installed.*no connection"):
        bootstrap.install(tmp_path)


# Every host that a file of the kit may name, and why. None of them is fetched and run as code.
HOSTS = {
    "huggingface.co": "models",
    "www.huggingface.co": "models",
    "hf.co": "models",
    "hf-mirror.com": "the mirror of Hugging Face that people in China use",
    "modelscope.cn": "models",
    "www.modelscope.cn": "models",
    "modelscope.ai": "models",
    "www.modelscope.ai": "models",
    "download.pytorch.org": "PyTorch's own package index",
    "pytorch.org": "documentation",
    "docs.nvidia.com": "documentation",
    "arxiv.org": "papers",
    "rentry.org": "a guide that a preset cites",
    "civitai.com": "where people publish LoRA files",
    "openrouter.ai": "a captioning server that a user may choose",
    "api.openai.com": "a captioning server that a user may choose",
    "dashscope.aliyuncs.com": "a captioning server that a user may choose",
    "colab.research.google.com": "Colab itself and its badge",
    "git-lfs.github.com": "the first line of every Git LFS pointer",
    "github.com": "see REPOSITORIES",
    "www.apache.org": "the license",
    "keepachangelog.com": "documentation",
    "semver.org": "documentation",
}
OURS = re.compile(
    r"127\.0\.0\.1|localhost|(\d+\.){3}\d+|example\.(org|com)|[\w.-]+\.(example|invalid)|[\w.-]*\{.*|\[.*|…|127.*|git-lfs|h|host|me|x|\*{3}@host|me@host"
)
MAKERS = ("tests/test_packaging.py", "notebooks/first_cell.py")  # their addresses are patterns
# Named to say where a format or a list comes from; nothing is fetched from them.
REPOSITORIES = (
    "huggingface/safetensors",
    "googlecolab/backend-info",
    "spec/v1",
    "Stability-AI/ModelSpec",
    # modelspec's name for the layout of SDXL
    "Stability-AI/generative-models",
)
BULKY = re.compile(r"merges\.txt|vocab\.json|tokenizer\.json|LICENSE|NOTICE|.*\.(safetensors|png|onnx)")


def texts() -> dict[str, str]:
    """Every text file of the repository."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    paths = [ROOT / name for name in names if name and not BULKY.fullmatch(Path(name).name)]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8", errors="replace") for path in paths if path.is_file()}


def test_no_file_names_an_address_that_others_could_own():
    address = re.compile(r"(?:https?|git|ssh)(?:\+\w+)?://([^\s/\"'`<>)\]:,;，。（）]+)")
    unknown = {
        f"{name}: {host}"
        for name, text in texts().items()
        for host in address.findall(text)
        if host not in HOSTS and not OURS.fullmatch(host) and name not in MAKERS
    }
    assert not unknown, "\n".join(sorted(unknown))


def test_no_file_names_a_repository_or_has_the_kit_fetched_by_name():
    repository = re.compile(
        r"github\.com[/:][\w.-]+/[\w.-]+|colab\.research\.google\.com/github/|pip install[^\n]*\blorakit\b(?!\.zip)"
    )
    (source,) = [first_cell.source() or "nowhere"]
    named = {
        f"{name}: {hit[0]}"
        for name, text in texts().items()
        for hit in repository.finditer(text.replace(source, ""))
        if not hit[0].partition("/")[2].rstrip(".").startswith(REPOSITORIES)
        if name not in MAKERS
    }
    assert not named, "\n".join(sorted(named))


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

"""The public API: README's lines run as they stand, and so does the example of every function."""

import doctest
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lorakit
from lorakit.demo import DATASET

ROOT = Path(__file__).parents[1]
# Quick settings, which the README leaves out: two epochs of two images.
QUICK = {
    "data": {"trigger": "mofurin", "resolution": 128, "min_bucket_reso": 128, "max_bucket_reso": 128},
    "adapter": {"rank": 1, "alpha": 1},
    "loop": {"epochs": 2},
    "sample": {"width": 128, "height": 128},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `my-project`: two of the demo's images."""
    here = tmp_path_factory.mktemp("api")
    concept = here / "my-project" / "dataset" / "1_mofurin"
    concept.mkdir(parents=True)
    for name in ("01", "02"):
        for suffix in (".png", ".txt"):
            shutil.copy(DATASET / "10_mofurin" / f"{name}{suffix}", concept)
    before = Path.cwd()
    os.chdir(here)
    yield here
    os.chdir(before)


@pytest.fixture(scope="module")
def trained(folder):
    """README's lines were run in the folder, with quick settings added to its own."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    create = lorakit.create_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(lorakit.__dict__, "create_run", lambda project, settings: create(project, {**settings, **QUICK}))
        exec(code, {})
    return folder


def test_the_lines_of_the_readme_train_a_run(trained):
    assert lorakit.open_run("my-project").lora_steps() == [2, 4]
    settings = yaml.safe_load((trained / "my-project" / "runs" / "run1" / "config.yaml").read_text())
    assert settings["model"]["source"] == "demo"


def test_the_example_of_every_public_function_runs_one_after_the_other(trained, forked):
    public = {name: getattr(lorakit, name) for name in lorakit.__all__}
    for name, function in public.items():
        if not inspect.isfunction(function):
            continue
        (examples,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=dict(public))
        result = doctest.DocTestRunner().run(examples)
        list(lorakit.follow(lorakit.open_run("my-project")))  # a trainer that an example started ends before the next
        assert result.attempted and not result.failed, name


@pytest.mark.parametrize("name", lorakit.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert len(inspect.getdoc(getattr(lorakit, name)).split()) > 3


def test_no_folder_of_the_package_hides_a_public_name():
    folders = {path.name for path in (ROOT / "lorakit").iterdir() if path.is_dir()}
    files = {path.stem for path in (ROOT / "lorakit").glob("*.py")}
    assert not {*lorakit.__all__} & (folders | files)


def test_the_package_is_imported_at_once_and_an_unknown_name_is_refused_with_those_there_are():
    code = "import sys, lorakit; print(len([name for name in sys.modules if name.startswith('lorakit')]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    with pytest.raises(AttributeError, match="create_run"):
        _ = lorakit.begin

"""Notebooks take their names from `widgets` itself: each of them is there, and costs nothing before it is used."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import widgets

NOTEBOOKS = sorted((Path(widgets.__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", widgets.NAMES)
def test_every_name_is_a_function_or_a_form(name):
    loaded = getattr(widgets, name)
    assert callable(loaded) and loaded.__doc__


def test_names_are_loaded_on_first_use_only():
    code = "import sys, widgets; print(sorted({'ipywidgets', 'yaml', 'lorakit', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(AttributeError, match="'gallery'.*tag_editor"):
        widgets.gallery  # noqa: B018


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_import_from_widgets_itself(notebook):
    cells = [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells[1:] for line in "".join(cell["source"]).splitlines()]
    taken = [name for line in lines for name in re.findall(r"^from widgets import (.*)$", line)]
    assert not [line for line in lines if "from widgets." in line]
    assert {name.strip() for names in taken for name in names.split(",")} <= set(widgets.NAMES)

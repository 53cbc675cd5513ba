"""Writes the first two cells and the Colab badge of every notebook; `make notebooks SOURCE=https://…` runs this.

Where the kit is published is one setting, `source` under [tool.lorakit] in pyproject.toml. It is empty while the kit is
published nowhere: then the first cell looks for the kit on the machine, and there is no badge.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

NOTEBOOKS = Path(__file__).parent
PYPROJECT = NOTEBOOKS.parent / "pyproject.toml"
SOURCE = re.compile(r'(?<=^\[tool\.lorakit\]\nsource = ")[^"\n]*(?=")', re.MULTILINE)
EXTRAS = "data,prodigy,tagger,bnb"
COLAB = "https://colab.research.google.com"

# Folded in Colab and JupyterLab: a reader sees the title, and the three lines of the next cell.
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}
# A zip from GitHub or from a folder holds the kit one folder down.
UNPUBLISHED = """\
# @title Find the kit · 找到工具包
import sys
from glob import glob
from importlib.util import find_spec
from zipfile import ZipFile, is_zipfile

if "google.colab" in sys.modules and not glob("/content/lorakit*"):
    from google.colab import drive

    drive.mount("/content/drive")
kits = ["..", *glob("/content/lorakit*"), *glob("/content/drive/MyDrive/lorakit*")]
sys.path += kits + [f"{kit}/{ZipFile(kit).namelist()[0].split('/')[0]}" for kit in kits if is_zipfile(kit)]
if not find_spec("widgets"):
    sys.exit("Put lorakit.zip on Google Drive or into Files. · 请把 lorakit.zip 放到 Google Drive 或“文件”里。")"""
PUBLISHED = """\
# @title Find the kit · 找到工具包
import sys
from importlib.util import find_spec

sys.path.append("..")  # the kit's own folder, where it is not installed
if not find_spec("widgets"):
    %pip install -q "lorakit[{extras}] @ {address}\""""


def source() -> str:
    """Where the kit is published, "" for nowhere."""
    (found,) = SOURCE.findall(PYPROJECT.read_text(encoding="utf-8"))
    return found


def first_cell(source: str) -> str:
    """The code of every notebook's first cell. `source` is an https address of a Git repository, a zip or a wheel."""
    if not source:
        return UNPUBLISHED
    address = source if source.endswith((".zip", ".whl", ".tar.gz")) else f"git+{source}"
    return PUBLISHED.format(extras=EXTRAS, address=address)


def badge(source: str, notebook: str) -> str:
    """The line with the badge that opens a notebook in Colab, "" unless the kit is on GitHub."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", source)
    if not found:
        return ""
    page = f"{COLAB}/github/{found[1]}/blob/main/notebooks/{notebook}"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({page})"


def write(source: str) -> None:
    """Put `source` into pyproject.toml, and first cell and badge into every notebook."""
    if source and not source.startswith("https://"):
        raise SystemExit(f"SOURCE is {source!r}; it must be empty or begin with https://")
    PYPROJECT.write_text(SOURCE.sub(source, PYPROJECT.read_text(encoding="utf-8")), encoding="utf-8")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        title, code = notebook["cells"][0], next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
        code["source"], code["metadata"] = first_cell(source).splitlines(keepends=True), FOLDED
        title["source"] = with_badge("".join(title["source"]), badge(source, path.name)).splitlines(keepends=True)
        path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def with_badge(text: str, badge: str) -> str:
    """A title cell with this badge below its heading, in place of one that was there."""
    heading, *rest = [part for part in text.split("\n\n") if not part.startswith("[![")]
    return "\n\n".join([heading, *([badge] if badge else []), *rest])


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else source())

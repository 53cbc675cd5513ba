"""Opens the project in every notebook: installs the kit if the notebook came alone (Colab), then opens the project.

It may run from inside lorakit.zip, before anything is installed: only the standard library and IPython are imported.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from IPython.display import HTML, DisplayHandle

EXTRAS = "data,prodigy,tagger,bnb"  # of pyproject.toml: what the notebooks offer
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", "*.egg-info", "lora-projects")


def open_project(name: str = "", remote: str | Path | None = None) -> Any:
    """Open a project, or create it; see widgets.project.opening.open_project. Returns the Project.

    In Colab this first installs the kit from the folder or zip that this file was loaded from. Raises SystemExit with
    pip's own words if that fails.
    """
    # The language is not known yet, so the line is in both.
    line = DisplayHandle()
    line.display(HTML("starting … · 正在启动 …"))
    # In a zip, which may hold the kit one folder down, the kit is the zip: pip installs that.
    kit = next((folder for folder in Path(__file__).parents if folder.is_file()), Path(__file__).parents[1])
    if needs_install(kit):
        line.update(HTML("installing the kit (1 minute) … · 正在安装（约 1 分钟）…"))
        install(kit)
    # Not at the top: in Colab the kit and what it needs are installed only now.
    from widgets.project.opening import open_project

    line.update(HTML(""))
    return open_project(name, remote)


def needs_install(kit: Path) -> bool:
    """Whether the kit was found as a zip, or in Colab as a folder; elsewhere a checkout runs where it is."""
    is_installed = kit == Path(sysconfig.get_path("purelib"))
    return kit.is_file() or ("google.colab" in sys.modules and not is_installed)


def install(kit: Path) -> None:
    """Install the kit, a zip or a folder, and what its notebooks need; packages that are there already stay."""
    with tempfile.TemporaryDirectory() as desk:
        source = kit
        # pip builds inside the folder, and this one may be on Drive, which is slow.
        if kit.is_dir():
            source = Path(shutil.copytree(kit, Path(desk) / "kit", ignore=NOT_COPIED))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        # One command for the kit and its extras, so that pip chooses versions that fit together.
        done = subprocess.run([*pip, f"{source}[{EXTRAS}]"], capture_output=True, text=True, check=False)
    # The last lines of pip say why; all of it can be thousands of lines.
    if done.returncode:
        raise SystemExit(f"{kit} could not be installed · 安装失败:\n{done.stderr[-2000:]}")
    # From here on the installed copy is imported, not the one in the zip.
    sys.path[:] = [path for path in sys.path if not Path(path).is_relative_to(kit)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lorakit", "widgets")]:
        del sys.modules[name]
    importlib.invalidate_caches()

"""The quick start: a project with the embedded base model and character, and its notebook run without a browser."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from lorakit.demo import DATASET, PROMPTS, TRIGGER
from lorakit.errors import UserError
from lorakit.project import Project
from lorakit.run.config import configure
from lorakit.run.create import save_config

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "0_quickstart.ipynb"


def fill(project: Project) -> None:
    """Put the demo character's images and settings into a new project; one that has its own keeps them."""
    if not any(project.dataset.rglob("*.png")):
        shutil.copytree(DATASET, project.dataset, dirs_exist_ok=True)
    if not project.runs():
        save_config(project.run(TRIGGER), configure(settings()))


def settings() -> dict:
    """Settings that teach the demo character to the embedded base model in about two minutes on two CPU cores."""
    return {
        "model": {"family": "sd15", "source": "demo"},
        "data": {
            "trigger": TRIGGER,
            "resolution": 128,
            "min_bucket_reso": 128,
            "max_bucket_reso": 128,
            "shuffle_caption": True,
        },
        "adapter": {"rank": 16, "alpha": 16},
        "optimizer": {"learning_rate": 5e-3},
        "schedule": {"name": "cosine", "warmup": 0.05},
        "loop": {"epochs": 8, "batch_size": 4},
        "sample": {"prompts": PROMPTS[:2], "width": 128, "height": 128, "steps": 20, "guidance_scale": 4.0},
    }


def execute(output: Path) -> None:
    """Run the quick start notebook in `output`, which then holds it, its project, the grid and the exported file."""
    try:
        import nbclient
        import nbformat
        from traitlets.config import Config
    except ImportError as error:
        raise UserError(f"The demo runs a notebook, and {error.name} is missing: pip install {error.name}") from None
    if not NOTEBOOK.exists():
        raise UserError(
            f"{NOTEBOOK} is missing: the demo needs the kit's whole folder, not only the installed package."
        )
    output.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    try:
        with tempfile.TemporaryDirectory() as sockets:
            nbclient.NotebookClient(
                notebook,
                timeout=None,
                resources={"metadata": {"path": str(output)}},
                # The kernel listens on Unix sockets in a folder that only this user can enter, not on TCP ports.
                config=Config(ConnectionFileMixin={"transport": "ipc", "ip": f"{sockets}/kernel"}),
                on_cell_executed=lambda cell, cell_index, execute_reply: print(
                    f"cell {cell_index + 1} of {len(notebook.cells)} done", flush=True
                ),
            ).execute()
    finally:  # a notebook that failed is worth looking at, too
        nbformat.write(notebook, output / NOTEBOOK.name)
    for image in (output / "project").glob("runs/*/grids/grid/grid.png"):
        shutil.copy2(image, output / "grid.png")
    print(f"Left in {output.absolute()}:")
    for file in sorted(output.glob("*")):
        print(f"  {file.name}{'/' if file.is_dir() else ''}")

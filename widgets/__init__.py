"""What notebooks show: forms for settings, and views of images, runs and grids. Imports lorakit, never the reverse.

A notebook takes one name a cell, `from widgets import tag_editor`; only that name's own file is then loaded.
"""

from __future__ import annotations

import importlib
from typing import Any

# Name -> its file below widgets/, without .py.
NAMES = {
    "Form": "training.form",
    "about_file": "evaluate.about_file",
    "add_images": "data.intake",
    "before_training": "training.before",
    "buckets_preview": "data.prepare",
    "check_dataset": "data.report",
    "check_models": "project.base_model",
    "close_project": "project.closing",
    "continue_run": "training.extend",
    "draw_boxes": "data.boxes",
    "fetch_base": "project.base_model",
    "grid_form": "evaluate.grid_form",
    "guides": "project.guides",
    "more_epochs": "training.extend",
    "newest_run": "project.loras",
    "open_project": "bootstrap",
    "prepare": "data.prepare",
    "regularize": "data.regularize",
    "run_tagger": "tags.tagging",
    "runs": "evaluate.runs",
    "show_grid": "evaluate.grid",
    "show_images": "data.dataset",
    "show_tags": "data.dataset",
    "tag_editor": "tags.editor",
    "tag_images": "tags.tagging_form",
    "train": "training.live",
    "watch": "training.live",
}
__all__ = [*NAMES]


def __getattr__(name: str) -> Any:
    """Load a name of NAMES when it is first used."""
    if name not in NAMES:
        raise AttributeError(f"module 'widgets' has no attribute {name!r}; it has {', '.join(NAMES)}.")
    return getattr(importlib.import_module(f"widgets.{NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMES})

"""Regularization images in a cell: announced, shown while they are generated, stopped and continued."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from IPython import display as ipython_display
from tiny import save_images, save_sd15

from lorakit.project import Project
from widgets.data import regularize as widget
from widgets.project.draft import Draft

DATA = {"resolution": 64, "min_bucket_reso": 64, "max_bucket_reso": 64, "bucket_reso_steps": 32}


@pytest.fixture
def pages(monkeypatch):
    """Every page that the cell showed, as HTML; the interrupt button is pressed after the second image."""
    pages = []

    def update(page):
        pages.append(page.data)
        if "image 2 / 3" in page.data and not any("Stopped" in earlier for earlier in pages):
            raise KeyboardInterrupt

    def display(thing, display_id):
        pages.append(thing.data)
        return SimpleNamespace(update=update)

    monkeypatch.setattr(ipython_display, "display", display)
    monkeypatch.setattr(widget, "REDRAW", 0.0)
    return pages


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / "p")
    save_images(project.dataset, sizes=((64, 64),) * 3)
    draft = Draft(project)
    for name, value in {**{f"data.{name}": value for name, value in DATA.items()}, "sample.steps": 2}.items():
        draft.set(name, value)
    draft.set("model.source", str(save_sd15(tmp_path / "base")))
    return project


def test_the_cell_shows_the_plan_and_the_newest_image_and_continues_where_it_was_stopped(project, pages):
    widget.regularize(project)
    assert "3 regularization images" in pages[1] and "64 × 64 px" in pages[1] and "loading" in pages[1]
    assert "Stopped. Finished images are kept" in pages[-1] and "image 2 / 3" in pages[-1]
    assert "data:image/jpeg" in pages[-1] and "girl, blue hair" in pages[-1]
    widget.regularize(project)
    assert "3 regularization images, 1 of them new" in pages[-1]
    assert len(list((project.dataset / "reg/1_1girl").glob("*.png"))) == 3


def test_nothing_is_generated_before_it_is_requested(project, pages):
    widget.regularize(project, generate=False)
    assert "3 regularization images" in pages[-1] and "generate=True" in pages[-1]
    assert not (project.dataset / "reg").exists()


def test_wrong_settings_are_explained(tmp_path, project, pages):
    widget.regularize(project, "a/b")
    assert "class_name is" in pages[-1]
    Draft(project).set("model.source", str(tmp_path / "nothing"))
    widget.regularize(project)
    assert "No file or folder" in pages[-1]
    widget.regularize(Project(tmp_path / "empty"))
    assert "“Base model” is missing" in pages[-1]

"""A dataset in a cell: its images and tags are counted, model files are checked."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from IPython import display as ipython_display

from lorakit.demo import DATASET
from lorakit.demo.quickstart import settings
from lorakit.files import write_json
from lorakit.project import Project
from lorakit.run.config import configure
from lorakit.run.create import save_config
from lorakit.sync.workspace import Copied
from widgets.data import dataset
from widgets.project import base_model, loras


@pytest.fixture
def outputs(monkeypatch):
    """Everything that a cell shows, one after the other: HTML as text, images as they are."""
    outputs = []

    def display(thing, display_id=False):
        outputs.append(getattr(thing, "data", thing))
        return SimpleNamespace(update=lambda html: outputs.append(html.data))

    monkeypatch.setattr(ipython_display, "display", display)
    return outputs


@pytest.fixture
def project(tmp_path):
    """The demo's images, and a run with its settings that has not started."""
    project = Project(tmp_path / "project")
    shutil.copytree(DATASET, project.dataset)
    save_config(project.run("r"), configure(settings()))
    return project


def test_the_images_are_counted_shown_and_those_left_out_are_named(project, outputs):
    (project.dataset / "10_mofurin" / "broken.png").write_bytes(b"no image")
    dataset.show_images(project)
    counts, sheet, notes = outputs
    assert "10_mofurin" in counts and ">30<" in counts and "× 10" in counts and ">300<" in counts
    assert sheet.size[0] == dataset.WIDTH
    assert "broken.png: left out" in notes


def test_images_left_out_are_listed_before_images_without_a_caption_and_no_note_is_missing(project, outputs):
    for caption in project.dataset.rglob("*.txt"):
        caption.unlink()
    shutil.copy(next(project.dataset.rglob("*.png")), project.dataset)
    dataset.show_images(project)
    notes = outputs[-1]
    assert notes.index("1 images left out") < notes.index("no .txt file") and notes.count("no .txt file") == 30


def test_a_project_without_images_shows_where_they_go(tmp_path, outputs):
    project = Project(tmp_path)
    project.dataset.mkdir()
    for view in (dataset.show_images, dataset.show_tags):
        view(project)
        assert str(project.dataset) in outputs[-1]


def test_tags_and_captions_without_the_trigger_are_counted(project, outputs):
    first, second, *_ = sorted(project.dataset.rglob("*.txt"))
    first.unlink()
    second.write_text("1girl, <b>odd</b>, mofurin")
    dataset.show_tags(project)
    (tags,) = outputs
    assert "mofurin <b>30</b>" in tags, "the trigger is put into every caption"
    assert "Images without a caption: 1." in tags and "do not begin with the trigger word mofurin: 1." in tags
    assert "&lt;b&gt;odd&lt;/b&gt;" in tags and "<b>odd" not in tags


def test_a_local_base_is_checked_and_named_and_a_missing_one_explained(outputs, tmp_path):
    base_model.fetch_base(configure(settings()).model)
    assert "a diffusers folder with StableDiffusionPipeline" in outputs[-1] and "can be trained as sd15" in outputs[-1]
    missing = {**settings(), "model": {"family": "sd15", "source": str(tmp_path / "missing.safetensors")}}
    base_model.fetch_base(configure(missing).model)
    assert "missing.safetensors" in outputs[-1] and "Traceback" not in outputs[-1]


def test_files_are_listed_with_their_problems_and_names_cannot_write_html(outputs, tmp_path):
    (tmp_path / "<i>x.safetensors").write_bytes(b"no such file")
    base_model.check_models([tmp_path])
    assert "✗" in outputs[-1] and "&lt;i&gt;x.safetensors" in outputs[-1] and "<i>x" not in outputs[-1]
    base_model.check_models([DATASET])
    assert "No model files found." in outputs[-1]


def test_the_newest_run_is_downloaded_with_progress(project, outputs, monkeypatch, tmp_path):
    write_json(project.remote_file, {"home": str(tmp_path / "home")})
    run = project.run("r")

    def downloading(project):
        yield Copied("LoRA files and images", 1_000_000, 2_000_000, "")
        run.loras.mkdir()
        run.lora_file(3).write_bytes(b"x")

    monkeypatch.setattr(loras, "downloading_loras", downloading)
    monkeypatch.setattr(loras, "REDRAW", 0.0)
    assert loras.newest_run(project).lora_steps() == [3]
    assert any("1 MB" in html and "2 MB" in html for html in outputs)

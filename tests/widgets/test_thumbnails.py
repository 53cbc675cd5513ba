"""Thumbnails: made once, anew for a changed image, and never a reason to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lorakit.data import DataConfig
from lorakit.data.scan import Sample, scan
from lorakit.project import Project
from lorakit.sync import packs
from widgets.data.thumbnails import Thumbnails


@pytest.fixture
def project(tmp_path) -> Project:
    project = Project(tmp_path)
    project.dataset.mkdir()
    for i, stem in enumerate("abcd"):
        Image.new("RGB", (48, 32), (60 * i, 90, 0)).save(project.dataset / f"{stem}.png")
    return project


def samples(project: Project) -> tuple[Sample, ...]:
    return scan(DataConfig(), project.folder).samples


def test_thumbnails_are_made_once_and_anew_for_a_changed_image(project):
    thumbnails = Thumbnails(project)

    def small() -> tuple[list[str], dict[Path, int]]:
        sources = thumbnails.sources(samples(project))
        return sources, {file: file.stat().st_mtime_ns for file in thumbnails.folder.iterdir()}

    sources, files = small()
    assert all(src.startswith("data:image/jpeg") for src in sources) and len(files) == 4
    assert small() == (sources, files)
    Image.new("RGB", (64, 64), "red").save(project.dataset / "a.png")
    changed, more = small()
    assert changed[0] != sources[0] and changed[1:] == sources[1:] and len(more) == 5


def test_thumbnails_are_not_uploaded_to_the_remote_copy(project):
    thumbnails = Thumbnails(project)
    assert all(thumbnails.sources(samples(project))) and any(thumbnails.folder.iterdir())
    assert not packs.stamps(project.cache)


def test_an_image_that_vanished_leaves_an_empty_place(project):
    before = samples(project)
    (project.dataset / "a.png").unlink()
    assert [bool(src) for src in Thumbnails(project).sources(before)] == [False, True, True, True]


def test_thumbnails_that_cannot_be_kept_are_shown_all_the_same(project):
    project.cache.mkdir(exist_ok=True)
    (project.cache / ".thumbnails").write_text("in the way")
    assert all(src.startswith("data:image/jpeg") for src in Thumbnails(project).sources(samples(project)))


def test_a_thumbnail_that_a_power_cut_emptied_is_made_again(project):
    sources = Thumbnails(project).sources(samples(project))
    for file in Thumbnails(project).folder.iterdir():
        file.write_bytes(b"")
    assert Thumbnails(project).sources(samples(project)) == sources

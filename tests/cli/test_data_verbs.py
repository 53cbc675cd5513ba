"""Images brought in, prepared and looked at in a terminal."""

import argparse
import shutil

import pytest
from PIL import Image

from lorakit.cli import data
from lorakit.config import ConfigError
from lorakit.demo import DATASET
from lorakit.prepare.crop import PrepareConfig, read_prepare_config
from lorakit.project import Project, ProjectError


@pytest.fixture
def call():
    """Runs a verb as the command line would."""
    parser = argparse.ArgumentParser()
    data.add(parser.add_subparsers(required=True))

    def call(*arguments) -> int:
        options = parser.parse_args([str(argument) for argument in arguments])
        return options.verb(options)

    return call


@pytest.fixture
def project(tmp_path, call, capsys):
    """A project with the first images of the demo, of 128 px."""
    for name in ("01.png", "01.txt", "02.png"):
        (tmp_path / "source").mkdir(exist_ok=True)
        shutil.copy(DATASET / "10_mofurin" / name, tmp_path / "source")
    (tmp_path / "source/notes.md").write_text("x")
    assert call("add", tmp_path / "project", tmp_path / "source", "--into", "mofu", "--repeats", 3) == 0
    return Project(tmp_path / "project")


def test_adding_tells_what_came_and_what_was_left_out(project, capsys):
    message = capsys.readouterr().out
    assert "notes.md: left out" in message and "dataset/3_mofu: 2 images added, 1 captions" in message
    assert sorted(p.name for p in (project.dataset / "3_mofu").iterdir()) == ["01.png", "01.txt", "02.png"]


def test_preparing_remembers_its_settings(project, call, capsys):
    assert call("prepare", project.folder, "--set", "prepare.pad=2x3", "--set", "prepare.duplicates=keep") == 0
    assert "--set data.folder=prepared" in capsys.readouterr().out
    assert Image.open(project.folder / "prepared/3_mofu/01.png").size == (128, 192)
    assert read_prepare_config(project) == PrepareConfig(pad="2x3", duplicates="keep")
    call("prepare", project.folder, "--set", "prepare.background=black", "--set", "prepare.resize=none")
    assert read_prepare_config(project) == PrepareConfig(
        pad="2x3", duplicates="keep", background="black", resize="none"
    )


def test_buckets_are_listed_with_cropped_and_enlarged_images(project, call, capsys):
    Image.new("RGB", (900, 360), "red").save(project.dataset / "3_mofu/wide.png")
    Image.new("RGB", (40, 40), "blue").save(project.dataset / "3_mofu/tiny.png")
    small = [f"--set=data.{name}" for name in ("resolution=128", "min_bucket_reso=64", "max_bucket_reso=256")]
    call("buckets", project.folder, *small)
    message = capsys.readouterr().out
    assert "  128 x 128       2 images      6 per epoch (with repeats)" in message
    assert message.index("128 x 128") < message.index("64 x 64"), "the fullest first"
    assert "tiny.png: enlarged x 1.60" in message and "wide.png: 17% lost to cropping" in message


def test_what_is_no_setting_and_no_project_is_refused(project, call):
    with pytest.raises(ConfigError, match="prepare.shape"):
        call("prepare", project.folder, "--set", "prepare.shape=1x1")
    with pytest.raises(ConfigError, match="datas"):
        call("buckets", project.folder, "--set", "datas.folder=x")
    with pytest.raises(ProjectError):
        call("buckets", project.folder / "none")

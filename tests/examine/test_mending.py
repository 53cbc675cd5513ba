"""The doctor's fixes: each mends what was found, changes no image and can be taken back, in the terminal too."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from spoiled import COUNT, DATA, EXAMPLES, Healthy, caption_encoding, foreign, make_image, unreadable

from lorakit.cli import examine
from lorakit.data import DataConfig
from lorakit.errors import UserError
from lorakit.examine import excluded
from lorakit.examine.checks import CHECKS
from lorakit.examine.fixes import FIXES, apply_fix
from lorakit.prepare.boxes import Boxes
from lorakit.tags.editor import CaptionEditor


@pytest.fixture
def healthy(tmp_path):
    return Healthy(tmp_path / "project")


def contents(folder: Path) -> dict[str, str]:
    """Path -> digest of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("kind", [kind for kind, check in CHECKS.items() if check.fix])
def test_a_fix_mends_changes_no_image_and_can_be_taken_back(kind, healthy, monkeypatch):
    EXAMPLES[kind](healthy, monkeypatch)
    before, config = contents(healthy.folder), DataConfig(**healthy.data)
    finding = healthy.examine().find(kind)
    answers = FIXES[finding.fix].answers
    done = apply_fix(healthy.project, config, finding, "cp1252" if answers else "")
    assert done.changed and not done.kept
    assert not healthy.examine().find(kind), "what was mended is found no more"
    held = Counter([*contents(healthy.folder).values(), *contents(healthy.project.folder / "set-aside").values()])
    images = Counter(digest for name, digest in before.items() if not name.endswith(".txt"))
    assert not images - held, "every image is still there, byte for byte"
    if excluded.batches(healthy.project):
        assert excluded.restore(healthy.project, excluded.batches(healthy.project)[-1]) == []
        assert not excluded.batches(healthy.project)
    elif finding.fix == "crop_borders":
        assert Boxes(healthy.project).undo()
    else:
        assert CaptionEditor(healthy.project, config).undo()
    after = contents(healthy.folder)
    if finding.fix != "write_captions":  # which leaves a caption file where none was
        assert {name: after[name] for name in before if not name.endswith(".txt")} == {
            name: digest for name, digest in before.items() if not name.endswith(".txt")
        }
    assert healthy.examine().find(kind)


def test_a_caption_in_another_encoding_is_saved_as_utf8_and_a_wrong_choice_changes_nothing(healthy):
    caption_encoding(healthy, None)
    config, finding, file = (
        DataConfig(**healthy.data),
        healthy.examine().find("caption-encoding"),
        healthy.folder / "03.txt",
    )
    before = file.read_bytes()
    with pytest.raises(UserError, match="cp1252"):
        apply_fix(healthy.project, config, finding)
    assert apply_fix(healthy.project, config, finding, "cp932").kept and file.read_bytes() == before
    assert not apply_fix(healthy.project, config, finding, "cp1252").kept
    assert file.read_text(encoding="utf-8") == "mofu, caf\u00e9"


@pytest.mark.parametrize(
    ("data", "meant", "text"),
    [
        ("mofu, é".encode(), "utf-8", "mofu, é"),  # "mofu, 茅" in GBK
        ("mofu, 猫".encode("gbk"), "gb18030", "mofu, 猫"),  # "mofu, è" in UTF-8
        ("mofu, é".encode("cp1252"), "cp1252", "mofu, é"),
    ],
)
def test_a_caption_that_can_be_read_in_two_ways_is_told_as_that_and_mended_for_good(healthy, data, meant, text):
    (healthy.folder / "03.txt").write_bytes(data)
    finding = healthy.examine().find("caption-encoding")
    assert f"{meant}: “{text}”" in finding.details["03.png"]
    apply_fix(healthy.project, DataConfig(**healthy.data), finding, meant)
    report = healthy.examine()
    assert not report.find("caption-encoding") and report.samples["03.png"].written == text


def test_nothing_is_overwritten_when_files_are_brought_back(healthy):
    unreadable(healthy, None)
    apply_fix(healthy.project, DataConfig(**healthy.data), healthy.examine().find("unreadable"))
    (batch,) = excluded.batches(healthy.project)
    assert batch.files == ("03.png", "04.png", "03.txt", "04.txt")
    healthy.add("03.png", make_image(50))
    now = (healthy.folder / "03.png").read_bytes()
    assert "03.png" in excluded.restore(healthy.project, batch)[0]
    assert (healthy.folder / "03.png").read_bytes() == now and batch.held("03.png").read_bytes() == b"no image"
    assert (healthy.folder / "04.png").read_bytes() == b"" and (healthy.folder / "03.txt").exists()


def test_what_else_lies_among_the_files_that_were_set_aside_is_not_lost(healthy):
    (healthy.folder / "record.json").write_text("[]")
    foreign(healthy, None)
    apply_fix(healthy.project, DataConfig(**healthy.data), healthy.examine().find("foreign"))
    (batch,) = excluded.batches(healthy.project)
    assert set(batch.files) == {"record.json", "notes.psd"}
    batch.held("mine.txt").write_text("a person's own")
    outside = json.loads((batch.folder / "record.json").read_text())
    outside["files"] += ["../escaped.png", str(healthy.project.folder / "x.png")]
    (batch.folder / "record.json").write_text(json.dumps(outside))
    assert excluded.batches(healthy.project)[0].files == batch.files
    assert excluded.restore(healthy.project, batch) == [] and not excluded.batches(healthy.project)
    assert batch.held("mine.txt").exists() and (healthy.folder / "record.json").read_text() == "[]"


def test_a_caption_stays_with_the_image_that_shares_it(healthy):
    (healthy.folder / "03.webp").write_bytes(b"broken")
    apply_fix(healthy.project, DataConfig(**healthy.data), healthy.examine().find("unreadable"))
    assert (healthy.folder / "03.txt").exists() and not (healthy.folder / "03.webp").exists()


def test_the_last_images_and_prepared_copies_are_not_set_aside(healthy):
    healthy.data["resolution"] = 1024
    healthy.data["max_bucket_reso"] = 1024
    finding = healthy.examine().find("small")
    assert len(finding.images) == COUNT
    with pytest.raises(UserError, match="nothing would be left"):
        apply_fix(healthy.project, DataConfig(**healthy.data), finding)
    shutil.copytree(healthy.folder, healthy.project.folder / "prepared")
    with pytest.raises(UserError, match="copies"):
        apply_fix(healthy.project, DataConfig(**{**healthy.data, "folder": "prepared"}), finding)


@pytest.mark.parametrize("folder", ["prepared/", "./prepared", "absolute"])
def test_prepared_copies_are_not_mended_however_their_folder_is_spelled(healthy, folder):
    shutil.copytree(healthy.folder, healthy.project.folder / "prepared")
    shutil.copy(healthy.folder / "03.png", healthy.project.folder / "prepared" / "copy.png")
    spelled = str((healthy.project.folder / "prepared").resolve()) if folder == "absolute" else folder
    healthy.data["folder"] = spelled
    with pytest.raises(UserError, match="copies"):
        apply_fix(healthy.project, DataConfig(**healthy.data), healthy.examine().find("duplicates"))


def test_a_caption_file_named_in_capitals_is_what_is_saved_as_utf8_and_never_its_image(healthy):
    small = healthy.folder / "03.png"
    Image.new("L", (2, 2), 200).save(small)  # its bytes are text in some encodings
    before = small.read_bytes()
    before.decode("cp1251")
    (healthy.folder / "03.txt").unlink()
    (healthy.folder / "03.TXT").write_bytes("mofu, caf\u00e9".encode("latin-1"))
    finding = healthy.examine().find("caption-encoding")
    assert apply_fix(healthy.project, DataConfig(**healthy.data), finding, "cp1251").changed == 1
    assert small.read_bytes() == before and "mofu" in (healthy.folder / "03.TXT").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["caption-encoding", "unreadable", "duplicates", "borders"])
def test_what_changed_since_the_report_is_not_mended_by_it(kind, healthy, monkeypatch):
    EXAMPLES[kind](healthy, monkeypatch)
    finding = healthy.examine().find(kind)
    for seed, name in enumerate(finding.images):
        make_image(90 + seed).save(healthy.folder / name)
        (healthy.folder / name).with_suffix(".txt").write_text("mofu, \u732b, caf\u00e9", encoding="utf-8")
    before = contents(healthy.folder)
    done = apply_fix(
        healthy.project, DataConfig(**healthy.data), finding, "cp1251" if kind == "caption-encoding" else ""
    )
    assert done.changed == 0 and contents(healthy.folder) == before and not Boxes(healthy.project).names()


@pytest.mark.parametrize("kind", ["caption-encoding", "unreadable", "borders"])
def test_a_full_disk_is_told_and_nothing_is_lost(kind, healthy, monkeypatch):
    EXAMPLES[kind](healthy, monkeypatch)
    finding, before = healthy.examine().find(kind), contents(healthy.folder)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="the disk is full"):
        apply_fix(healthy.project, DataConfig(**healthy.data), finding, "cp1252" if kind == "caption-encoding" else "")
    assert contents(healthy.folder) == before


# ---- the terminal ----------------------------------------------------------------------------------------------------


def terminal(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    examine.add(parser.add_subparsers())
    options = parser.parse_args(arguments)
    return options.verb(options)


def test_the_terminal_checks_mends_and_brings_back(healthy, capsys):
    unreadable(healthy, None)
    folder = str(healthy.project.folder)
    settings = [part for name, value in DATA.items() for part in ("--set", f"data.{name}={value}")]
    settings += ["--set", "model.source=demo"]
    assert terminal("check", folder, *settings) == 1
    assert "03.png" in (reported := capsys.readouterr().out) and f"lorakit data fix {folder} --set" in reported
    assert terminal("fix", folder, "unreadable", *settings) == 0
    assert terminal("check", folder, "--json", *settings) == 0
    report = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert [row["kind"] for row in report["findings"]] == ["few"] and report["numbers"]["images"] == 14
    with pytest.raises(UserError, match="no finding 'unreadable'.*none"):
        terminal("fix", folder, "unreadable", *settings)
    assert terminal("fix", folder, "restore") == 0 and terminal("fix", folder, "restore") == 0
    assert "No files are excluded" in capsys.readouterr().out and (healthy.folder / "03.png").exists()

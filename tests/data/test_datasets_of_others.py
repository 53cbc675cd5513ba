"""Datasets as other trainers lay them out: kohya's project, masks, tables of captions, image formats; a run that began
before sees what it saw."""

from __future__ import annotations

import json

import numpy as np
import pytest
from corpus import SMALL, WHOLE, encoded
from PIL import Image

from lorakit.data import DataConfig
from lorakit.data.images import ImageError, open_rgb
from lorakit.data.masks import learned_parts
from lorakit.data.scan import DataError, Scan, scan
from lorakit.run.resume import current_inputs


def scanned(root, files: dict[str, bytes | str], **settings) -> Scan:
    for name, data in files.items():
        path = root / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return scan(DataConfig(**settings), root)


def rows(found: Scan) -> dict[str, tuple]:
    return {s.name: (s.caption, s.repeats, s.is_reg) for s in found.samples}


@pytest.mark.parametrize(("img", "reg"), [("img", "reg"), ("train_data", "reg_data"), ("Train", "regularization")])
def test_a_whole_project_of_kohyas_keeps_repeats_classes_and_regularization_images(img, reg, tmp_path):
    files = {f"{img}/10_mofu/a.png": SMALL, f"{img}/3_white_cat/b.png": SMALL, f"{reg}/1_girl/c.png": SMALL}
    found = scanned(tmp_path, {**files, "log/x/e.tfevents": b"x", "model/last.safetensors": b"x"})
    assert rows(found) == {
        f"{img}/10_mofu/a.png": ("mofu", 10, False),
        f"{img}/3_white_cat/b.png": ("white cat", 3, False),
        f"{reg}/1_girl/c.png": ("girl", 1, True),
    }
    kinds = {note.kind for note in found.notes}
    assert kinds == {"no caption", "project folder"}
    # as before: every image once, none of them regularization, but for reg/
    before = rows(scan(DataConfig(reading=1), tmp_path))
    assert before[f"{img}/10_mofu/a.png"] == ("", 1, False)
    assert before[f"{reg}/1_girl/c.png"][2] is (reg == "reg")


def test_concept_folders_that_lie_too_deep_are_named(tmp_path):
    found = scanned(tmp_path, {"a.png": SMALL, "x/y/5_mofu/b.png": SMALL})
    assert [note.name for note in found.notes if note.kind == "deep folder"] == ["x/y/5_mofu"]


def test_each_concept_folder_may_have_its_own_trigger(tmp_path):
    files = {"5_mofu/a.png": SMALL, "5_mofu/a.txt": "hat", "2_rin/b.png": SMALL, "2_rin/b.txt": "[trigger] smiles"}
    found = scanned(tmp_path, files, trigger="mofu", triggers={"2_rin": "rin"})
    assert [(s.caption, s.trigger) for s in found.samples] == [("rin smiles", "rin"), ("mofu, hat", "mofu")]


# ---- masks -----------------------------------------------------------------------------------------------------------

HALF = encoded(Image.fromarray(np.repeat(np.array([[0] * 8 + [255] * 8], np.uint8), 12, axis=0)))
IMAGE = encoded(Image.new("RGB", (16, 12), "red"))


@pytest.mark.parametrize(
    "name", ["a-masklabel.png", "a_mask.png", "A-MASK.PNG", "mask/a.png", "masks/a.jpg", "masks/a_mask.png"]
)
@pytest.mark.parametrize("folder", ["", "3_mofu/"])
def test_a_mask_is_never_an_image_and_the_images_loss_mask_where_that_is_wanted(name, folder, tmp_path):
    image = "A.png" if name[0] == "A" else "a.png"
    files = {f"{folder}{image}": IMAGE, f"{folder}{name}": HALF}
    left = scanned(tmp_path, files)
    assert [(s.name, s.mask) for s in left.samples] == [(f"{folder}{image}", None)]
    assert [note.name for note in left.notes if note.kind == "mask"] == [f"{folder}{name}"]
    (sample,) = scan(DataConfig(alpha_mask=True), tmp_path).samples
    learned = np.asarray(learned_parts(sample.path, sample.mask))
    assert learned.shape == (12, 16) and (learned[:, :8] == 0).all() and (learned[:, 8:] == 255).all()
    used = scan(DataConfig(alpha_mask=True), tmp_path)
    assert not [note for note in used.notes if note.kind == "mask"]
    config = type("Config", (), {"stages": (), "__dataclass_fields__": {}})()
    assert ", mask " in current_inputs(config, [used], {}, "fp32")["data"][sample.name]
    # as before: trained as an image, but for folders in kohya's folders
    assert len(scan(DataConfig(reading=1), tmp_path).samples) == 2 - bool(folder and "/" in name)


def test_what_only_sounds_like_a_mask_is_an_image(tmp_path):
    files = dict.fromkeys(("iron_mask.png", "b.png", "b_mask.png", "c-condlabel.png"), IMAGE)
    found = scanned(tmp_path, {**files, "b_mask.txt": "a mask"})
    assert [sample.name for sample in found.samples] == ["b.png", "b_mask.png", "iron_mask.png"]
    assert [note.name for note in found.notes if note.kind == "mask"] == ["c-condlabel.png"]


def test_a_mask_times_transparency_and_of_any_size_and_a_broken_one_is_named(tmp_path):
    alpha = Image.new("RGBA", (16, 12), (255, 0, 0, 255))
    alpha.paste((0, 0, 0, 0), (8, 0, 16, 6))
    small = encoded(open_rgb(HALF).resize((4, 3)))
    files = {"a.png": encoded(alpha), "a-masklabel.png": small, "b.png": IMAGE, "b-masklabel.png": b"no image"}
    found = scanned(tmp_path, files, alpha_mask=True)
    first, second = found.samples
    learned = np.asarray(learned_parts(first.path, first.mask))
    assert learned[0, 15] == 0 and learned[11, 15] == 255 and learned[11, 0] == 0
    assert second.mask is None and [note.name for note in found.notes if note.kind == "mask"] == ["b-masklabel.png"]


# ---- captions of many images, and of one -----------------------------------------------------------------------------

TABLES = {
    "metadata.jsonl": '{"file_name": "a.png", "text": "mofu, hat"}\n{"file_name": "b.png", "caption": "b"}\n',
    "metadata.csv": '\ufefffile_name,text\na.png,"mofu, hat"\nb.png,b\n',
    "captions.jsonl": '{"image": "x/a.png", "tags": ["mofu", "hat"]}\n{"image": "b", "text": "b", "caption": "b"}\n',
    "captions.json": json.dumps({"a": {"tags": ["mofu", "hat"]}, "b.png": {"text": "b"}}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_captions_are_read(name, tmp_path):
    found = scanned(tmp_path, {"a.png": SMALL, "b.png": SMALL, name: TABLES[name]})
    assert [sample.written for sample in found.samples] == ["mofu, hat", "b"] and not found.notes


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ({"caption": "mofu, hat"}, "mofu, hat"),
        ({"text": "mofu", "caption": "hat"}, "hat"),
        ({"tags": ["mofu", "hat"], "meta": {"trigger": "mofu"}}, "mofu, hat"),
        ({"tags": "mofu, hat", "caption": "A hat."}, "A hat., mofu, hat"),
        ("mofu", "mofu"),
        (["mofu", "hat"], "mofu, hat"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.png.json"])
def test_json_beside_an_image_is_its_caption(content, caption, name, tmp_path):
    found = scanned(tmp_path, {"a.png": SMALL, "b.png": SMALL, name: json.dumps(content)})
    assert [sample.written for sample in found.samples] == [caption, ""]
    assert [note.kind for note in found.notes] == ["no caption"]
    assert not any(sample.written for sample in scan(DataConfig(reading=1), tmp_path).samples if content != "mofu")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"count": "1girl", "nl": "She stands."}'),
        ("a.png.json", '{"tag_string": "1girl smile"}'),
        ("a.json", '{"caption": "x"'),
        ("metadata.jsonl", '{"file_name": "a.png", "words": "x"}\n'),
        ("metadata.csv", "id;words\n1;x\n"),
        ("captions.json", '{"a.png": {"words": "x"}}'),
        ("captions.json", "[1"),
    ],
)
def test_captions_that_are_not_understood_are_an_error_with_what_would_be(name, content, tmp_path):
    found = scanned(tmp_path, {"a.png": SMALL, name: content})
    (note,) = [note for note in found.notes if note.kind == "unread captions"]
    assert note.name == name and found.samples[0].written == ""


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_gif_tiff_and_jfif_are_images_and_heic_and_jpeg_xl_are_named_with_how_to_convert_them(tmp_path):
    files = {"a.gif": WHOLE["GIF"], "b.tiff": WHOLE["TIFF"], "c.jfif": WHOLE["JPEG"], "d.heic": b"x", "e.jxl": b"x"}
    found = scanned(tmp_path, {**files, "f.jpg": b"\0\0\0\x18ftypheic" + bytes(40)})
    assert [sample.name for sample in found.samples] == ["a.gif", "b.tiff", "c.jfif"]
    noted = {note.name: note.text for note in found.notes if note.kind in ("unread format", "unreadable")}
    assert set(noted) == {"d.heic", "e.jxl", "f.jpg"} and all("convert it to PNG" in text for text in noted.values())
    with pytest.raises(ImageError, match="it is HEIC: convert"):
        open_rgb(tmp_path / "dataset" / "f.jpg")
    with pytest.raises(DataError):
        scan(DataConfig(reading=1), tmp_path)

"""Preparing: copies as they are to be trained; no work of a person is lost, and cut anywhere it ends the same."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from remotes import content

from lorakit.config import ConfigError
from lorakit.data import DataConfig
from lorakit.data.scan import DataError, Note, scan
from lorakit.files.disk import DiskFull
from lorakit.prepare.boxes import Box, BoxError, Boxes
from lorakit.prepare.copies import Copies
from lorakit.prepare.crop import (
    FOLDER,
    PrepareConfig,
    PrepareError,
    prepare,
    prepare_image,
    read_prepare_config,
    write_prepare_config,
)
from lorakit.project import Project

DATA = DataConfig(trigger="mofu")
PLAIN = PrepareConfig(resize="none", duplicates="keep")


def make_image(width: int, height: int, seed: int = 0, **kind) -> Image.Image:
    """An image that looks like no other of another seed."""
    made = Image.new("RGB", (width, height), (40 * seed % 256, 90, 200))
    draw = ImageDraw.Draw(made)
    for i in range(6):
        place = [(seed * 37 + i * 53) % width, (seed * 71 + i * 29) % height]
        draw.ellipse([*place, place[0] + width // 3, place[1] + height // 3], fill=(i * 40, seed * 60 % 256, 80))
    return made


@pytest.fixture
def project(tmp_path):
    """Three images in a concept folder, one of them a JPEG, and a regularization image."""
    made = Project(tmp_path / "project")
    for name, seed in (("3_mofu/a.png", 1), ("3_mofu/b.jpg", 2), ("3_mofu/c.webp", 3), ("reg/1_girl/r.png", 4)):
        file = made.dataset / name
        file.parent.mkdir(parents=True, exist_ok=True)
        make_image(96, 64, seed).save(file)
        file.with_suffix(".txt").write_text(f"mofu, {file.stem}\n", encoding="utf-8")
    return made


def notes(events) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for event in events:
        if isinstance(event, Note):
            found.setdefault(event.kind, []).append(str(event))
    return found


def there(project) -> dict[str, bytes]:
    return content(project.folder / FOLDER)


def opened(project, name: str) -> Image.Image:
    return Image.open(project.folder / FOLDER / name)


# ---- one image -----------------------------------------------------------------------------------------------------


def png(folder: Path, image: Image.Image) -> Path:
    image.save(folder / "x.png")
    return folder / "x.png"


def test_without_settings_the_pixels_are_those_of_the_file(tmp_path):
    image = make_image(50, 30)
    assert prepare_image(png(tmp_path, image), None, PLAIN).tobytes() == image.tobytes()


def test_a_box_cuts_out_what_is_in_it_and_is_clipped_at_the_edges(tmp_path):
    image = make_image(50, 30)
    made = prepare_image(png(tmp_path, image), Box(40, -5, 30, 20), PLAIN)
    assert made.tobytes() == image.crop((40, 0, 50, 15)).tobytes()


@pytest.mark.parametrize("box", [Box(60, 0, 20, 20), Box(0, 0, 7, 20), Box(45, 0, 20, 20), Box(5, 5, -9, 9)])
def test_a_box_with_next_to_nothing_inside_the_image_is_refused_with_a_sentence(tmp_path, box):
    with pytest.raises(BoxError, match="50 x 30 px: draw it again"):
        prepare_image(png(tmp_path, make_image(50, 30)), box, PLAIN)


@pytest.mark.parametrize("size, shape, wanted", [
    ((50, 30), "1x1", (50, 50)), ((30, 50), "1x1", (50, 50)), ((40, 40), "1x1", (40, 40)),
    ((60, 30), "2x3", (60, 90)), ((10, 90), "2x3", (60, 90)), ((31, 20), "16x9", (36, 20)),
])  # fmt: skip
def test_padding_fills_up_to_the_shape_in_the_colour_and_cuts_nothing(tmp_path, size, shape, wanted):
    image = make_image(*size)
    made = prepare_image(png(tmp_path, image), None, replace(PLAIN, pad=shape, background="#102030"))
    left, top = (made.width - size[0]) // 2, (made.height - size[1]) // 2
    assert made.size == wanted
    assert made.crop((left, top, left + size[0], top + size[1])).tobytes() == image.tobytes()
    corner = (0, 0) if wanted != size else None
    assert corner is None or made.getpixel(corner) == (0x10, 0x20, 0x30)


@pytest.mark.parametrize("how, size, wanted", [
    ("longest", 100, (100, 50)), ("shortest", 100, (200, 100)), ("area", 100, (141, 71)), ("none", 100, (400, 200)),
    ("longest", 800, (400, 200)), ("area", 800, (400, 200)),
])  # fmt: skip
def test_resizing_shrinks_to_the_size_and_enlarges_only_when_asked(tmp_path, how, size, wanted):
    file = png(tmp_path, make_image(400, 200))
    assert prepare_image(file, None, replace(PLAIN, resize=how, size=size)).size == wanted
    if size == 800:
        larger = prepare_image(file, None, replace(PLAIN, resize=how, size=size, enlarge=True)).size
        assert larger == ((800, 400) if how == "longest" else (1131, 566))


def test_resizing_is_lanczos(tmp_path):
    image = make_image(400, 200)
    made = prepare_image(png(tmp_path, image), None, replace(PLAIN, resize="longest", size=100))
    assert made.tobytes() == image.resize((100, 50), Image.Resampling.LANCZOS).tobytes()


def test_transparency_is_laid_on_the_colour_or_kept_with_transparent_padding(tmp_path):
    image = make_image(40, 20)
    mask = Image.new("L", (40, 20), 0)
    mask.paste(255, (0, 0, 20, 20))
    image.putalpha(mask)
    file = png(tmp_path, image)
    flat = prepare_image(file, None, replace(PLAIN, background="red"))
    assert (
        flat.mode == "RGB"
        and flat.getpixel((30, 5)) == (255, 0, 0)
        and flat.getpixel((3, 3)) == image.getpixel((3, 3))[:3]
    )
    kept = prepare_image(file, None, replace(PLAIN, transparency="keep", pad="1x1"))
    assert kept.mode == "RGBA" and kept.size == (40, 40)
    assert kept.getchannel("A").getbbox() == (0, 10, 20, 30), "neither the hole nor the padding is trained"
    assert prepare_image(png(tmp_path, make_image(9, 9)), None, replace(PLAIN, transparency="keep")).mode == "RGB"


def test_an_image_held_upright_by_its_exif_is_cropped_upright(tmp_path):
    image, exif = make_image(40, 20), Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right when shown
    image.save(tmp_path / "x.png", exif=exif)
    made = prepare_image(tmp_path / "x.png", Box(0, 0, 20, 10), PLAIN)
    assert made.tobytes() == image.transpose(Image.Transpose.ROTATE_270).crop((0, 0, 20, 10)).tobytes()


def test_a_colour_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="'mauvish'"):
        PrepareConfig(background="mauvish")


# ---- all of them -----------------------------------------------------------------------------------------------------


def test_every_image_is_there_as_png_in_the_same_folders_with_its_caption_and_can_be_trained_on(project):
    events = list(prepare(project, DATA, PLAIN))
    names = {f"3_mofu/{stem}{end}" for stem in "abc" for end in (".png", ".txt")}
    assert set(there(project)) == names | {"reg/1_girl/r.png", "reg/1_girl/r.txt"}
    assert opened(project, "3_mofu/b.png").format == "PNG"
    assert events[-1].done == events[-1].total == 4 and not notes(events)
    before, after = scan(DATA, project.folder), scan(replace(DATA, folder=FOLDER), project.folder)
    assert [(s.caption, s.repeats, s.is_reg) for s in after.samples] == [
        (s.caption, s.repeats, s.is_reg) for s in before.samples
    ]


def test_the_originals_are_bit_for_bit_what_they_were(project):
    before = content(project.dataset)
    Boxes(project).add("3_mofu/a.png", Box(0, 0, 30, 30))
    list(prepare(project, DATA, PrepareConfig(pad="1x1", size=64)))
    assert content(project.dataset) == before


def test_again_nothing_is_written(project):
    list(prepare(project, DATA, PLAIN))
    stamps = {path: path.stat().st_mtime_ns for path in (project.folder / FOLDER).rglob("*")}
    events = list(prepare(project, replace(DATA, folder=FOLDER), PLAIN))  # also when the next run is to train on these
    assert {path: path.stat().st_mtime_ns for path in (project.folder / FOLDER).rglob("*")} == stamps
    assert events[0].done == 4 and not notes(events)


def test_only_what_changed_is_made_anew(project):
    list(prepare(project, DATA, PLAIN))
    stamps = {path: path.stat().st_mtime_ns for path in (project.folder / FOLDER).rglob("*.*")}
    make_image(96, 64, 9).save(project.dataset / "3_mofu/a.png")
    (project.dataset / "3_mofu/b.txt").write_text("mofu, corrected")
    Boxes(project).add("3_mofu/c.webp", Box(0, 0, 30, 20))
    list(prepare(project, DATA, PLAIN))
    changed = {path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {"a.png", "b.txt", "c.png"}
    assert opened(project, "3_mofu/c.png").size == (30, 20)
    assert there(project)["3_mofu/b.txt"] == b"mofu, corrected\n"


def test_what_is_no_longer_wanted_goes_with_its_folder(project):
    list(prepare(project, DATA, PLAIN))
    for file in [*(project.dataset / "reg").rglob("r.*"), project.dataset / "3_mofu/a.png"]:
        file.unlink()
    list(prepare(project, DATA, PLAIN))
    assert set(there(project)) == {f"3_mofu/{stem}{end}" for stem in "bc" for end in (".png", ".txt")}
    assert not (project.folder / FOLDER / "reg/1_girl").exists()


def test_captions_that_were_changed_there_are_kept_whatever_happens_to_the_original(project):
    list(prepare(project, DATA, PLAIN))
    mine = project.folder / FOLDER / "3_mofu/a.txt"
    mine.write_text("mofu, by hand")
    list(prepare(project, DATA, replace(PLAIN, pad="1x1")))
    assert mine.read_text() == "mofu, by hand" and opened(project, "3_mofu/a.png").size == (96, 96)
    (project.dataset / "3_mofu/a.txt").write_text("mofu, newer")
    assert "a.txt" in notes(prepare(project, DATA, PLAIN))["kept"][0]
    assert "kept" not in notes(prepare(project, DATA, PLAIN)), "told once"
    (project.dataset / "3_mofu/a.png").unlink()
    assert "no longer needed" in notes(prepare(project, DATA, PLAIN))["kept"][0]
    assert mine.read_text() == "mofu, by hand" and (project.folder / FOLDER / "3_mofu/a.png").exists()


def test_images_that_a_person_put_or_changed_there_are_kept(project):
    folder = project.folder / FOLDER / "3_mofu"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"mine")
    (folder / "other.png").write_bytes(b"mine too")
    assert "a.png" in notes(prepare(project, DATA, PLAIN))["kept"][0]
    (folder / "b.png").write_bytes(b"painted over")
    list(prepare(project, DATA, replace(PLAIN, pad="1x1")))
    found = {name: (folder / name).read_bytes() for name in ("a.png", "b.png", "other.png")}
    assert found == {"a.png": b"mine", "b.png": b"painted over", "other.png": b"mine too"}


def test_several_boxes_make_several_images_whose_names_do_not_collide(project):
    make_image(96, 64, 7).save(project.dataset / "3_mofu/a-2.png")
    make_image(96, 64, 8).save(project.dataset / "3_mofu/a.bmp")  # shares its caption with a.png
    Boxes(project).set("3_mofu/a.png", (Box(0, 0, 9, 9), Box(0, 0, 10, 10), Box(0, 0, 11, 11, "her face/left")))
    list(prepare(project, DATA, PLAIN))
    found = {name: opened(project, name).size for name in there(project) if name.endswith(".png")}
    small = {name: size for name, size in found.items() if size[0] < 20}
    assert sorted(small.values()) == [(9, 9), (10, 10), (11, 11)]
    assert found["3_mofu/a-her-face-left.png"] == (11, 11)
    assert found["3_mofu/a-2.png"] == (96, 64), "it keeps its name"
    assert len(found) == 5 + 3
    captions = {name: text for name, text in there(project).items() if name.startswith("3_mofu/a") and "txt" in name}
    assert len(captions) == 4 and set(captions.values()) == {b"mofu, a\n"}


def test_an_image_that_fails_is_named_and_the_rest_is_made(project):
    (project.dataset / "3_mofu/broken.png").write_bytes(b"\x89PNG no")
    Boxes(project).add("3_mofu/a.png", Box(500, 500, 50, 50))
    Boxes(project).add("3_mofu/gone.png", Box(0, 0, 50, 50))
    noted = notes(prepare(project, DATA, PLAIN))
    assert [line.partition(":")[0] for line in noted["unreadable"] + noted["failed"]] == [
        "3_mofu/broken.png", "3_mofu/a.png"]  # fmt: skip
    assert "gone.png" in noted["box"][0]
    assert {name for name in there(project) if "3_mofu" in name} == {
        f"3_mofu/{stem}{end}" for stem in "bc" for end in (".png", ".txt")
    }


def test_of_images_that_look_alike_the_largest_stays(project):
    pytest.importorskip("imagehash")
    large = make_image(96, 64, 1).resize((384, 256), Image.Resampling.LANCZOS)
    large.save(project.dataset / "3_mofu/large.png")
    large.resize((100, 67)).save(project.dataset / "3_mofu/small.jpg", quality=60)
    (project.dataset / "3_mofu/twin.png").write_bytes((project.dataset / "3_mofu/b.jpg").read_bytes())
    noted = notes(prepare(project, DATA, replace(PLAIN, duplicates="exact")))
    assert len(noted["duplicate"]) == 1 and "twin.png" in noted["duplicate"][0]
    noted = notes(prepare(project, DATA, replace(PLAIN, duplicates="near")))
    assert {line.partition(":")[0] for line in noted["duplicate"]} == {
        "3_mofu/a.png", "3_mofu/small.jpg", "3_mofu/twin.png"}  # fmt: skip
    assert "3_mofu/large.png" in there(project) and "3_mofu/small.png" not in there(project)


def test_the_same_drawing_in_other_colours_is_another_image(project):
    pytest.importorskip("imagehash")
    red, green, blue = Image.open(project.dataset / "3_mofu/a.png").split()
    Image.merge("RGB", (green, blue, red)).save(project.dataset / "3_mofu/other.png")
    assert not notes(prepare(project, DATA, replace(PLAIN, duplicates="near")))


def test_a_regularization_image_is_no_duplicate_of_a_training_image(project):
    (project.dataset / "reg/1_girl/a.png").write_bytes((project.dataset / "3_mofu/a.png").read_bytes())
    assert not notes(prepare(project, DATA, replace(PLAIN, duplicates="exact")))
    assert {"3_mofu/a.png", "reg/1_girl/a.png"} <= there(project).keys()


def test_an_image_with_a_box_stays_before_a_larger_one_without(project):
    make_image(96, 64, 1).save(project.dataset / "3_mofu/again.png")
    Boxes(project).add("3_mofu/again.png", Box(0, 0, 20, 20))
    [noted] = notes(prepare(project, DATA, replace(PLAIN, duplicates="exact")))["duplicate"]
    assert noted.startswith("3_mofu/a.png")


@pytest.mark.parametrize("after", range(1, 9))
def test_cut_anywhere_and_run_again_it_is_as_if_it_had_not_been_cut(project, monkeypatch, after):
    monkeypatch.setattr("lorakit.prepare.crop.AHEAD", 1)
    list(prepare(project, DATA, PLAIN))
    Boxes(project).add("3_mofu/a.png", Box(0, 0, 30, 30))
    (project.dataset / "3_mofu/b.txt").write_text("mofu, corrected")
    other = replace(PLAIN, pad="1x1")
    whole = Project(project.folder.with_name("whole"))
    import shutil

    shutil.copytree(project.folder, whole.folder)
    list(prepare(whole, DATA, other))
    _cut_at_write(project, other, after, monkeypatch)
    assert not notes(prepare(project, DATA, other))
    assert there(project) == there(whole)
    assert (project.folder / "prepared.jsonl").read_text().count("\n") == 8


def _cut_at_write(project, how, number, monkeypatch) -> None:
    """Prepare until the n-th file is about to be written, whose line is in the record already."""
    from lorakit.prepare import copies

    count, write = iter(range(1, 99)), copies.write_atomic

    def cut(path, data):
        if next(count) == number:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(copies, "write_atomic", cut)
    try:
        list(prepare(project, DATA, how))
    except KeyboardInterrupt:
        pass
    monkeypatch.setattr(copies, "write_atomic", write)


def test_closed_between_two_images_it_goes_on(project, monkeypatch):
    monkeypatch.setattr("lorakit.prepare.crop.AHEAD", 1)
    running = prepare(project, DATA, PLAIN)
    next(running)
    next(running)
    running.close()
    events = list(prepare(project, DATA, PLAIN))
    assert 1 <= events[0].done < 4 and len(there(project)) == 8


def test_two_at_once_do_not_take_each_others_work_for_a_persons(project):
    first = prepare(project, DATA, PLAIN)
    next(event for event in first if not isinstance(event, Note))
    with pytest.raises(PrepareError, match="Another process"):
        list(prepare(project, DATA, replace(PLAIN, pad="1x1")))
    first.close()
    assert "kept" not in notes(prepare(project, DATA, replace(PLAIN, pad="1x1")))
    assert opened(project, "3_mofu/a.png").size == (96, 96)


def test_a_name_as_long_as_names_can_be_is_prepared_with_its_caption(project):
    for name in ("x" * 251, "\u732b" * 83):
        make_image(80, 60, len(name)).save(project.dataset / f"3_mofu/{name}.png")
        (project.dataset / f"3_mofu/{name}.txt").write_text("mofu", encoding="utf-8")
    assert notes(prepare(project, DATA, PLAIN)) == {}
    assert {f"3_mofu/{'x' * 251}.png", f"3_mofu/{'x' * 251}.txt", f"3_mofu/{chr(0x732B) * 83}.txt"} <= {*there(project)}


def test_a_torn_line_of_the_record_is_passed_over(project):
    list(prepare(project, DATA, PLAIN))
    record = project.folder / "prepared.jsonl"
    record.write_text(record.read_text() + '["3_mofu/x.p')
    list(prepare(project, DATA, replace(PLAIN, pad="1x1")))
    assert not notes(prepare(project, DATA, PLAIN)) and opened(project, "3_mofu/a.png").size == (96, 64)


def test_a_line_after_a_torn_one_is_a_line_of_its_own(tmp_path):
    (tmp_path / "record").write_text('["3_mofu/x.p')
    Copies(tmp_path / "copies", tmp_path / "record").write("a.png", b"a", "key")
    assert Copies(tmp_path / "copies", tmp_path / "record").state("a.png") == "made"


def test_captions_from_json_and_other_encodings_arrive_as_text_files(project):
    (project.dataset / "3_mofu/b.txt").unlink()
    (project.dataset / "captions.json").write_text('{"b": "from json"}')
    (project.dataset / "3_mofu/c.txt").write_bytes("mofu, 帽子".encode("utf-16"))
    list(prepare(project, DATA, PLAIN))
    assert there(project)["3_mofu/b.txt"] == b"from json\n"
    assert there(project)["3_mofu/c.txt"] == "mofu, 帽子\n".encode()


def test_a_full_disk_is_told_as_such(project, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lorakit.prepare.copies.write_atomic", full)
    with pytest.raises(DiskFull, match="originals are untouched"):
        list(prepare(project, DATA, PLAIN))


def test_without_images_that_is_said(tmp_path):
    with pytest.raises(DataError):
        list(prepare(Project(tmp_path), DATA, PLAIN))


def test_how_images_are_prepared_is_remembered(project):
    assert read_prepare_config(project) == PrepareConfig()
    write_prepare_config(project, replace(PLAIN, pad="3x4", background="black"))
    assert read_prepare_config(Project(project.folder)) == replace(PLAIN, pad="3x4", background="black")


# ---- the list of boxes -----------------------------------------------------------------------------------------------


def test_boxes_are_on_disk_at_once_and_the_last_change_can_be_taken_back_and_made_again(project):
    boxes = Boxes(project)
    boxes.add("a.png", Box(1, 2, 30, 40, "脸"))
    boxes.update({"a.png": (*boxes.of("a.png"), Box(0, 0, 9, 9)), "b.png": (Box(5, 5, 10, 10),)})
    assert Boxes(project).of("a.png") == (Box(1, 2, 30, 40, "脸"), Box(0, 0, 9, 9))
    assert Boxes(project).undo() == ["a.png", "b.png"]
    assert Boxes(project).names() == ["a.png"] and len(Boxes(project).of("a.png")) == 1
    assert Boxes(project).undo() == ["a.png", "b.png"] and Boxes(project).names() == ["a.png", "b.png"]
    Boxes(project).remove("b.png", 0)
    assert Boxes(project).names() == ["a.png"]


def test_a_box_that_cannot_be_written_is_told(project, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lorakit.prepare.boxes.write_atomic", full)
    with pytest.raises(BoxError, match="not saved"):
        Boxes(project).set("3_mofu/a.png", (Box(1, 2, 30, 40),))


def test_a_change_elsewhere_is_kept_by_the_next_one(project):
    one, two = Boxes(project), Boxes(project)
    one.add("a.png", Box(0, 0, 9, 9))
    two.add("b.png", Box(0, 0, 9, 9))
    assert Boxes(project).names() == ["a.png", "b.png"]


@pytest.mark.parametrize("text", [
    "[]", "a.png: 3", "a.png: [{left: 1}]", "a.png: [{left: 1, top: 1, width: 1.5, height: 2}]", "a: [", b"\xff\xfe",
    "a.png: [{left: 1, top: 1, width: 9, height: 9, colour: red}]",
])  # fmt: skip
def test_a_damaged_list_of_boxes_is_told_and_left_as_it_is(project, text):
    file = project.folder / "boxes.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((BoxError, ConfigError), match="boxes.yaml"):
        Boxes(project)
    assert file.read_bytes() == (text if isinstance(text, bytes) else text.encode())


def test_a_mask_goes_with_its_image_through_crop_and_padding_and_what_is_added_is_not_learned(tmp_path):
    project = Project(tmp_path / "p")
    project.dataset.mkdir(parents=True)
    make_image(40, 20).save(project.dataset / "a.png")
    mask = Image.new("L", (20, 10), 255)
    mask.paste(0, (0, 0, 10, 10))
    mask.save(project.dataset / "a-masklabel.png")
    Boxes(project).update({"a.png": (Box(10, 0, 20, 20),)})
    how = PrepareConfig(crop=True, pad="3x2", resize="none")
    list(prepare(project, DataConfig(alpha_mask=True), how))
    prepared = Image.open(project.folder / "prepared" / "a-masklabel.png")
    assert prepared.size == opened(project, "a.png").size == (30, 20) and prepared.mode == "L"
    # padded, masked, learned, padded
    assert [prepared.getpixel((x, 10)) for x in (2, 10, 20, 28)] == [0, 0, 255, 0]
    (sample,) = scan(DataConfig(folder="prepared", alpha_mask=True), project.folder).samples
    assert sample.mask and sample.mask.name == "a-masklabel.png"
    list(prepare(project, DataConfig(), how))
    assert not (project.folder / "prepared" / "a-masklabel.png").exists()

"""What an image is, measured once: right numbers, and never an old one for a file that has changed."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFilter

from lorakit.data import DataConfig, image_stats, measures
from lorakit.data.image_stats import ImageStats, StatsCache
from lorakit.data.scan import scan
from lorakit.files.disk import DiskError
from lorakit.randomness import rng


def drawing(seed: int, size: tuple[int, int] = (300, 200)) -> Image.Image:
    """Some shapes on a coloured ground."""
    random = rng("drawing", seed)
    image = Image.new("RGB", size, tuple(random.randbytes(3)))
    for _ in range(12):
        x, y = random.randrange(size[0]), random.randrange(size[1])
        box = (x, y, x + random.randrange(20, size[0] // 2), y + random.randrange(20, size[1] // 2))
        ImageDraw.Draw(image).ellipse(box, fill=tuple(random.randbytes(3)))
    return image


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    """Five images."""
    found = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(found):
        drawing(number).save(path)
    return found


@pytest.fixture
def settled(monkeypatch):
    """Files that were written a moment ago are remembered too, so that no test has to wait."""
    monkeypatch.setattr(image_stats, "SETTLED", -60)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the images that are read."""
    names, plain = [], Path.read_bytes

    def read_bytes(path):
        names.append(path.name)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    return names


def look(file: Path, paths: list[Path]) -> dict[str, ImageStats]:
    return {path.name: seen for path, seen in StatsCache(file).measure(paths)}


# ---- the memory --------------------------------------------------------------------------------------------------


def test_a_second_look_reads_only_what_changed(paths, tmp_path, settled, read):
    memory = tmp_path / ".looks.json"
    first = look(memory, paths)
    assert sorted(set(read) - {memory.name}) == [path.name for path in paths]
    drawing(9).save(paths[2])
    read.clear()
    second = look(memory, paths)
    assert [name for name in read if name != memory.name] == ["2.png"]
    assert {name for name in first if first[name] != second[name]} == {"2.png"}
    assert list(first) == list(second) == [path.name for path in paths]
    assert all(one.digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name, one in second.items())


def test_another_content_is_noticed_whatever_its_size_and_date(paths, tmp_path, settled):
    memory, path = tmp_path / ".looks.json", paths[0]
    path.write_bytes(path.read_bytes() + b"one")
    old, status = look(memory, [path])["0.png"], path.stat()
    path.write_bytes(path.read_bytes()[:-3] + b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = look(memory, [path])["0.png"]
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert changed.digest == hashlib.sha256(path.read_bytes()).hexdigest() != old.digest
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes()[:-3] + b"six")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert look(memory, [path])["0.png"].digest == hashlib.sha256(path.read_bytes()).hexdigest() != changed.digest


def test_a_file_that_was_written_a_moment_ago_is_read_again(paths, tmp_path, read):
    memory = tmp_path / ".looks.json"
    look(memory, paths)
    read.clear()
    look(memory, paths)
    assert sorted(set(read) - {memory.name}) == [path.name for path in paths]


def test_a_damaged_memory_is_made_anew(paths, tmp_path, settled):
    memory = tmp_path / ".looks.json"
    first = look(memory, paths)
    whole, random = memory.read_bytes(), rng("damage")
    assert json.loads(whole)["looks"]
    damaged = [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 99_999, whole[:-1], whole[: len(whole) // 2], whole * 2]
    for _ in range(60):
        place = random.randrange(len(whole))
        damaged.append(whole[:place] + bytes([random.choice(b"0123456789abcdef")]) + whole[place + 1 :])
    known = json.loads(whole)
    damaged += [json.dumps({**known, "looks": other}).encode() for other in ([], {"/x": 1}, None)]
    for data in damaged:
        memory.write_bytes(data)
        assert look(memory, paths) == first
        assert json.loads(memory.read_bytes())["looks"].keys() == known["looks"].keys()


def test_what_another_version_measured_is_measured_again(paths, tmp_path, settled, read, monkeypatch):
    memory = tmp_path / ".looks.json"
    monkeypatch.setattr(measures, "can_hash", lambda: False)
    assert {one.phash for one in look(memory, paths).values()} == {""}
    monkeypatch.undo()
    if measures.can_hash():
        assert "" not in {one.phash for one in look(memory, paths).values()}


def test_what_was_read_is_remembered_when_nobody_waits_for_the_rest(paths, tmp_path, settled, read):
    memory = tmp_path / ".looks.json"
    some = StatsCache(memory).measure(paths)
    first, _ = next(some)
    some.close()
    read.clear()
    look(memory, paths)
    assert first.name not in read


def test_files_that_are_gone_are_forgotten_and_others_kept(paths, tmp_path, settled):
    memory = tmp_path / ".looks.json"
    look(memory, paths)
    paths[0].unlink()
    drawing(7).save(paths[1])
    look(memory, paths[1:2])
    assert {Path(name).name for name in json.loads(memory.read_bytes())["looks"]} == {
        "1.png",
        "2.png",
        "3.png",
        "4.png",
    }


def test_a_memory_that_cannot_be_written_is_told_and_the_looks_are_right(paths, tmp_path, settled):
    (tmp_path / "file").write_text("x")
    unwritten = StatsCache(tmp_path / "file" / "looks.json")
    seen = dict(unwritten.measure(paths))
    assert all(one.digest and not one.error for one in seen.values())
    assert "cannot be written (File exists)" in unwritten.error


def test_a_scan_of_a_project_whose_cache_is_no_folder_says_so(tmp_path, settled):
    (tmp_path / "dataset").mkdir()
    drawing(1).save(tmp_path / "dataset" / "a.png")
    (tmp_path / "cache").write_text("no folder")
    found = scan(DataConfig(), tmp_path)
    assert len(found.samples) == 1
    assert [note.kind for note in found.notes] == ["no caption", "memory"]


def test_a_second_scan_finds_the_same_and_reads_no_image(tmp_path, settled, read):
    (tmp_path / "dataset").mkdir()
    for number in range(3):
        drawing(number).save(tmp_path / "dataset" / f"{number}.png")
    (tmp_path / "dataset" / "x.png").write_bytes(b"no image")
    first = scan(DataConfig(), tmp_path)
    read.clear()
    assert scan(DataConfig(), tmp_path) == first
    assert [name for name in read if name.endswith(".png")] == []


# ---- what is no image ------------------------------------------------------------------------------------------


def test_trouble_has_a_sentence_and_pipes_folders_and_enormous_files_are_not_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(10**12)
    (tmp_path / "text.png").write_text("text")
    names = ["pipe.png", "folder.png", "large.png", "text.png", "gone.png"]
    seen = look(tmp_path / ".looks.json", [tmp_path / name for name in names])
    assert [name for name in read if name != ".looks.json"] == ["text.png"]
    assert "a pipe" in seen["pipe.png"].error and "a folder" in seen["folder.png"].error
    assert "1000.0 GB" in seen["large.png"].error and "No such file" in seen["gone.png"].error
    assert seen["text.png"].digest == hashlib.sha256(b"text").hexdigest() and "no image" in seen["text.png"].error
    assert {one.width for one in seen.values()} == {0}


def test_what_could_not_be_read_is_tried_again_and_a_failing_disk_is_no_damaged_image(
    paths, tmp_path, settled, monkeypatch
):
    errors: dict[str, Exception] = {"0.png": PermissionError(13, "Permission denied"), "1.png": MemoryError()}
    plain = Path.read_bytes

    def read_bytes(path):
        if path.name in errors:
            raise errors[path.name]
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    seen = look(tmp_path / ".looks.json", paths[:2])
    assert "cannot be read (Permission denied)" in seen["0.png"].error and "memory" in seen["1.png"].error
    errors["0.png"] = OSError(5, "Input/output error")
    with pytest.raises(DiskError, match=r"0\.png .*input/output error"):
        look(tmp_path / ".looks.json", paths[:2])
    monkeypatch.undo()
    assert not any(one.error for one in look(tmp_path / ".looks.json", paths[:2]).values())


def test_large_images_are_decoded_one_after_the_other_and_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(image_stats, "LARGE_PIXELS", 100)
    monkeypatch.setattr(image_stats, "LARGE_BYTES", 100)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        drawing(number).save(path)
    assert all(one.width == 300 for one in look(tmp_path / "m", paths).values())


# ---- what is measured --------------------------------------------------------------------------------------------


def one(tmp_path, image: Image.Image, name: str = "a.png", **options) -> ImageStats:
    image.save(tmp_path / name, **options)
    return look(tmp_path / "memory", [tmp_path / name])[name]


def test_format_mode_size_and_alpha_are_those_of_the_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = one(tmp_path, drawing(1).convert("L"), "a.png", format="JPEG", exif=exif)
    assert (turned.format, turned.mode, turned.width, turned.height, turned.frames) == ("JPEG", "L", 200, 300, 1)
    opaque = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    assert not one(tmp_path, opaque, "b.png").has_alpha
    opaque.putpixel((3, 3), (0, 0, 0, 254))
    assert one(tmp_path, opaque, "c.png").has_alpha
    assert one(tmp_path, drawing(1), "d.webp", save_all=True, append_images=[drawing(2)]).frames == 2


@pytest.mark.skipif(not measures.can_hash(), reason="needs the ImageHash package")
def test_the_perceptual_hash_is_near_for_a_copy_and_far_for_another_image(tmp_path):
    def bits(a: ImageStats, b: ImageStats) -> int:
        return bin(int(a.phash, 16) ^ int(b.phash, 16)).count("1")

    first, second = one(tmp_path, drawing(1), "1.png"), one(tmp_path, drawing(2), "2.png")
    smaller = one(tmp_path, drawing(1).resize((150, 100), Image.Resampling.LANCZOS), "s.jpg", quality=60)
    assert len(first.phash) == 16 and bits(first, smaller) <= 6 and bits(first, second) >= 16


def test_a_blurred_image_is_less_sharp_at_every_size():
    for size in ((300, 200), (1500, 1000), (3000, 2000)):
        image = drawing(3, size).filter(ImageFilter.UnsharpMask)
        sharp, soft = (measures.sharpness(i) for i in (image, image.filter(ImageFilter.GaussianBlur(size[0] / 200))))
        assert sharp > 3 * soft > 0
    assert measures.sharpness(Image.new("RGB", (1, 50))) == 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("border", [(0, 30, 0, 30), (25, 0, 40, 0), (5, 6, 7, 8), (0, 0, 0, 0)])
def test_a_border_of_one_colour_is_found_to_the_pixel_or_nearly(kind, border):
    left, top, right, bottom = border
    whole = Image.new("RGB", (300 + left + right, 200 + top + bottom), "#f0f0f0")
    inside = Image.effect_noise((300, 200), 90).convert("RGB").point(lambda value: value // 3)
    whole.paste(inside, (left, top))
    file = io.BytesIO()
    whole.save(file, kind, quality=92)
    found, colour = measures.border(Image.open(file).convert("RGB"))
    assert all(abs(a - b) <= (0 if kind == "PNG" else 8) for a, b in zip(found, border, strict=True)), found
    assert (colour == "") == (not any(border)) and (kind == "JPEG" or colour in ("", "#f0f0f0"))


def test_an_image_of_one_colour_has_no_border():
    assert measures.border(Image.new("RGB", (50, 40), "red")) == ((0, 0, 0, 0), "")


@pytest.mark.parametrize("name", measures.COLOURS)
def test_a_colour_is_called_by_its_name_in_light_and_shade(name):
    plain = {"brown": "#6b4423", "grey": "#808080", "green": "#20a030", "pink": "#ff9ec8"}.get(name, name)
    image = Image.new("RGB", (90, 60), plain)
    assert measures.colours(image, None) == {name: 1.0}
    half = Image.new("L", (90, 60), 0)
    half.paste(255, (0, 0, 30, 60))
    image.paste("white" if name != "white" else "black", (30, 0, 90, 60))
    assert measures.colours(image, half) == {name: 1.0}, "transparent pixels are not counted"
    assert measures.colours(image, None)[name] == pytest.approx(1 / 3, abs=0.05)


def test_skin_is_none_of_the_colours():
    for skin in ("#ffe0bd", "#f1c27d", "#e0ac69"):
        assert set(measures.colours(Image.new("RGB", (9, 9), skin), None)) <= {"white", "brown"}, skin

"""What a folder of images becomes: every image used or named with the reason, and never a crash."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import pytest
from corpus import all_green
from PIL import Image, ImageCms

from lorakit.data import DataConfig
from lorakit.data.images import EXTENSIONS, ImageError, alpha_of, open_rgb, to_tensor
from lorakit.data.scan import DataError, Scan, scan
from lorakit.randomness import rng

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = encoded(Image.new("RGB", (40, 30), RED))


def laid_out(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def scanned(root: Path, files: dict[str, bytes | str], **settings) -> Scan:
    return scan(DataConfig(**settings), laid_out(root, files))


def noted(found: Scan) -> dict[str, tuple]:
    return {s.name: (s.caption, s.repeats, s.is_reg) for s in found.samples}


# ---- layouts -----------------------------------------------------------------------------------------------------


def test_kohyas_folders_give_repeats_names_and_regularization_images(tmp_path):
    files = {
        "3_mofu/a.png": PNG,
        "3_mofu/a.txt": "girl, hat",
        "10_red_scarf/b.png": PNG,
        "reg/2_girl/r.png": PNG,
    }
    found = scanned(tmp_path, files, trigger="mofu", repeats=7)
    assert noted(found) == {
        "10_red_scarf/b.png": ("mofu, red scarf", 10, False),
        "3_mofu/a.png": ("mofu, girl, hat", 3, False),
        "reg/2_girl/r.png": ("girl", 2, True),
    }
    assert [(note.kind, note.name) for note in found.notes] == [
        ("no caption", "10_red_scarf/b.png"),
        ("no caption", "reg/2_girl/r.png"),
    ]
    assert "'mofu, red scarf'" in found.notes[0].text and "as 'girl'" in found.notes[1].text


def test_a_date_before_a_folders_name_is_not_taken_for_repeats(tmp_path):
    found = scanned(tmp_path, {"20240131_beach/a.png": PNG, "99999999999999_sea/b.png": PNG}, repeats=3)
    assert {sample.name: sample.repeats for sample in found.samples} == {
        "20240131_beach/a.png": 3,
        "99999999999999_sea/b.png": 3,
    }
    found = scanned(tmp_path, {"10000_mofu/c.png": PNG}, repeats=3)
    assert {sample.name: sample.repeats for sample in found.samples} == {"10000_mofu/c.png": 10_000}
    assert {note.name for note in found.notes if note.kind == "overlooked folder"} == {
        "20240131_beach/",
        "99999999999999_sea/",
    }


def test_a_plain_folder_is_searched_in_depth_with_the_repeats_of_the_settings(tmp_path):
    files = {"a.png": PNG, "a.txt": "hat", "day/one/b.png": PNG, "reg/1_girl/r.png": PNG, "reg/1_girl/r.txt": "girl"}
    found = scanned(tmp_path, files, repeats=7)
    assert noted(found) == {
        "a.png": ("hat", 7, False),
        "day/one/b.png": ("", 7, False),
        "reg/1_girl/r.png": ("girl", 1, True),
    }


@pytest.mark.parametrize("name", ["extra.png", "more/b.png", "0_off/b.png", "3_mofu/deeper/b.png", "reg/b.png"])
def test_an_image_beside_kohyas_folders_is_not_used_in_silence(name, tmp_path):
    found = scanned(tmp_path, {"3_mofu/a.png": PNG, "3_mofu/a.txt": "hat", name: PNG})
    assert list(noted(found)) == ["3_mofu/a.png"]
    where = f"{name.rpartition('/')[0]}/" if "/" in name else "the data folder"
    (note,) = found.notes
    assert note.kind == "overlooked folder" and str(note).startswith(f"{where}: 1 images left out; ")


@pytest.mark.parametrize("layout", ["", "2_mofu/"])
def test_hidden_files_and_folders_are_skipped_and_counted(layout, tmp_path):
    files = {f"{layout}a.png": PNG, f"{layout}a.txt": "hat", f"{layout}._a.png": b"x"}
    found = scanned(tmp_path, {**files, f"{layout}.ipynb_checkpoints/a-checkpoint.png": PNG, ".hidden/b.png": PNG})
    (note,) = found.notes
    assert list(noted(found)) == [f"{layout}a.png"]
    assert (note.kind, note.text[:36]) == ("hidden", "3 hidden files and folders are skipp") and "._a.png" in note.text


def test_links_to_concept_folders_are_followed_and_others_told(tmp_path):
    far = laid_out(tmp_path / "far", {"a.png": PNG, "a.txt": "hat", "deeper/b.png": PNG}) / "dataset"
    root = laid_out(tmp_path, {"1_x/c.png": PNG, "1_x/c.txt": "cap"}) / "dataset"
    for name in ("3_mofu", "elsewhere"):
        (root / name).symlink_to(far)
    found = scan(DataConfig(), tmp_path)
    assert noted(found) == {"1_x/c.png": ("cap", 1, False), "3_mofu/a.png": ("hat", 3, False)}
    assert [(note.kind, note.name) for note in found.notes] == [("link", "elsewhere")]


def test_other_files_beside_kohyas_folders_are_counted(tmp_path):
    files = {"3_mofu/a.png": PNG, "3_mofu/a.txt": "hat", "readme.txt": "x", "b.txt": "x", "more/c.json": "{}"}
    notes = scanned(tmp_path, files).notes
    assert [(note.kind, note.name, note.text[:13]) for note in notes] == [
        ("overlooked folder", "the data folder", "2 other files"),
        ("overlooked folder", "more/", "1 other files"),
    ]


def test_images_with_their_captions_beside_kohyas_folders_are_one_note_with_both_counts(tmp_path):
    (note,) = scanned(tmp_path, {"3_mofu/a.png": PNG, "3_mofu/a.txt": "hat", "b.png": PNG, "b.txt": "x"}).notes
    assert str(note).startswith("the data folder: 1 images and 1 other files left out; ")


def test_folders_in_folders_without_end_are_survived(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "a.png").write_bytes(PNG)
    here = os.open(tmp_path / "dataset", os.O_RDONLY)
    for _ in range(1500):  # more than Python's stack has frames; their path is longer than the system takes
        os.mkdir("deep", dir_fd=here)
        last, here = here, os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(last)
    os.close(here)
    found = scan(DataConfig(), tmp_path)
    assert [sample.name for sample in found.samples] == ["a.png"]
    assert all(note.kind == "unreadable" and "name too long" in note.text for note in found.notes[1:])
    subprocess.run(["rm", "-rf", tmp_path / "dataset"], check=True)  # Python's own goes as deep as its stack


def test_the_order_and_the_digests_depend_on_names_and_bytes_alone(tmp_path):
    files = {f"2_x/{name}.png": encoded(Image.new("L", (9, 9), 7 * i)) for i, name in enumerate("cab")}
    one, two = scanned(tmp_path / "1", files), scanned(tmp_path / "2", dict(reversed(files.items())))
    told_of = [[(s.name, s.digest, s.width, s.height) for s in found.samples] for found in (one, two)]
    assert told_of[0] == told_of[1] and [s[0] for s in told_of[0]] == ["2_x/a.png", "2_x/b.png", "2_x/c.png"]
    assert len({s[1] for s in told_of[0]}) == 3
    laid_out(tmp_path / "2", {"2_x/a.png": PNG})
    assert scan(DataConfig(), tmp_path / "2").samples[0].digest != told_of[0][0][1]


def test_a_data_folder_may_lie_anywhere(tmp_path):
    laid_out(tmp_path / "elsewhere", {"a.png": PNG})
    assert len(scan(DataConfig(folder=str(tmp_path / "elsewhere/dataset")), tmp_path / "project").samples) == 1


def test_a_missing_an_empty_and_a_useless_folder_are_refused_with_the_reasons(tmp_path):
    with pytest.raises(DataError, match="dataset does not exist: put the images there or set data.folder"):
        scan(DataConfig(), tmp_path)
    with pytest.raises(DataError, match="No usable image in .*dataset: .png, .jpg"):
        scanned(tmp_path, {"a.txt": "hat"})
    with pytest.raises(DataError, match=r"all of its images \(1\) are left out.\nb.png: left out, the file is"):
        scanned(tmp_path, {"b.png": b"", "reg/1_girl/a.png": PNG})


def test_tags_are_counted_over_the_images_that_are_not_regularization(tmp_path):
    files = {
        "1_a/a.png": PNG,
        "1_a/a.txt": "A girl, in a hat, smiles. hat, red",
        "1_a/b.png": PNG,
        "1_a/b.txt": "red",
        "reg/1_g/c.png": PNG,
    }
    assert scanned(tmp_path, files).tag_frequency() == {"red": 2, "hat": 1}


# ---- files that cannot be used -----------------------------------------------------------------------------------

NOISE = Image.frombytes("RGB", (64, 64), rng("noise").randbytes(64 * 64 * 3))
WHOLE = {kind: encoded(NOISE, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")}
BROKEN = {f"half.{kind.lower()}": data[: len(data) // 2] for kind, data in WHOLE.items()}
BROKEN |= {f"head.{kind.lower()}": data[:20] for kind, data in WHOLE.items()}
BROKEN |= {
    "empty.png": b"",
    "page.jpg": b"<!DOCTYPE html><html>403</html>",
    "zeros.webp": bytes(999),
    "zip.png": b"PK\3\4",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_left_out_and_named_with_a_reason(name, tmp_path):
    found = scanned(tmp_path, {"a.png": PNG, "a.txt": "hat", name: BROKEN[name]})
    assert list(noted(found)) == ["a.png"]
    (note,) = found.notes
    assert note.kind == "unreadable"
    assert str(note).startswith(f"{name}: left out, ") and note.text.endswith(".") and "0x" not in note.text


@pytest.mark.parametrize("kind", WHOLE)
def test_an_image_damaged_anywhere_is_read_or_refused_and_never_a_crash(kind):
    random = rng("damage", kind)
    refused = 0
    for _ in range(150):
        data = bytearray(WHOLE[kind])
        for _ in range(random.choice((1, 3, 20))):
            data[random.randrange(random.choice((40, len(data))))] = random.randrange(256)
        try:
            assert open_rgb(bytes(data)).mode == "RGB"
        except ImageError:
            refused += 1
    assert refused > 5


def test_other_files_are_named_unless_they_belong_to_an_image(tmp_path):
    others = {"film.mp4": b"x", "a.psd": b"x", "b.mpg": PNG, "noextension": b"x"}
    found = scanned(tmp_path, {"a.png": PNG, "a.txt": "hat", **others})
    assert sorted(note.name for note in found.notes) == sorted(others)
    assert all(
        note.kind == "foreign" and note.text.startswith("left out, not an image (.png, ") for note in found.notes
    )


def test_a_link_to_nothing_a_folder_called_like_an_image_and_a_caption_folder_are_survived(tmp_path):
    root = laid_out(tmp_path, {"a.png": PNG, "b.png/c.png": PNG}) / "dataset"
    (root / "gone.png").symlink_to(root / "nowhere")
    (root / "a.txt").mkdir()
    found = scan(DataConfig(), tmp_path)
    assert list(noted(found)) == ["a.png", "b.png/c.png"]
    gone = "gone.png: left out, a link that cannot be followed (No such file or directory)."
    assert gone in map(str, found.notes) and "link" in [note.kind for note in found.notes]


def test_a_name_that_is_not_utf8_is_spelled_out(tmp_path):
    root = laid_out(tmp_path, {"a.png": PNG}) / "dataset"
    folder = os.fsencode(root) + b"/2_\x83\x8e"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    Path(os.fsdecode(folder), "b.png").write_bytes(PNG)
    (sample,) = scan(DataConfig(), tmp_path).samples
    assert (sample.name, sample.caption) == (r"2_\x83\x8e/b.png", r"\x83\x8e")
    assert open_rgb(sample.path).size == (40, 30)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_endings_count_in_either_case(extension, tmp_path):
    found = scanned(tmp_path, {f"a{extension}": PNG, f"B{extension.upper()}": PNG})
    assert len(found.samples) == 2


def test_images_that_share_a_caption_file_are_both_used_and_named(tmp_path):
    found = scanned(tmp_path, {"a.png": PNG, "a.jpg": PNG, "a.txt": "hat", "day/a.png": PNG, "day/a.txt": "cap"})
    assert {c for c, *_ in noted(found).values()} == {"hat", "cap"} and len(found.samples) == 3
    notes = {note.kind: str(note) for note in found.notes}
    assert notes["shared caption"] == "a.png: shares its caption file with a.jpg; rename one of them."
    assert set(notes) == {"shared caption", "wrong ending"}


# ---- captions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b"girl, hat", "girl, hat"),
        (b"\xef\xbb\xbfgirl, hat", "girl, hat"),
        (b" girl,\r\nhat \r\n\r\n", "girl, hat"),
        (b"girl\nhat\n", "girl, hat"),
        ("帽子, café".encode(), "帽子, café"),
        (b" \n\t", "my concept"),
        (b"", "my concept"),
    ],
)
def test_a_caption_is_one_line_without_byte_order_mark_and_an_empty_one_is_the_folders_name(content, caption, tmp_path):
    found = scanned(tmp_path, {"1_my_concept/a.b.png": PNG, "1_my_concept/a.b.txt": content})
    (sample,) = found.samples
    assert sample.caption == caption and sample.caption_file == sample.path.with_name("a.b.txt")
    assert sample.written == ("" if caption == "my concept" else caption) and sample.is_captioned == bool(
        sample.written
    )
    assert [note.kind for note in found.notes] == ["empty caption"] * (caption == "my concept")


@pytest.mark.parametrize("content", ["帽子".encode("gbk"), "café".encode("latin-1"), "girl".encode("utf-16")[:-1]])
def test_an_image_whose_caption_might_be_misread_is_left_out_with_what_to_do(content, tmp_path):
    found = scanned(tmp_path, {"a.png": PNG, "b.png": PNG, "b.txt": content, "a.txt": "hat"})
    assert list(noted(found)) == ["a.png"]
    (note,) = found.notes
    assert (note.kind, note.name) == ("caption encoding", "b.png")
    assert note.text.startswith("left out because of its caption file b.txt: it ") and "save it as UTF-8" in note.text


def test_tags_between_chinese_commas_are_told(tmp_path):
    captions = {"a.txt": "狐狸，红色".encode(), "b.txt": "狐狸, 红色".encode()}
    found = scanned(tmp_path, {"a.png": PNG, "b.png": PNG, **captions})
    assert list(map(str, found.notes)) == [
        "a.png: its caption has Chinese commas (， or 、); only ordinary ones (,) part tags."
    ]


def test_captions_have_the_ending_that_was_asked_for(tmp_path):
    files = {"a.png": PNG, "a.txt": "text", "a.caption": "caption", "b.png": PNG, "b.txt": "only"}
    found = scanned(tmp_path, {**files, "a.CAPTION": "loud"}, caption_extension=".caption")
    assert [sample.caption for sample in found.samples] == ["caption", "only"]
    assert [(note.kind, str(note)) for note in found.notes] == [
        ("caption choice", "a.CAPTION: left out, a.caption is read."),
        ("caption choice", "a.txt: left out, a.caption is read."),
        ("caption choice", "b.txt: is read, as there is no .caption file."),
    ]
    assert found.samples[1].caption_file.name == "b.caption"


# ---- every kind of image becomes upright RGB -------------------------------------------------------------------


def grey16() -> Image.Image:
    return Image.frombytes("I;16", (2, 1), (0x1234).to_bytes(2, "little") + (0xFFFF).to_bytes(2, "little"))


HALF_RED = (255, 127, 127)
KINDS = {
    "1 bit": (encoded(Image.new("1", (2, 1), 1)), (255, 255, 255)),
    "grey": (encoded(Image.new("L", (2, 1), 77)), (77, 77, 77)),
    "16 bit": (encoded(grey16()), (0x12, 0x12, 0x12)),
    "palette": (encoded(Image.new("RGB", (2, 1), GREEN).quantize(4)), GREEN),
    "palette, transparent": (encoded(Image.new("P", (2, 1), 0), transparency=0), (255, 255, 255)),
    "CMYK": (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), RED),
    "alpha": (encoded(Image.new("RGBA", (2, 1), (*RED, 128))), HALF_RED),
    "transparent": (encoded(Image.new("RGBA", (2, 1), (*BLUE, 0))), (255, 255, 255)),
    "grey and alpha": (encoded(Image.new("LA", (2, 1), (0, 0))), (255, 255, 255)),
    "one transparent colour": (encoded(Image.new("RGB", (2, 1), BLUE), transparency=BLUE), (255, 255, 255)),
    "moving png": (
        encoded(Image.new("RGB", (2, 1), RED), save_all=True, append_images=[Image.new("RGB", (2, 1))]),
        RED,
    ),
    "moving webp": (
        encoded(
            Image.new("RGB", (2, 1), RED),
            "WEBP",
            lossless=True,
            save_all=True,
            append_images=[Image.new("RGB", (2, 1))],
        ),
        RED,
    ),
}


@pytest.mark.parametrize(("data", "colour"), KINDS.values(), ids=KINDS)
def test_every_kind_of_image_becomes_rgb_on_white_its_first_frame(data, colour):
    image = open_rgb(data)
    assert image.mode == "RGB"
    assert all(abs(a - b) <= 1 for a, b in zip(image.getpixel((0, 0)), colour, strict=True)), image.getpixel((0, 0))


def test_cmyk_is_seen_by_its_profile_and_without_when_that_is_damaged():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = open_rgb(encoded(cmyk, "JPEG", icc_profile=all_green())).getpixel((8, 8))
    assert green > 90 > 2 * max(red, blue)
    plain = open_rgb(encoded(cmyk, "JPEG")).tobytes()
    assert open_rgb(encoded(cmyk, "JPEG", icc_profile=all_green()[:300])).tobytes() == plain
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_rgb(encoded(cmyk, "JPEG", icc_profile=srgb)).tobytes() == plain


@pytest.mark.parametrize(
    "name", ["alpha", "transparent", "grey and alpha", "palette, transparent", "one transparent colour"]
)
def test_transparency_is_laid_on_any_colour_and_told_by_itself(name):
    data, on_white = KINDS[name]
    alpha = alpha_of(data)
    assert (alpha.mode, alpha.size) == ("L", open_rgb(data).size)
    share = alpha.getpixel((0, 0)) / 255
    for background, colour in (("black", (0, 0, 0)), ("#204060", (32, 64, 96)), ("white", (255, 255, 255))):
        seen = open_rgb(data, background).getpixel((0, 0))
        expected = [a - (1 - share) * (255 - b) for a, b in zip(on_white, colour, strict=True)]
        assert all(abs(a - b) <= 2 for a, b in zip(seen, expected, strict=True)), (background, seen, expected)


@pytest.mark.parametrize("name", ["grey", "16 bit", "CMYK", "palette"])
def test_alpha_is_none_where_nothing_is_transparent(name):
    assert alpha_of(KINDS[name][0]) is None and alpha_of(encoded(Image.new("RGBA", (3, 2), (1, 2, 3, 255)))) is None


def test_alpha_stands_upright_as_its_image_does(tmp_path):
    exif, stored = Image.Exif(), Image.new("RGBA", (4, 2), (*RED, 255))
    exif[0x0112] = 6
    stored.putpixel((0, 1), (0, 0, 0, 0))  # bottom left becomes top left
    (tmp_path / "a.png").write_bytes(encoded(stored, exif=exif))
    assert alpha_of(tmp_path / "a.png").size == (2, 4) and alpha_of(tmp_path / "a.png").getpixel((0, 0)) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_stands_upright_as_its_exif_says(orientation, kind, tmp_path):
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste(RED, (0, 0, 24, 16))
    upright.paste(BLUE, (24, 0, 48, 16))
    turn = Image.Transpose  # what a camera held so stores: the inverse of what a viewer must do
    stored = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright.transpose(stored[orientation]) if orientation > 1 else upright
    data = encoded(image, kind, exif=exif, **({} if kind == "PNG" else {"quality": 95}))
    (sample,) = scanned(tmp_path, {"a.png": data}).samples
    assert (sample.width, sample.height) == (48, 32) == open_rgb(data).size
    for at, colour in (((8, 8), RED), ((40, 8), BLUE), ((8, 24), (255, 255, 255))):
        assert all(abs(a - b) < 40 for a, b in zip(open_rgb(data).getpixel(at), colour, strict=True)), at


def test_the_tensor_of_an_image_is_float32_channels_first_from_minus_one_to_one():
    image = Image.new("RGB", (3, 2), RED)
    image.putpixel((2, 0), (0, 51, 255))
    tensor = to_tensor(image)
    assert (tensor.shape, str(tensor.dtype)) == ((3, 2, 3), "torch.float32")
    assert tensor[:, 0, 0].tolist() == [1, -1, -1] and tensor[:, 0, 2].tolist() == pytest.approx([-1, -0.6, 1])

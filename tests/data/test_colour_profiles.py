"""Images are seen as people see them: colours by their profile, in every mode; without one nothing changes."""

from __future__ import annotations

import struct

import pytest
from corpus import encoded
from PIL import Image, ImageCms

from lorakit.data import DataConfig
from lorakit.data.feed import Feed
from lorakit.data.images import decoded, header, open_rgb, profile_of
from lorakit.data.scan import scan
from lorakit.prepare.crop import PrepareConfig, prepare_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """A profile in which red means green and green means red: sRGB with the two primaries exchanged."""
    data = bytearray(SRGB)
    (count,) = struct.unpack(">I", data[128:132])
    places = {bytes(data[at : at + 4]): at + 4 for at in range(132, 132 + 12 * count, 12)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    return bytes(data)


def grey(gamma: float) -> bytes:
    """A profile of grey whose light is the value to the power of gamma, as ICC.1:2010 lays one out."""
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16)
    head = bytearray(SRGB[:128])
    head[16:20], head[0:4] = b"GRAY", struct.pack(">I", 192)
    return bytes(head) + tags + white + curve


RED = (255, 0, 0)
MODES = {
    "RGB": Image.new("RGB", (4, 3), RED),
    "RGBA": Image.new("RGBA", (4, 3), (*RED, 255)),
    "P": Image.new("RGB", (4, 3), RED).quantize(4),
    "16 bit and alpha": Image.new("RGBA", (4, 3), (*RED, 128)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_of_a_profile_are_converted_in_every_mode_and_transparency_stays(mode, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(MODES[mode], kind, icc_profile=swapped(), **options)
    seen = open_rgb(data, "black").getpixel((1, 1))
    expected = (0, 128, 0) if "alpha" in mode else (0, 255, 0)
    assert all(abs(a - b) <= 3 for a, b in zip(seen, expected, strict=True)), seen
    assert "icc_profile" not in open_rgb(data).info
    assert profile_of(decoded(header(data)).image)[0]


@pytest.mark.parametrize("kind", ["L", "LA", "1", "I;16"])
def test_grey_of_a_profile_is_converted_too(kind):
    value = {"LA": (100, 255), "1": 1, "I;16": 100 * 256}.get(kind, 100)
    seen = open_rgb(encoded(Image.new(kind, (4, 3), value), icc_profile=grey(1.0))).getpixel((1, 1))
    # linear light of 100 / 255 is 168 in sRGB
    assert seen == (255, 255, 255) if kind == "1" else all(abs(one - 168) <= 2 for one in seen)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA"])
@pytest.mark.parametrize("profile", [None, SRGB, b"no profile", SRGB[:200], bytes(500)])
def test_without_a_profile_with_srgb_and_with_a_broken_one_no_byte_changes(mode, profile):
    image = Image.effect_noise((16, 12), 90).convert("RGB").convert(mode)
    data = encoded(image, icc_profile=profile) if profile else encoded(image)
    assert open_rgb(data).tobytes() == open_rgb(encoded(image)).tobytes() == open_rgb(data, by_profile=False).tobytes()
    assert bool(profile_of(decoded(header(data)).image)[1]) == (profile not in (None, SRGB))


def test_a_profile_is_named_and_makes_another_latent_but_not_in_a_run_that_began_before(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "a.png").write_bytes(encoded(MODES["RGB"], icc_profile=swapped()))
    (tmp_path / "dataset" / "b.png").write_bytes(encoded(MODES["RGB"], icc_profile=bytes(500)))
    found = scan(DataConfig(), tmp_path)
    assert [bool(sample.profile) for sample in found.samples] == [True, False]
    assert [note.name for note in found.notes if note.kind == "colour profile"] == ["b.png"]

    class Model:
        def image_key(self):
            return ("vae",)

    def place(config):
        sample = scan(config, tmp_path).samples[0]
        feed = Feed((sample,), config, Model(), tmp_path, seed=1, prior_loss_weight=1.0)
        return next(iter(feed.cached_images()))

    assert place(DataConfig()) != place(DataConfig(reading=1))


def test_prepared_copies_have_the_colours_that_are_trained(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(MODES["RGB"], icc_profile=swapped()))
    copy = prepare_image(tmp_path / "a.png", None, PrepareConfig(resize="none"))
    assert open_rgb(encoded(copy)).getpixel((0, 0)) == open_rgb(tmp_path / "a.png").getpixel((0, 0))


def test_lab_is_read():
    lab = Image.new("LAB", (4, 3), (255, 128, 128))
    assert open_rgb(encoded(lab, "TIFF")).getpixel((0, 0))[0] > 240

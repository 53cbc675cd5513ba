"""Reading one image file as upright RGB, and as the tensor that a VAE takes."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ExifTags, Image, ImageChops, ImageCms, UnidentifiedImageError

from lorakit.errors import UserError
from lorakit.files.disk import raise_if_failing, read_file

if TYPE_CHECKING:
    import torch

# what an image's name may end in, and the format that it then should have
ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".avif": "AVIF"}
# those that version 0.2 read
FIRST_EXTENSIONS = tuple(ENDINGS)
ENDINGS |= {".jfif": "JPEG", ".jpe": "JPEG", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".jp2": "JPEG2000"}
EXTENSIONS = tuple(ENDINGS)
# Formats of images that are not read, by the endings of their names and by the first bytes of their files.
UNREAD = {".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".jxl": "JPEG XL"}
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
# What the bytes may be, whatever the name says. Pillow knows more formats; some run other programs (EPS), and some
# have no mark of their own, so that anything might be taken for them (TGA).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "AVIF", "GIF", "TIFF", "JPEG2000")
# Pillow's own limit against decompression bombs; 1 GB while such an image is converted to RGB.
MAX_PIXELS = 89_478_485
# What Pillow's decoders raise for damaged files: each format has its own way to fail.
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    RuntimeError,
    TypeError,
    LookupError,
    ArithmeticError,
    struct.error,
)
BAD_PROFILE = (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError)  # what Pillow raises for one
# Profiles that differ by no more (of 255) are sRGB, as every program writes its own.
SAME_COLOUR = 4
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# EXIF orientation -> what brings the stored image upright; 1 is upright already.
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError):
    """A file cannot be used as an image; the message says what it is."""


@dataclass(frozen=True)
class Decoded:
    """A decoded file: its first frame, upright, in the mode in which it is stored."""

    image: Image.Image
    format: str  # one of FORMATS
    frames: int
    is_turned: bool  # it is stored in another way than it stands


def header(source: Path | bytes) -> Image.Image:
    """An image that is opened but not decoded, its dimensions known and small enough. Raises ImageError."""
    with _explained():
        # Read at once: Pillow's lazy file handle would stay open.
        data = source if isinstance(source, bytes) else read_file(source)
        if not data:
            raise ImageError("the file is empty")
        if "AVIF" not in _readable_formats() and data[4:12] in (b"ftypavif", b"ftypavis"):
            raise ImageError("it is AVIF, which Pillow reads from version 11.3 on: pip install -U pillow")
        if kind := _unread_format(data):
            raise ImageError(f"it is {kind}: {how_to_convert(kind)}")
        # Pillow checks the size against its own limit here, before any pixel is decoded.
        stored = Image.open(io.BytesIO(data), formats=_readable_formats())
        # Pillow only warns up to twice its limit.
        if stored.width * stored.height > MAX_PIXELS:
            raise Image.DecompressionBombError
    return stored


def how_to_convert(kind: str) -> str:
    """What to do with an image in a format of UNREAD."""
    tools = "a phone's or Mac's image viewer" if kind == "HEIC" else "djxl"
    return f"convert it to PNG or JPEG, e.g. with ImageMagick (magick a b.png) or {tools}"


def _unread_format(data: bytes) -> str:
    """The format of UNREAD that a file has by its first bytes, "" for none."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        # an AVIF file may name a general brand first
        return "" if b"avif" in data[8:64] else "HEIC"
    return "JPEG XL" if data.startswith(JXL_STARTS) else ""


def decoded(stored: Image.Image) -> Decoded:
    """The whole image of a header. Raises ImageError."""
    with _explained(), stored:
        stored.load()
        # a phone's JPEG with previews of itself (MPO) does not move
        kind, frames = ("JPEG", 1) if stored.format == "MPO" else (stored.format, getattr(stored, "n_frames", 1))
        turn = _turn(stored)
        upright = stored.copy() if turn is None else stored.transpose(turn)
        return Decoded(upright, kind, frames, is_turned=turn is not None)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn every error of Pillow for an unreadable file into ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("its content is no image that can be read (is it something else under this name?)") from None
    except TOO_LARGE:
        most = f"{MAX_PIXELS / 1e6:.0f} megapixels"
        raise ImageError(f"by its dimensions it has more than {most}, the most that is read: make it smaller") from None
    except DAMAGED as error:
        if isinstance(error, OSError):
            raise_if_failing(error)
        raise ImageError(f"not a readable image ({error})") from None


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads: AVIF came with 11.3."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings an image upright, as its EXIF says that it was held; None when it stands, or the EXIF is damaged."""
    try:
        return TURNED.get(image.getexif().get(ExifTags.Base.Orientation))
    except DAMAGED:
        return None


def flattened(image: Image.Image, background: str = "white", *, by_profile: bool = True) -> Image.Image:
    """Any image as RGB in sRGB, transparency laid on `background` (any colour that Pillow knows).

    by_profile   convert the colours of images with another colour profile; False: only those of CMYK images
    """
    if by_profile:
        image = _in_srgb(image)
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    # Also palette images with one transparent colour, which have no alpha channel.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    if image.mode == "CMYK" and "icc_profile" in image.info:
        # A damaged profile: colours as without one.
        with suppress(*BAD_PROFILE):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """A grey image of 16 bit, whatever its mode is called, in 8 bit."""
    return image.point(lambda value: value / 256).convert("L")


def profile_of(image: Image.Image) -> tuple[str, str]:
    """The name of the colour profile from which an image's colours are converted, "" for none or sRGB; and what is
    wrong with its profile, "" for nothing.
    """
    icc = image.info.get("icc_profile")
    if not icc:
        return "", ""
    if image.mode != "CMYK":
        _, name, problem = _to_srgb(icc, _colours(image))
        return name, problem
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(icc))
    except BAD_PROFILE:
        return "", "is broken"
    return "", ""


def _colours(image: Image.Image) -> str:
    """Pillow's mode of an image's colours alone, "L" or "RGB"."""
    return "L" if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I") else "RGB"


def _in_srgb(image: Image.Image) -> Image.Image:
    """The image with its colours in sRGB and without a profile; the same where its profile is none, sRGB or broken."""
    icc = image.info.get("icc_profile")
    transform = _to_srgb(icc, _colours(image))[0] if icc and image.mode not in ("CMYK", "LAB") else None
    if transform is None:
        return image
    alpha = transparency(image)
    plain = _eight_bit(image) if image.mode.startswith("I") else image
    converted = ImageCms.applyTransform(plain.convert(transform.input_mode), transform)
    converted.info.pop("icc_profile", None)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@functools.lru_cache(maxsize=16)
def _to_srgb(icc: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str, str]:
    """What converts colours of `mode` ("L", "RGB") with a profile to sRGB (relative colorimetric), None when they are
    sRGB; the profile's name; and what is wrong with it.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        space = profile.profile.xcolor_space.strip()
        if space not in ("RGB", "GRAY") or (space == "GRAY" and mode == "RGB"):
            return None, "", f"is for {space} colours"
        # a grey image may have the profile of the colour space that it came from
        mode = "L" if space == "GRAY" else "RGB"
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", intent)
        name = ImageCms.getProfileDescription(profile).strip() or "a profile without a name"
    except BAD_PROFILE:
        return None, "", "is broken"
    # the corners and the inside of the cube of all colours, as one image
    levels = range(0, 256, 51)
    colours = bytes(value for r in levels for g in levels for b in levels for value in (r, g, b))
    probe = Image.frombytes("RGB", (len(colours) // 3, 1), colours) if mode == "RGB" else None
    probe = probe or Image.frombytes("L", (256, 1), bytes(range(256)))
    apart = ImageChops.difference(ImageCms.applyTransform(probe, transform), probe.convert("RGB"))
    is_srgb = max(high for _, high in apart.getextrema()) <= SAME_COLOUR
    return (None, "", "") if is_srgb else (transform, name, "")


def transparency(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel is (mode L, 0 transparent to 255); None when nothing is transparent."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    # Many PNGs have an alpha channel that is opaque everywhere.
    return None if alpha.getextrema()[0] == 255 else alpha


def open_rgb(source: Path | bytes, background: str = "white", *, by_profile: bool = True) -> Image.Image:
    """The image, upright (EXIF), RGB in sRGB (see `flattened`), transparency on `background` (any colour that Pillow
    knows, such as "#rrggbb"); of an animation the first frame. Raises ImageError for what is not a whole image.
    """
    return flattened(decoded(header(source)).image, background, by_profile=by_profile)


def alpha_of(source: Path | bytes) -> Image.Image | None:
    """How opaque each pixel is (mode L, 0 transparent to 255), upright; None when nothing is transparent.

    Raises ImageError as open_rgb does.
    """
    return transparency(decoded(header(source)).image)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """float32 [3, height, width] in -1..1."""
    import numpy as np
    import torch

    pixels = np.asarray(image, dtype=np.float32) / 127.5 - 1.0
    # transpose only changes strides; copy makes the tensor contiguous.
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

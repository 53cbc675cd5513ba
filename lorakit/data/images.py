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

from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from lorakit.errors import UserError

if TYPE_CHECKING:
    import torch

# what an image's name may end in, and the format that it then should have
ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".avif": "AVIF"}
EXTENSIONS = tuple(ENDINGS)
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


def header(source: Path | bytes) -> Image.Image:
    """An image that is opened but not decoded, its dimensions known and small enough. Raises ImageError."""
    with _explained():
        # Read at once: Pillow's lazy file handle would stay open.
        data = source if isinstance(source, bytes) else source.read_bytes()
        if not data:
            raise ImageError("the file is empty")
        if "AVIF" not in _readable_formats() and data[4:12] in (b"ftypavif", b"ftypavis"):
            raise ImageError("it is AVIF, which Pillow reads from version 11.3 on: pip install -U pillow")
        # Pillow checks the size against its own limit here, before any pixel is decoded.
        stored = Image.open(io.BytesIO(data), formats=_readable_formats())
        # Pillow only warns up to twice its limit.
        if stored.width * stored.height > MAX_PIXELS:
            raise Image.DecompressionBombError
    return stored


def decoded(stored: Image.Image) -> Decoded:
    """The whole image of a header. Raises ImageError."""
    with _explained(), stored:
        stored.load()
        # a phone's JPEG with previews of itself (MPO) does not move
        kind, frames = ("JPEG", 1) if stored.format == "MPO" else (stored.format, getattr(stored, "n_frames", 1))
        return Decoded(_upright(stored), kind, frames)


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
        raise ImageError(f"not a readable image ({error})") from None


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads: AVIF came with 11.3."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    """The image rotated as its EXIF orientation says; unchanged if that is missing or damaged."""
    try:
        turn = TURNED.get(image.getexif().get(ExifTags.Base.Orientation))
    except DAMAGED:
        turn = None
    return image.copy() if turn is None else image.transpose(turn)


def flattened(image: Image.Image, background: str = "white") -> Image.Image:
    """Any image as RGB, transparency laid on `background` (any colour that Pillow knows)."""
    # 16-bit grey ("I;16", "I"): convert("L") would clip all values above 255 to white.
    if image.mode.startswith("I"):
        image = image.point(lambda value: value / 256).convert("L")
    # Also palette images with one transparent colour, which have no alpha channel.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    if image.mode == "CMYK" and "icc_profile" in image.info:
        # A damaged profile: colours as without one.
        with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return image.convert("RGB")


def transparency(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel is (mode L, 0 transparent to 255); None when nothing is transparent."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    # Many PNGs have an alpha channel that is opaque everywhere.
    return None if alpha.getextrema()[0] == 255 else alpha


def open_rgb(source: Path | bytes, background: str = "white") -> Image.Image:
    """The image, upright (EXIF), RGB, transparency on `background` (any colour that Pillow knows, such as
    "#rrggbb"); of an animation the first frame. Raises ImageError for anything that is not a whole image.
    """
    return flattened(decoded(header(source)).image, background)


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

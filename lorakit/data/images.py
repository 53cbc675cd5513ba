"""Reading one picture file as upright RGB, and as the tensor that a VAE wants."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from lorakit.errors import UserError

if TYPE_CHECKING:
    import torch

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")


class ImageError(UserError):
    """A file cannot be used as a picture; the message says what it is."""


def alpha_of(source: Path | bytes) -> Image.Image | None:
    """How opaque each pixel is (mode L, 0 transparent to 255), upright; None when nothing is transparent.

    Raises ImageError as open_rgb does.
    """
    raise NotImplementedError


def open_rgb(source: Path | bytes, background: str = "white") -> Image.Image:
    """The picture, upright (EXIF), RGB, transparency on `background` (any colour that Pillow knows, such as
    "#rrggbb"); of an animation the first frame.

    Raises ImageError for anything that is not a whole picture.
    """
    if source == b"":
        raise ImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
        image = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ImageError("its content is no picture that can be read (is it something else under this name?)") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        RuntimeError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:  # what Pillow's decoders raise for damaged files
        raise ImageError(f"not a readable picture ({error})") from None
    if image.mode.startswith(("I;16", "I")):
        image = image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> torch.Tensor:
    """float32 [3, height, width] in -1..1."""
    import numpy as np
    import torch

    pixels = np.asarray(image, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

"""Small copies of images, as data inside a cell's output; the full ones stay on disk."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SIDE = 160  # px of a thumbnail's longer side


def thumbnail(file: Path, side: int = SIDE) -> str:
    """`src` of a small JPEG of an image; "" when it does not exist yet or cannot be read."""
    try:
        return _thumbnail(file, file.stat().st_mtime_ns, side)
    except OSError:
        # Pillow raises it, too, for an image that is being written.
        return ""


@lru_cache(maxsize=256)
def _thumbnail(file: Path, changed: int, side: int) -> str:
    # `changed`, the time of the last change, only makes a changed file another key of the cache.
    from PIL import Image

    with Image.open(file) as image:
        # A JPEG is decoded at a fraction of its size, which is several times faster.
        image.draft("RGB", (side, side))
        small = image.convert("RGB")
    small.thumbnail((side, side))
    return source(jpeg(small, 78))


def source(data: bytes) -> str:
    """`src` of an <img> that holds a JPEG."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def bounded(image: Image.Image, width: int, size: int) -> bytes:
    """A JPEG of an RGB image, at most `width` px wide and `size` bytes large."""
    # Tall sheets are bounded by their width: the page scrolls down, not sideways.
    image.thumbnail((width, 4 * width))
    # Each time 7/8 of both sides, about a quarter fewer px, until it fits.
    while len(data := jpeg(image, 85)) > size:
        image.thumbnail((image.width * 7 // 8, image.height * 7 // 8))
    return data

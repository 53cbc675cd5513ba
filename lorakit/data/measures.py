"""Measurements of an image from its pixels: likeness, sharpness, border, colours."""

from __future__ import annotations

import base64
import importlib.util
from typing import TYPE_CHECKING

from PIL import Image, ImageChops

if TYPE_CHECKING:
    import numpy as np

# of 255: pixels that differ less from a border's colour belong to it, as JPEG changes them a little
NEAR = 24
# px: longest side at which colours are counted
SMALL = 128
# px: longest side at which sharpness is measured, so that values of all sizes compare
SHARP = 1024
# Cells per side of the grid whose mean colours are compared.
CELLS = 20
MAX_COLOUR_DISTANCE = (
    36  # of 255: a copy that is scaled, recompressed, lightened or cropped by a percent differs less at every place
)
COLOURS = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
HUES = ((15, 3), (45, 4), (70, 5), (170, 6), (260, 7), (300, 8), (345, 9), (360, 3))  # degrees up to -> COLOURS


def can_hash() -> bool:
    """Whether the ImageHash package is there."""
    return importlib.util.find_spec("imagehash") is not None


def reduced(image: Image.Image, side: int) -> Image.Image:
    """An image smaller by a whole factor, so that its longest side is at most `side` px; boxes averaged."""
    # -(-a // b) rounds up.
    factor = -(-max(image.size) // side)
    return image.reduce((min(factor, image.width), min(factor, image.height))) if factor > 1 else image


def phash(image: Image.Image) -> str:
    """The 64 bit perceptual hash (pHash: signs of the lowest cosines of a 32 px grey copy) in hexadecimal; "" without
    the ImageHash package. Images that differ in few bits look alike.
    """
    if not can_hash():
        return ""
    import imagehash

    return str(imagehash.phash(reduced(image, 256)))


def cells(image: Image.Image) -> str:
    """The mean colours of CELLS x CELLS places, as base64."""
    return base64.b64encode(image.convert("RGB").resize((CELLS, CELLS), Image.Resampling.BOX).tobytes()).decode()


def with_neighbours(values: str) -> np.ndarray:
    """`cells` as int16 [3, CELLS, CELLS, 3]: the colour of each place, and its minimum and maximum beside it."""
    import numpy as np

    own = np.frombuffer(base64.b64decode(values), np.uint8).reshape(CELLS, CELLS, 3).astype(np.int16)
    wide = np.pad(own, ((1, 1), (1, 1), (0, 0)), mode="edge")
    beside = [wide[i : i + CELLS, j : j + CELLS] for i in range(3) for j in range(3)]
    return np.stack([own, np.minimum.reduce(beside), np.maximum.reduce(beside)])


def colour_distance(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Colour distance, 0..255 [n], of one image to each of `others` [n, ...] (both from `with_neighbours`).

    The largest difference over all cells, each compared with the cell at or beside its place in the other image.
    Another pose, dress or face on a white ground, which hashes hardly notice, gives a large distance.
    """
    import numpy as np

    # Positive where a cell's colour lies outside of what the other image has around that cell.
    here = np.maximum(others[:, 1] - one[0], one[0] - others[:, 2])
    there = np.maximum(one[1] - others[:, 0], others[:, 0] - one[2])
    return np.maximum(here, there).max(axis=(1, 2, 3))


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of grey 0..255 at a longest side below SHARP: below about 100 a drawing or photo is
    blurred. Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy".
    """
    import numpy as np

    # int16: the Laplacian reaches from -1020 to 1020.
    grey = np.asarray(reduced(image, SHARP).convert("L"), dtype=np.int16)
    if min(grey.shape) < 3:
        return 0.0
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return round(float(laplacian.var(dtype=np.float32)), 2)


def border(image: Image.Image) -> tuple[tuple[int, int, int, int], str]:
    """How many pixels at the left, top, right and bottom are of one colour, and that colour as "#rrggbb".

    All 0 and "" without a border, and for an image that is nothing but one colour.
    """
    width, height = image.size
    edges = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)]
    # Every border touches one of these two corners.
    for corner in ((0, 0), (width - 1, height - 1)):
        colour = image.getpixel(corner)
        if all(_unlike(image.crop(edge), colour) for edge in edges):
            continue  # no side has a border: the whole image need not be compared, which takes longest here
        inside = _unlike(image, colour)
        if inside and inside != (0, 0, width, height):
            left, top, right, bottom = inside
            return (left, top, width - right, height - bottom), "#{:02x}{:02x}{:02x}".format(*colour)
    return (0, 0, 0, 0), ""


def _unlike(image: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """The box around all pixels that are not near a colour."""
    far = ImageChops.difference(image, Image.new("RGB", image.size, colour))
    return far.point(lambda value: 255 * (value >= NEAR)).getbbox()


def colours(image: Image.Image, alpha: Image.Image | None) -> dict[str, float]:
    """The share (0..1) of the pixels that people would call by each of COLOURS, most first; skin has none of them.
    Transparent pixels, if `alpha` (mode L) is given, are not counted.
    """
    import numpy as np

    # [3, h, w]; Pillow stores hue as 0..255 for 0..360 degrees.
    hsv = np.asarray(reduced(image, SMALL).convert("HSV"), dtype=np.float32).transpose(2, 0, 1)
    hue, saturation, value = hsv[0] * 360 / 255, hsv[1] / 255, hsv[2] / 255
    # int [h, w]: index into COLOURS
    named = np.array([*(name for _, name in HUES), HUES[-1][1]])[np.digitize(hue, [end for end, _ in HUES])]
    # The thresholds below are judged by eye; later lines override earlier ones.
    is_warm = (hue > 8) & (hue <= 45)
    named[(named == 3) & (saturation < 0.55) & (value > 0.75)] = COLOURS.index("pink")
    named[is_warm & (saturation < 0.6)] = len(COLOURS)  # skin
    named[is_warm & (value < 0.65)] = COLOURS.index("brown")
    is_pale = (saturation < 0.12) | (value < 0.25) & (saturation < 0.35)
    named[is_pale] = COLOURS.index("grey")
    named[is_pale & (value > 0.88)] = COLOURS.index("white")
    named[value < 0.2] = COLOURS.index("black")
    if alpha is not None:
        named = named[np.asarray(reduced(alpha, SMALL)) >= 128]
    shares = np.bincount(named.ravel(), minlength=len(COLOURS))[: len(COLOURS)] / max(1, named.size)
    return {COLOURS[i]: round(float(shares[i]), 4) for i in np.argsort(-shares, kind="stable") if shares[i] > 0}

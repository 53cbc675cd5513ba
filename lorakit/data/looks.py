"""What each picture file is, measured once and remembered: bytes, size, likeness, sharpness, border, colours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Look:
    """What a picture file is. With `trouble`, why it cannot be used, all else but the digest is 0 or empty."""

    digest: str  # SHA-256 of the file's bytes; "" when they cannot be read
    format: str = ""  # of the bytes, as Pillow calls it: "PNG", "JPEG"
    mode: str = ""  # Pillow's, as stored: "RGB", "CMYK", "P"
    width: int = 0  # px, upright
    height: int = 0
    frames: int = 0
    has_alpha: bool = False  # some pixel is transparent
    phash: str = ""  # 64 bit perceptual hash in hexadecimal; "" without the ImageHash package
    sharpness: float = 0.0  # variance of the Laplacian of grey 0..255, at a longest side of 1024 to 2047 px
    border: tuple[int, int, int, int] = (0, 0, 0, 0)  # of one colour, px: left, top, right, bottom
    border_colour: str = ""  # "#rrggbb"; "" without a border
    colours: dict[str, float] = field(default_factory=dict)  # share 0..1 of the pixels that each named colour has
    trouble: str = ""


class Looks:
    """The looks of files, remembered in one file: a second look reads only what changed."""

    def __init__(self, file: Path):
        self.file = file
        self.trouble = ""  # why the memory could not be written, "" while it could

    def look(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Look]]:
        """Each path with its look, in the order given; several are read at once."""
        raise NotImplementedError

"""Captions as they lie beside pictures: text files in whatever encoding is certain, kohya's metadata, captions.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Caption:
    """What a file says of a picture, on one line. With `trouble`, why it was not read, the text is ""."""

    text: str = ""
    source: Path | None = None  # None: nothing says anything of it
    encoding: str = ""
    trouble: str = ""


def read_caption(file: Path) -> Caption:
    """The text of one caption file; encodings that could be mistaken are reported in `trouble`, never guessed."""
    raise NotImplementedError

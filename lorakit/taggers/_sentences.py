"""What all writers of sentences share: the usual question, images as small as they may be, an answer in one line."""

from __future__ import annotations

from PIL import Image

PROMPT = (
    "Describe this image for training an image generator: who or what is in it, appearance, clothes, pose, "
    "expression, background and framing. Two or three plain sentences, no introduction, no guesses."
)


def reduced(image: Image.Image, longest_side: int) -> Image.Image:
    """The image in RGB, its longest side at most `longest_side` px; never enlarged."""
    image = image.convert("RGB")
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return image


def in_one_line(text: str) -> str:
    """A caption file holds one line, and no half characters as "\\ud800" in JSON makes them."""
    return " ".join(text.encode("utf-8", "replace").decode().split())

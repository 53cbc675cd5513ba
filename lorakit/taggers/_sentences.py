"""What all captioners share: the default prompt, images scaled down, sentences in one line."""

from __future__ import annotations

from PIL import Image

PROMPT = (
    "Describe this image for training an image generator: who or what is in it, appearance, clothes, pose, "
    "expression, background and framing. Two or three plain sentences, no introduction, no guesses."
)


def reduced(image: Image.Image, longest_side: int) -> Image.Image:
    """The image in RGB, scaled down so that its longest side has at most `longest_side` px."""
    image = image.convert("RGB")
    # thumbnail never enlarges.
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return image


def in_one_line(text: str) -> str:
    """A text that a caption file can hold: one line, without the lone surrogates that JSON such as "\\ud800" gives."""
    return " ".join(text.encode("utf-8", "replace").decode().split())

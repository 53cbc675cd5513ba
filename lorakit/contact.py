"""Sheets of pictures: a labelled grid, made with Pillow alone."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

INK, PAPER, GAP = "#222222", "#ffffff", 6  # px between pictures


def labelled(files: list[Path], columns: list[str], rows: list[str]) -> Image.Image:
    """Pictures in reading order, len(columns) x len(rows), all of one size, with labels above and to the left."""
    width, height = Image.open(files[0]).size
    font = ImageFont.load_default(size=max(12, min(28, width // 9)))
    letter = font.getlength("n")
    top = [textwrap.wrap(label, max(6, int(width / letter))) for label in columns]
    side = [textwrap.wrap(label, 18) for label in rows]
    line = round(font.size * 1.3)
    above = GAP + line * max(map(len, top))
    left = round(2 * GAP + max((font.getlength(part) for label in side for part in label), default=0))
    sheet = Image.new("RGB", (left + len(columns) * (width + GAP), above + len(rows) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(top):
        draw.multiline_text(
            (left + column * (width + GAP) + width / 2, above - GAP),
            "\n".join(label),
            INK,
            font,
            anchor="md",
            align="center",
            spacing=line - font.size,
        )
    for row, label in enumerate(side):
        draw.multiline_text(
            (left - GAP, above + row * (height + GAP) + height / 2),
            "\n".join(label),
            INK,
            font,
            anchor="rm",
            align="right",
            spacing=line - font.size,
        )
    for index, file in enumerate(files):
        row, column = divmod(index, len(columns))
        with Image.open(file) as picture:
            sheet.paste(picture, (left + column * (width + GAP), above + row * (height + GAP)))
    return sheet


def sheet(files: list[Path], columns: int, width: int) -> Image.Image:
    """Pictures of any sizes as equal squares, `columns` a row, the sheet `width` px wide."""
    side = (width - GAP) // columns - GAP
    made = Image.new("RGB", (width, GAP + -(-len(files) // columns) * (side + GAP)), PAPER)
    for index, file in enumerate(files):
        row, column = divmod(index, columns)
        with Image.open(file) as picture:
            picture = ImageOps.contain(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
            made.paste(
                picture,
                (
                    GAP + column * (side + GAP) + (side - picture.width) // 2,
                    GAP + row * (side + GAP) + (side - picture.height) // 2,
                ),
            )
    return made

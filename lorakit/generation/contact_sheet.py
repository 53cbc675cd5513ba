"""Contact sheets: many images in one, labelled or plain, with Pillow alone."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

# Colours of labels and background; px between images.
INK, PAPER, GAP = "#222222", "#ffffff", 6
CHINESE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc")
# at most so many lines above a column, so many letters per line beside a row
LINES, LETTERS = 6, 18


def labelled(files: list[Path], columns: list[str], rows: list[str]) -> Image.Image:
    """Images in reading order, len(columns) x len(rows), with labels above and to the left.

    The first one is as large as all places, and images of other sizes are scaled to fit. Labels that do not fit end in
    an ellipsis.
    """
    with Image.open(files[0]) as first:
        width, height = first.size
    # px, growing with the images within limits that stay readable.
    font = _font(max(12, min(28, width // 9)), "".join(columns + rows))
    line = round(font.size * 1.3)
    # Letters per line: the width of an image by the width of an average letter.
    top = _wrapped(columns, max(6, int(width / font.getlength("n"))), LINES)
    side = _wrapped(rows, LETTERS, max(1, height // line))
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
        with Image.open(file) as image:
            fitting = image if image.size == (width, height) else ImageOps.contain(image, (width, height))
            sheet.paste(fitting, (left + column * (width + GAP), above + row * (height + GAP)))
    return sheet


def _font(size: int, text: str) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which has Latin letters; for other texts the first Chinese font that is installed."""
    # CJK starts at U+2E80
    if any(ord(letter) > 0x2E7F for letter in text):
        for name in CHINESE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            # not installed
            except OSError:
                continue
    return ImageFont.load_default(size)


def _wrapped(labels: list[str], letters: int, lines: int) -> list[list[str]]:
    """Each label in at most `lines` lines; if one needs more, without the tags that all of them begin with."""
    if len(set(labels)) > 1 and any(len(textwrap.wrap(label, letters)) > lines for label in labels):
        tags = [label.split(", ") for label in labels]
        # At least one tag of each label is kept.
        common = min(len(os.path.commonprefix(tags)), *(len(own) - 1 for own in tags))
        labels = [("… " if common else "") + ", ".join(own[common:]) for own in tags]
    return [textwrap.wrap(label, letters, max_lines=lines, placeholder=" …") for label in labels]


def sheet(files: list[Path], columns: int, width: int) -> Image.Image:
    """Images of any sizes as equal squares, `columns` a row, the sheet `width` px wide."""
    # px of a square; -(-a // b) rounds up, so that an incomplete row has its place
    side = (width - GAP) // columns - GAP
    contact = Image.new("RGB", (width, GAP + -(-len(files) // columns) * (side + GAP)), PAPER)
    for index, file in enumerate(files):
        row, column = divmod(index, columns)
        with Image.open(file) as image:
            image = ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
            contact.paste(
                image,
                (
                    GAP + column * (side + GAP) + (side - image.width) // 2,
                    GAP + row * (side + GAP) + (side - image.height) // 2,
                ),
            )
    return contact

"""How families of ONNX taggers take images, give scores and list their tags, a row each.

Sources: the model cards of SmilingWolf's WD taggers; pixai-labs/pixai-tagger-v0.9 and its ONNX form of deepghs;
cella110n/cl_tagger; Camais03/camie-tagger-v2, each with the code for inference that comes with it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lorakit.taggers import CATEGORIES, TaggerError

# Danbooru's category numbers, which selected_tags.csv uses.
NUMBERS = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta", "9": "rating"}
# Categories that other taggers have, too: the year of an image, and the model that made it.
OTHER_CATEGORIES = {"year": "meta", "model": "meta", "series": "copyright"}
# Rows of the padded image that are resized at a time: the padded square of a very long image would not fit in memory.
ROWS = 256


@dataclass(frozen=True)
class Layout:
    """One family of taggers.

    model, tags        globs of its two files
    read_tags          file -> {tag: category}, in the order of the scores
    prepare            (image, side) -> uint8 RGB (side, side, 3)
    channels_first     input (images, 3, side, side) instead of (images, side, side, 3)
    mean, std          of the channels in 0..1, None where the model takes 0..255
    is_bgr             blue comes first
    side               px, for a model that does not say it
    output             part of the name of the output with the scores, "" for the first
    is_logits          the scores are before the sigmoid
    """

    model: str
    tags: str
    read_tags: Callable[[Path], dict[str, str]]
    prepare: Callable[[Image.Image, int], np.ndarray]
    channels_first: bool = True
    mean: tuple[float, float, float] | None = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    is_bgr: bool = False
    side: int = 448
    output: str = ""
    is_logits: bool = False

    def tensor(self, squares: np.ndarray) -> np.ndarray:
        """float32, as the model takes them, of images (n, side, side, 3) uint8 RGB."""
        pixels = (squares[..., ::-1] if self.is_bgr else squares).astype(np.float32)
        if self.mean is not None:
            pixels = (pixels / 255 - np.float32(self.mean)) / np.float32(self.std)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if self.channels_first else pixels)


def read_tags(file: Path) -> dict[str, str]:
    """Tag -> category of every line of `selected_tags.csv`, in order. Raises TaggerError for other files."""
    categories: dict[str, str] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            # Line 1 is the heading.
            for number, row in enumerate(csv.DictReader(lines), 2):
                name, category = row.get("name"), row.get("category")
                if not name or category not in NUMBERS:
                    allowed = ", ".join(f"{key} {value}" for key, value in NUMBERS.items())
                    raise TaggerError(
                        f"{file}, line {number}: name {name!r}, category {category!r}; a tag has a name and one of the "
                        f"categories {allowed}. Is it the file of a WD tagger?"
                    )
                if name in categories:
                    raise TaggerError(
                        f"{file}, line {number}: the tag {name!r} is listed twice; download the file again."
                    )
                categories[name] = NUMBERS[category]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaggerError(f"{file} cannot be read ({error}): download it again.") from error
    return categories


def read_mapping(file: Path) -> dict[str, str]:
    """Tag -> category of cl_tagger's `tag_mapping.json`, {"0": {"tag": "1girl", "category": "General"}}.

    Raises TaggerError.
    """
    content = _json(file)
    if not isinstance(content, dict) or not all(isinstance(row, dict) for row in content.values()):
        raise _no_tags(file, "a table with tag and category for each number")
    return _numbered(file, {number: (row.get("tag"), row.get("category")) for number, row in content.items()})


def read_metadata(file: Path) -> dict[str, str]:
    """Tag -> category of CamieTagger's `*metadata.json`: `idx_to_tag` and `tag_to_category` in `dataset_info`, ratings
    as "rating_general". Raises TaggerError.
    """
    content = _json(file)
    try:
        mapping = content["dataset_info"]["tag_mapping"]
        tags, categories = mapping["idx_to_tag"], mapping["tag_to_category"]
        rows = {number: (tag, categories.get(tag, "general")) for number, tag in tags.items()}
    except (KeyError, TypeError, AttributeError):
        raise _no_tags(file, "dataset_info.tag_mapping with idx_to_tag and tag_to_category") from None
    return {
        tag.removeprefix("rating_") if category == "rating" else tag: category
        for tag, category in _numbered(file, rows).items()
    }


def _numbered(file: Path, rows: dict[str, tuple[Any, Any]]) -> dict[str, str]:
    """Tag -> category in the order of their numbers, which count from 0; of two tags of one name the second is called
    by its category, too.
    """
    named: dict[str, str] = {}
    for number in range(len(rows)):
        tag, category = rows.get(str(number), (None, None))
        category = str(category).lower()
        category = OTHER_CATEGORIES.get(category, category)
        if not isinstance(tag, str) or category not in CATEGORIES:
            raise _no_tags(file, f"a tag of a known category under number {number} ({tag!r}, {category!r})")
        named[f"{tag}_({category})" if tag in named else tag] = category
    return named


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TaggerError(f"{file} cannot be read ({error}): download it again.") from error


def _no_tags(file: Path, missing: str) -> TaggerError:
    return TaggerError(f"{file} has not {missing}: it is not the list of tags of such a tagger; download it again.")


def on_white(image: Image.Image) -> Image.Image:
    """The image as RGB, transparency in white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas
    return image.convert("RGB")


def stretched(image: Image.Image, side: int) -> np.ndarray:
    """The image as a square, its shape not kept, bilinear."""
    return np.asarray(on_white(image).resize((side, side), Image.Resampling.BILINEAR))


def fitted(image: Image.Image, side: int) -> np.ndarray:
    """The image in a square of the mean colour of ImageNet, resized before it is padded (Lanczos)."""
    image = on_white(image)
    scale = side / max(image.size)
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    square = Image.new("RGB", (side, side), (124, 116, 104))
    square.paste(image.resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)


def squared(image: Image.Image, side: int) -> np.ndarray:
    """The image as a square, (side, side, 3) uint8 RGB: transparency and padding in white, bicubic.

    Bit for bit the same as resizing the padded square in one go: Pillow resizes all rows first, then the columns.
    """
    image = on_white(image)
    longest = max(image.size)
    left, top = (longest - image.width) // 2, (longest - image.height) // 2
    # rows first, a few at a time; `narrow` has its final width and the height of the padded square
    narrow = Image.new("RGB", (side, longest), "white")
    for row in range(0, image.height, ROWS):
        rows = image.crop((0, row, image.width, min(row + ROWS, image.height)))
        padded = Image.new("RGB", (longest, rows.height), "white")
        padded.paste(rows, (left, 0))
        narrow.paste(padded.resize((side, rows.height), Image.Resampling.BICUBIC), (0, top + row))
    return np.asarray(narrow.resize((side, side), Image.Resampling.BICUBIC))


WD = Layout("model.onnx", "selected_tags.csv", read_tags, squared, channels_first=False, mean=None, is_bgr=True)
PIXAI = Layout("model.onnx", "selected_tags.csv", read_tags, stretched, output="prediction")
CL = Layout("model.onnx", "tag_mapping.json", read_mapping, squared, is_bgr=True, is_logits=True)
CAMIE = Layout(
    "*.onnx",
    "*metadata.json",
    read_metadata,
    fitted,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    side=512,
    output="refined",
    is_logits=True,
)
# Models on Hugging Face that are not laid out as WD taggers: where their files are in the repository.
KNOWN = {
    "deepghs/pixai-tagger-v0.9-onnx": (PIXAI, ""),
    "cella110n/cl_tagger": (CL, "cl_tagger_1_02"),
    "Camais03/camie-tagger-v2": (CAMIE, ""),
}


def layout_of(source: str) -> tuple[Layout, str]:
    """The layout of a tagger, and the folder of its files inside its source, by its id or by the files in its folder.

    WD and PixAI taggers have the same files; which of them a local model is, its input says.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        layout = next((layout for layout in (CL, CAMIE) if any(folder.glob(layout.tags))), WD)
        return (layout if any(folder.glob(layout.model)) else WD), ""
    return KNOWN.get(source.removeprefix("modelscope:").partition("@")[0], (WD, ""))

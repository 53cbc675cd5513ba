"""Tags from SmilingWolf's WD taggers, or others with the same files: a model and selected_tags.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.config import Config, Field, setting
from lorakit.errors import UserError
from lorakit.hub import fetch
from lorakit.taggers import TaggerError, _onnx, _timm

DEMO = Path(__file__).parents[1] / "demo" / "tagger"
TAGS = "selected_tags.csv"
# Danbooru's category numbers, which selected_tags.csv uses.
CATEGORIES = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta", "9": "rating"}
SUGGESTIONS = (
    "SmilingWolf/wd-eva02-large-tagger-v3",
    "SmilingWolf/wd-swinv2-tagger-v3",
    "SmilingWolf/wd-vit-tagger-v3",
    "SmilingWolf/wd-v1-4-moat-tagger-v2",
    "SmilingWolf/wd-v1-4-swinv2-tagger-v2",
    "demo",
)
# Rows of the padded image that are resized at a time: the padded square of a very long image would not fit in memory.
ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Config(Config):
    """Which model, and which library runs it."""

    source: str = setting(
        "SmilingWolf/wd-swinv2-tagger-v3",
        help="Hugging Face id (owner/name) or folder with model and selected_tags.csv; demo knows only the demo images",
        ui=Field(basic=True, suggestions=SUGGESTIONS),
    )
    runs_on: str = setting(
        "auto",
        help="ONNX Runtime loads model.onnx; PyTorch (package timm) loads model.safetensors, which v1-4 taggers lack; "
        "automatic = ONNX Runtime, or PyTorch where that is missing or cannot use the GPU",
        choices=("auto", "onnxruntime", "torch"),
        ui=Field(label="runs on"),
    )
    batch_size: int = setting(8, help="images at once; fewer need less memory", range=(1, 256))


class Tagger:
    """See `lorakit.taggers.Tagger`.

    Source of the preprocessing: the taggers' model cards (transparency and padding to a square in white, bicubic).
    """

    output, prompt = "tags", ""

    def __init__(self, config: Config):
        self.name = Path(config.source).name or "tagger"
        self.batch_size = config.batch_size
        folder, self._model = _load(config)
        self.categories = read_tags(folder / TAGS)
        self.runs_on = self._model.runs_on
        # one image shows at once whether model and list of tags belong together
        (blank,) = self._scores([Image.new("RGB", (1, 1), "white")])
        if not ((blank >= 0) & (blank <= 1)).all():
            raise TaggerError(f"{folder}: the model's scores are no probabilities (0 to 1): it is no WD tagger.")

    def run(self, images: list[Image.Image]) -> list[dict[str, float]]:
        """Tag -> score (0 to 1) of all tags for each image, in the order of selected_tags.csv. Raises TaggerError."""
        batches = [images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size)]
        rows = [row for batch in batches for row in self._scores(batch)]
        return [dict(zip(self.categories, map(float, row), strict=True)) for row in rows]

    def _scores(self, images: list[Image.Image]) -> np.ndarray:
        """Scores of a batch, (images, tags)."""
        scores = self._model.scores(np.stack([squared(image, self._model.side) for image in images]))
        if scores.shape != (len(images), len(self.categories)):
            raise TaggerError(
                f"{self.name}: the model gives scores of shape {scores.shape} for {len(images)} images, but {TAGS} "
                f"lists {len(self.categories)} tags; the files are not of the same tagger: download them again."
            )
        return scores


def _load(config: Config) -> tuple[Path, _onnx.Onnx | _timm.Timm]:
    """The tagger's folder and its model, run by the library that is set or else suits this machine."""
    if config.runs_on == "torch" or (config.runs_on == "auto" and not _onnx.is_installed()):
        return _load_torch(config)
    if config.runs_on == "auto" and _timm.has_gpu() and not _onnx.has_gpu():
        try:
            return _load_torch(config)
        # An older tagger, or timm is missing: onnxruntime on the CPU gives the same scores.
        except TaggerError:
            pass
    folder = _fetch(config.source, (_onnx.FILE, TAGS))
    model = _onnx.Onnx(folder)
    # onnxruntime's GPU build may not fit the CUDA of this machine
    if config.runs_on == "auto" and _timm.has_gpu() and not model.on_gpu:
        try:
            return _load_torch(config)
        except TaggerError:
            pass
    return folder, model


def _load_torch(config: Config) -> tuple[Path, _timm.Timm]:
    try:
        folder = _fetch(config.source, (*_timm.FILES, TAGS))
    except TaggerError as error:
        raise TaggerError(
            f"{error} To run on torch a tagger needs {' and '.join(_timm.FILES)}, which the v3 taggers have and v1-4 "
            "and demo have not: select a v3 tagger, or pip install onnxruntime."
        ) from error
    return folder, _timm.Timm(folder)


def _fetch(source: str, files: tuple[str, ...]) -> Path:
    """The folder with these files, downloaded if they are missing."""
    try:
        folder = fetch(str(DEMO) if source == "demo" else source, patterns=files)
    except UserError as error:
        raise TaggerError(str(error)) from error
    if not folder.is_dir():
        raise TaggerError(f"{source} is a file; give the folder or Hugging Face id that holds {' and '.join(files)}.")
    return folder


def read_tags(file: Path) -> dict[str, str]:
    """Tag -> category of every line of `selected_tags.csv`, in order. Raises TaggerError for other files."""
    categories: dict[str, str] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            # Line 1 is the heading.
            for number, row in enumerate(csv.DictReader(lines), 2):
                name, category = row.get("name"), row.get("category")
                if not name or category not in CATEGORIES:
                    allowed = ", ".join(f"{key} {value}" for key, value in CATEGORIES.items())
                    raise TaggerError(
                        f"{file}, line {number}: name {name!r}, category {category!r}; a tag has a name and one of the "
                        f"categories {allowed}. Is it the file of a WD tagger?"
                    )
                if name in categories:
                    raise TaggerError(
                        f"{file}, line {number}: the tag {name!r} is listed twice; download the file again."
                    )
                categories[name] = CATEGORIES[category]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaggerError(f"{file} cannot be read ({error}): download it again.") from error
    return categories


def squared(image: Image.Image, side: int) -> np.ndarray:
    """The image as a square, (side, side, 3) uint8 RGB: transparency and padding in white, bicubic.

    Bit for bit the same as resizing the padded square in one go: Pillow resizes all rows first, then the columns.
    """
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas
    image = image.convert("RGB")
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

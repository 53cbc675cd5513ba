"""Tags from SmilingWolf's WD taggers, and from others with the same files: a model beside selected_tags.csv."""

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
# Danbooru's numbers of categories, which these files use.
CATEGORIES = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta", "9": "rating"}
SUGGESTIONS = (
    "SmilingWolf/wd-eva02-large-tagger-v3",
    "SmilingWolf/wd-swinv2-tagger-v3",
    "SmilingWolf/wd-vit-tagger-v3",
    "SmilingWolf/wd-v1-4-moat-tagger-v2",
    "SmilingWolf/wd-v1-4-swinv2-tagger-v2",
    "demo",
)
ROWS = 256  # of a padded image at a time: a square around a very long one would not fit in memory


@dataclass(frozen=True, kw_only=True)
class Config(Config):
    """Which files, and what runs them."""

    source: str = setting(
        "SmilingWolf/wd-swinv2-tagger-v3",
        help="hub id (owner/name) or folder with a model and selected_tags.csv; demo knows the embedded world only",
        ui=Field(basic=True, suggestions=SUGGESTIONS),
    )
    runs_on: str = setting(
        "auto",
        help="onnxruntime reads model.onnx, torch (package timm) model.safetensors, which v1-4 taggers have not; auto "
        "takes onnxruntime, or torch where that is missing or cannot use the GPU",
        choices=("auto", "onnxruntime", "torch"),
        ui=Field(label="runs on"),
    )
    batch_size: int = setting(8, help="images read at once; fewer need less memory", range=(1, 256))


class Tagger:
    """See `lorakit.taggers.Tagger`.

    Source of the preprocessing: the taggers' model cards (transparency and padding to a square in white, bicubic).
    """

    output, prompt = "tags", ""

    def __init__(self, config: Config):
        self.name = Path(config.source).name or "tagger"
        self.batch = config.batch_size
        folder, self._model = _loaded(config)
        self.categories = read_tags(folder / TAGS)
        self.runs_on = self._model.runs_on
        (blank,) = self._scores([Image.new("RGB", (1, 1), "white")])
        if not ((blank >= 0) & (blank <= 1)).all():
            raise TaggerError(f"{folder}: what the model says are no probabilities (0 to 1): it is no WD tagger.")

    def read(self, images: list[Image.Image]) -> list[dict[str, float]]:
        """Tag -> score (0 to 1) of every tag for each image, in the order of the file of tags. Raises TaggerError."""
        parts = [images[i : i + self.batch] for i in range(0, len(images), self.batch)]
        rows = [row for part in parts for row in self._scores(part)]
        return [dict(zip(self.categories, map(float, row), strict=True)) for row in rows]

    def _scores(self, images: list[Image.Image]) -> np.ndarray:
        """(images, tags) of a batch."""
        scores = self._model.scores(np.stack([squared(image, self._model.side) for image in images]))
        if scores.shape != (len(images), len(self.categories)):
            raise TaggerError(
                f"{self.name}: the model gives scores of shape {scores.shape} for {len(images)} images, but {TAGS} "
                f"lists {len(self.categories)} tags; the files are not of the same tagger: download them again."
            )
        return scores


def _loaded(config: Config) -> tuple[Path, _onnx.Onnx | _timm.Timm]:
    """The tagger's folder and its model, on what the config or else this machine wants."""
    if config.runs_on == "torch" or (config.runs_on == "auto" and not _onnx.is_there()):
        return _torch(config)
    if config.runs_on == "auto" and _timm.has_gpu() and not _onnx.has_gpu():
        try:
            return _torch(config)
        except TaggerError:  # an older tagger, or timm is missing: slower, but the same scores
            pass
    folder = _fetched(config.source, (_onnx.FILE, TAGS))
    model = _onnx.Onnx(folder)
    if config.runs_on == "auto" and _timm.has_gpu() and not model.on_gpu:  # its GPU build does not fit this machine
        try:
            return _torch(config)
        except TaggerError:
            pass
    return folder, model


def _torch(config: Config) -> tuple[Path, _timm.Timm]:
    try:
        folder = _fetched(config.source, (*_timm.FILES, TAGS))
    except TaggerError as error:
        raise TaggerError(
            f"{error} To run on torch a tagger needs {' and '.join(_timm.FILES)}, which the v3 taggers have and v1-4 "
            "and demo have not: take a v3 tagger, or pip install onnxruntime."
        ) from error
    return folder, _timm.Timm(folder)


def _fetched(source: str, files: tuple[str, ...]) -> Path:
    """The folder with these files, downloaded if need be."""
    try:
        folder = fetch(str(DEMO) if source == "demo" else source, patterns=files)
    except UserError as error:
        raise TaggerError(str(error)) from error
    if not folder.is_dir():
        raise TaggerError(f"{source} is a file; give the folder or hub id that holds {' and '.join(files)}.")
    return folder


def read_tags(file: Path) -> dict[str, str]:
    """Tag -> category of every line of `selected_tags.csv`, in order. Raises TaggerError for what is none."""
    found: dict[str, str] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines), 2):
                name, category = row.get("name"), row.get("category")
                if not name or category not in CATEGORIES:
                    known = ", ".join(f"{key} {value}" for key, value in CATEGORIES.items())
                    raise TaggerError(
                        f"{file}, line {number}: name {name!r}, category {category!r}; a tag has a name and one of the "
                        f"categories {known}. Is it the file of a WD tagger?"
                    )
                if name in found:
                    raise TaggerError(f"{file}, line {number}: the tag {name!r} stands there twice; download it again.")
                found[name] = CATEGORIES[category]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaggerError(f"{file} cannot be read ({error}): download it again.") from error
    return found


def squared(image: Image.Image, side: int) -> np.ndarray:
    """(side, side, 3) uint8 RGB: transparency and padding in white, bicubic.

    The same to the last bit as resizing the padded square, as Pillow resizes rows first and columns after that.
    """
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas
    image = image.convert("RGB")
    longest = max(image.size)
    left, top = (longest - image.width) // 2, (longest - image.height) // 2
    narrow = Image.new("RGB", (side, longest), "white")
    for row in range(0, image.height, ROWS):
        rows = image.crop((0, row, image.width, min(row + ROWS, image.height)))
        padded = Image.new("RGB", (longest, rows.height), "white")
        padded.paste(rows, (left, 0))
        narrow.paste(padded.resize((side, rows.height), Image.Resampling.BICUBIC), (0, top + row))
    return np.asarray(narrow.resize((side, side), Image.Resampling.BICUBIC))

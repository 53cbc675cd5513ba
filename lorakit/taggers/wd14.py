"""Tags from ONNX models: SmilingWolf's WD taggers, PixAI, cl_tagger, CamieTagger, or others with the same files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.config import Config, Field, setting
from lorakit.errors import UserError
from lorakit.hub import fetch
from lorakit.taggers import TaggerError, _layouts, _onnx, _timm

DEMO = Path(__file__).parents[1] / "demo" / "tagger"
TAGS = _layouts.WD.tags
SUGGESTIONS = (
    "SmilingWolf/wd-eva02-large-tagger-v3",
    "SmilingWolf/wd-swinv2-tagger-v3",
    "SmilingWolf/wd-vit-tagger-v3",
    "SmilingWolf/wd-v1-4-moat-tagger-v2",
    "SmilingWolf/wd-v1-4-swinv2-tagger-v2",
    *_layouts.KNOWN,
    "demo",
)


@dataclass(frozen=True, kw_only=True)
class Config(Config):
    """Which model, and which library runs it."""

    source: str = setting(
        "SmilingWolf/wd-swinv2-tagger-v3",
        help="Hugging Face id (owner/name) or folder with the model and its list of tags; demo knows only the demo "
        "images",
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
        tags, self._model = _load(config)
        self._tags = tags.name
        self.categories = self._model.layout.read_tags(tags)
        self.runs_on = self._model.runs_on
        # one image shows at once whether model and list of tags belong together
        (blank,) = self._scores([Image.new("RGB", (1, 1), "white")])
        if not ((blank >= 0) & (blank <= 1)).all():
            raise TaggerError(f"{tags.parent}: the model's scores are no probabilities (0 to 1): it is no WD tagger.")

    def run(self, images: list[Image.Image]) -> list[dict[str, float]]:
        """Tag -> score (0 to 1) of all tags for each image, in the order of its list of tags. Raises TaggerError."""
        batches = [images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size)]
        rows = [row for batch in batches for row in self._scores(batch)]
        return [dict(zip(self.categories, map(float, row), strict=True)) for row in rows]

    def _scores(self, images: list[Image.Image]) -> np.ndarray:
        """Scores of a batch, (images, tags)."""
        scores = self._model.scores(np.stack([self._model.layout.prepare(image, self._model.side) for image in images]))
        if scores.shape != (len(images), len(self.categories)):
            raise TaggerError(
                f"{self.name}: the model gives scores of shape {scores.shape} for {len(images)} images, but "
                f"{self._tags} lists {len(self.categories)} tags; the files are not of the same tagger: download them "
                "again."
            )
        return scores


def _load(config: Config) -> tuple[Path, _onnx.Onnx | _timm.Timm]:
    """The tagger's list of tags and its model, run by the library that is set or else suits this machine."""
    layout, inside = _layouts.layout_of(config.source)
    if layout is not _layouts.WD:
        return _load_onnx(config, layout, inside)
    if config.runs_on == "torch" or (config.runs_on == "auto" and not _onnx.is_installed()):
        return _load_torch(config)
    if config.runs_on == "auto" and _timm.has_gpu() and not _onnx.has_gpu():
        try:
            return _load_torch(config)
        # An older tagger, or timm is missing: onnxruntime on the CPU gives the same scores.
        except TaggerError:
            pass
    tags, model = _load_onnx(config, layout, inside)
    # onnxruntime's GPU build may not fit the CUDA of this machine
    if config.runs_on == "auto" and _timm.has_gpu() and not model.on_gpu:
        try:
            return _load_torch(config)
        except TaggerError:
            pass
    return tags, model


def _load_onnx(config: Config, layout: _layouts.Layout, inside: str) -> tuple[Path, _onnx.Onnx]:
    if config.runs_on == "torch":
        raise TaggerError(f"{config.source} is an ONNX model: set “runs on” to ONNX Runtime, or to automatic.")
    folder = _fetch(config.source, tuple(f"{inside}/{name}".lstrip("/") for name in (layout.model, layout.tags)))
    file, tags = (sorted((folder / inside).glob(name))[0] for name in (layout.model, layout.tags))
    return tags, _onnx.Onnx(file, layout)


def _load_torch(config: Config) -> tuple[Path, _timm.Timm]:
    try:
        folder = _fetch(config.source, (*_timm.FILES, TAGS))
    except TaggerError as error:
        raise TaggerError(
            f"{error} To run on torch a tagger needs {' and '.join(_timm.FILES)}, which the v3 taggers have and v1-4 "
            "and demo have not: select a v3 tagger, or pip install onnxruntime."
        ) from error
    return folder / TAGS, _timm.Timm(folder)


def _fetch(source: str, files: tuple[str, ...]) -> Path:
    """The folder with these files, downloaded if they are missing."""
    try:
        folder = fetch(str(DEMO) if source == "demo" else source, patterns=files)
    except UserError as error:
        names = ", ".join(SUGGESTIONS)
        raise TaggerError(f"{error}\nTaggers that can be had: {names}; or a folder with one's files.") from error
    if not folder.is_dir():
        raise TaggerError(f"{source} is a file; give the folder or Hugging Face id that holds {' and '.join(files)}.")
    return folder

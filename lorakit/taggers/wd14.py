"""Tags from any tagger in the file format of SmilingWolf's WD taggers: `model.onnx` and `selected_tags.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.config import Config, setting
from lorakit.hub import fetch
from lorakit.taggers import TaggerError

DEMO = Path(__file__).parents[1] / "demo" / "tagger"
# Danbooru's numbers of categories, which the files use.
CATEGORIES = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta", "9": "rating"}
SUGGESTIONS = tuple(
    f"SmilingWolf/{name}"
    for name in (
        "wd-eva02-large-tagger-v3",
        "wd-vit-large-tagger-v3",
        "wd-swinv2-tagger-v3",
        "wd-vit-tagger-v3",
        "wd-convnext-tagger-v3",
        "wd-v1-4-moat-tagger-v2",
        "wd-v1-4-swinv2-tagger-v2",
        "wd-v1-4-convnext-tagger-v2",
        "wd-v1-4-vit-tagger-v2",
    )
)


@dataclass(frozen=True, kw_only=True)
class Config(Config):
    """Which files, and what runs them."""

    source: str = setting(
        SUGGESTIONS[2],
        help="a hub id or a folder with model.onnx and selected_tags.csv; demo knows the embedded world only",
        label="tagger",
        basic=True,
    )
    runs_on: str = setting(
        "auto",
        help="auto takes onnxruntime, or torch (timm) where that is missing or cannot use the GPU",
        choices=("auto", "onnxruntime", "torch"),
        label="runs on",
    )
    batch_size: int = setting(8, help="pictures read at once; fewer need less memory", minimum=1, maximum=256)


class Tagger:
    """See lorakit.taggers.Tagger."""

    output = "tags"
    prompt = ""

    def __init__(self, config: Config):
        self.name = Path(config.source).name
        folder = DEMO if config.source == "demo" else fetch(config.source, patterns=("model.onnx", "selected_tags.csv"))
        try:
            import onnxruntime
        except ImportError as error:
            raise TaggerError("Taggers run on onnxruntime, which is not installed: pip install onnxruntime") from error
        self.categories = _read_tags(folder / "selected_tags.csv")
        self.runs_on = "onnxruntime on the CPU"
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]
        self.batch = config.batch_size

    def read(self, images: list[Image.Image]) -> list[dict[str, float]]:
        """Tag -> score of each picture."""
        rows = self._session.run(None, {self._input.name: np.stack([_square(i, self._input.shape[1]) for i in images])})
        return [dict(zip(self.categories, map(float, row), strict=True)) for row in rows[0]]


def _read_tags(file):
    with file.open(encoding="utf-8", newline="") as rows:
        return {row["name"]: CATEGORIES[row["category"]] for row in csv.DictReader(rows)}


def _square(image, side):
    image = image.convert("RGBA")
    longest = max(image.size)
    canvas = Image.new("RGBA", (longest, longest), "white")
    canvas.alpha_composite(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    rgb = canvas.convert("RGB").resize((side, side), Image.BICUBIC)
    return np.ascontiguousarray(np.asarray(rgb, dtype=np.float32)[:, :, ::-1])

"""Runs any tagger in the file format of SmilingWolf's WD taggers: `model.onnx` beside `selected_tags.csv`."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = {"0": "general", "4": "character", "9": "rating"}


class WD14:
    """A tagger read from `folder`.

    `categories` maps every tag to "general", "character" or "rating", in the order of the model's outputs;
    underscores of
    names longer than three letters are spaces, as in captions. Source of the format: the WD taggers' model cards
    (input NHWC float32, BGR, 0..255, padded to a square with white; outputs are probabilities).
    """

    def __init__(self, folder):
        folder = Path(folder)
        for name in ("model.onnx", "selected_tags.csv"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}: a WD tagger is model.onnx and selected_tags.csv.")
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("Taggers run on onnxruntime, which is not installed: pip install onnxruntime") from error
        self.categories = _read_tags(folder / "selected_tags.csv")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=onnxruntime.get_available_providers()
        )
        self._input = self._session.get_inputs()[0]
        outputs = self._session.get_outputs()[0].shape[-1]
        if isinstance(outputs, int) and outputs != len(self.categories):
            raise ValueError(
                f"{folder}: model.onnx has {outputs} outputs but selected_tags.csv {len(self.categories)} "
                "tags; the two files are not from the same tagger."
            )

    def tag(self, images):
        """Scores (0..1) of every tag for each PIL image of `images`, any sizes: a list of `{tag: score}`."""
        batch, side = self._input.shape[0], self._input.shape[1]
        size = batch if isinstance(batch, int) else 16
        squares = [_square(image, side) for image in images]
        scores = []
        for i in range(0, len(squares), size):
            scores.extend(self._session.run(None, {self._input.name: np.stack(squares[i : i + size])})[0])
        return [dict(zip(self.categories, map(float, row), strict=True)) for row in scores]


def _read_tags(file):
    with file.open(encoding="utf-8", newline="") as rows:
        found = {}
        for row in csv.DictReader(rows):
            if row["category"] not in CATEGORIES:
                known = ", ".join(CATEGORIES)
                raise ValueError(f"{file}: tag {row['name']!r} has category {row['category']}, known are {known}.")
            name = row["name"].replace("_", " ") if len(row["name"]) > 3 else row["name"]
            found[name] = CATEGORIES[row["category"]]
    return found


def _square(image, side):
    """(side, side, 3) float32 BGR 0..255: transparency and padding in white, bicubic."""
    image = image.convert("RGBA")
    longest = max(image.size)
    canvas = Image.new("RGBA", (longest, longest), "white")
    canvas.alpha_composite(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    rgb = canvas.convert("RGB").resize((side, side), Image.BICUBIC)
    return np.ascontiguousarray(np.asarray(rgb, dtype=np.float32)[:, :, ::-1])
